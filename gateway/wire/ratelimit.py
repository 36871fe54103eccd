"""Durations and retry hints in headers: `x-ratelimit-reset-*` as OpenAI writes them, `retry-after` as anyone does.

Rules:
- What is written is a Go duration (`12ms`, `1.5s`, `6m0s`, `1h2m3s`), because that is what clients parse.
- What is read may also be a plain number of seconds. Unreadable is None, never an error: a hint is a hint.
- Rounding is up: a client told to come back must not come too early.
"""

import math
import re
from email.utils import parsedate_to_datetime

_UNITS_S = {b"h": 3600.0, b"m": 60.0, b"s": 1.0, b"ms": 1e-3, b"us": 1e-6, "µs".encode(): 1e-6, b"ns": 1e-9}
_PART = re.compile(rb"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|\xc2\xb5s|ns)")
_NUMBER = re.compile(rb"\d+(?:\.\d*)?")
# Longer than any hint means anything.
_TEXT_BYTES_MAX = 64
_DURATION_S_MAX = 10 * 365 * 86400.0


def format_duration(duration_s: float) -> bytes:
    """`duration_s` as a Go duration, rounded up to a millisecond; what has passed already is `0s`."""
    total_ms = math.ceil(round(min(max(duration_s, 0.0), _DURATION_S_MAX) * 1000, 6))
    if total_ms == 0:
        return b"0s"
    if total_ms < 1000:
        return b"%dms" % total_ms
    minutes, rest_ms = divmod(total_ms, 60_000)
    whole, fraction_ms = divmod(rest_ms, 1000)
    seconds = b"%d" % whole if fraction_ms == 0 else (b"%d.%03d" % (whole, fraction_ms)).rstrip(b"0")
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%bs" % (hours, minutes, seconds)
    return b"%dm%bs" % (minutes, seconds) if minutes else b"%bs" % seconds


def parse_duration(text: bytes) -> float | None:
    """Seconds of a Go duration or of a plain number of seconds; None for anything else, `-1` included."""
    text = text.strip()
    if not text or len(text) > _TEXT_BYTES_MAX:
        return None
    if _NUMBER.fullmatch(text):
        total_s = float(text)
    else:
        total_s, at = 0.0, 0
        while at < len(text):
            part = _PART.match(text, at)
            if part is None:
                return None
            total_s += float(part[1]) * _UNITS_S[part[2]]
            at = part.end()
    return total_s if total_s <= _DURATION_S_MAX else None


def retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds until a retry makes sense, from `retry-after-ms`, else from `retry-after`.

    A date is taken relative to the answer's own `date` header, so that no clock of ours matters (RFC 9110, section
    10.2.3). None where neither says anything usable.
    """
    found = dict(headers)
    if (text := found.get(b"retry-after-ms")) is not None and _NUMBER.fullmatch(text.strip()):
        return min(float(text) / 1000, _DURATION_S_MAX)
    text = found.get(b"retry-after")
    if text is None:
        return None
    if (seconds := parse_duration(text)) is not None:
        return seconds
    if (date := found.get(b"date")) is None:
        return None
    try:
        until = parsedate_to_datetime(text.decode("ascii")) - parsedate_to_datetime(date.decode("ascii"))
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(until.total_seconds(), 0.0), _DURATION_S_MAX)
