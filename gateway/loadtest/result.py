"""What a run measured: collected in `Measurement` while it goes on, given out as `Result`, ready for JSON.

Latency runs from when a request was due to its last byte, time to first token from when it was due to the end of
the first event (or the first body byte, when the answer is no stream), and the delay between events is what a reader
sees: events that arrive in one read are 0 apart. Latencies are of answers that were whole and 2xx; everything else is
an error with a kind, and the kinds are bounded.
"""

from typing import Final, Literal

import msgspec

from gateway.loadtest.histogram import Histogram

_KINDS_MAX: Final = 24
_SAMPLE_BYTES: Final = 300


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    loop: Literal["open", "closed"]
    #: Most requests at a time.
    streams: int
    #: Arrivals a second asked for; None in a closed loop.
    rate: float | None
    #: The window that counts and rates are of, without warm-up and grace.
    window_s: float
    completed: int
    failed: int
    #: Still running when the grace was over: their latencies are missing.
    unfinished: int
    #: Due in the window but never started, because all streams were taken.
    unsent: int
    events: int
    received_bytes: int
    requests_per_s: float
    events_per_s: float
    latency: Quantiles
    first_token: Quantiles
    between_events: Quantiles
    connect: Quantiles
    #: How much later than due requests were sent: the generator's own fault, or a backlog.
    start_delay: Quantiles
    #: By kind, most frequent first.
    errors: dict[str, int]
    #: The beginning of the first answer of each kind of error that had one.
    error_samples: dict[str, str]


class Measurement:
    """Counters and histograms of a run so far."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.first_token = Histogram()
        self.between_events = Histogram()
        self.connect = Histogram()
        self.start_delay = Histogram()
        self.completed = 0
        self.events = 0
        self.received_bytes = 0
        self.errors: dict[str, int] = {}
        self.error_samples: dict[str, str] = {}

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def fail(self, kind: str, *, sample: bytes = b"") -> None:
        """Count an error."""
        if kind not in self.errors and len(self.errors) >= _KINDS_MAX:
            kind = "other"
        self.errors[kind] = self.errors.get(kind, 0) + 1
        if sample and kind not in self.error_samples:
            self.error_samples[kind] = sample[:_SAMPLE_BYTES].decode(errors="replace")


def quantiles(histogram: Histogram) -> Quantiles:
    """The usual percentiles, rounded to a microsecond; all 0 when nothing was recorded."""

    def ms(percent: float) -> float:
        return round(histogram.percentile_ns(percent) / 1e6, 3)

    return Quantiles(
        count=len(histogram),
        mean_ms=round(histogram.mean_ns / 1e6, 3),
        p50_ms=ms(50),
        p90_ms=ms(90),
        p99_ms=ms(99),
        p999_ms=ms(99.9),
        max_ms=round(histogram.max_ns / 1e6, 3),
    )
