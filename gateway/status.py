"""How a gateway does: what its supervisor and its workers say, as the few figures that an operator looks at.

The supervisor answers `STATUS` on its control socket with what it knows of its workers and with everything they
counted, added up. Figures are of this host alone, and counts are since its start; the stores are not asked here.
"""

from math import inf
from typing import Final

import msgspec

from gateway.infra.metrics import Cell, FamilySnapshot
from gateway.kernel.money import NANOS_PER_USD

#: What to ask the control socket for, and what any worker's link is asked for.
STATUS: Final = b"status\n"
#: By the number that a breaker shows in the metrics.
BREAKERS: Final = ("closed", "half open", "open")

Families = dict[str, FamilySnapshot]


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One process: a worker that serves, or the books, which keep the ledger."""

    name: str
    pid: int
    #: starting, ready, or stopping.
    state: str
    #: Seconds since it was started.
    age_s: float


class FleetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor says."""

    version: str
    pid: int
    age_s: float
    workers: tuple[WorkerFacts, ...]
    families: list[FamilySnapshot]


class ProviderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One provider, as the workers of this host have found it."""

    name: str
    #: Its worst breaker: closed is well.
    breaker: str
    #: Keys that are left alone for a while because it refused them.
    keys_out: int
    attempts: int
    failures: int


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a provider answers: since the start, or between two looks. None where it answered nothing."""

    #: Tries, and those of them that failed for its sake, a second; None since the start.
    attempts_per_s: float | None
    failures_per_s: float | None
    #: Half of all requests took at most so long, and all but one in twenty.
    latency_p50_s: float | None
    latency_p95_s: float | None
    #: Half of all streams began within so long.
    first_token_p50_s: float | None


class LedgerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The books."""

    #: Age of the oldest record that is not in the database.
    settle_lag_s: float
    #: Of the hot balances from the books, at the last comparison; dollars.
    drift_usd: float
    records_settled: int
    records_rejected: int
    #: Requests that credit is held for now.
    holds_open: int
    holds_expired: int
    #: What the workers could not tell Redis yet.
    journal_bytes: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway on one host."""

    version: str
    uptime_s: float
    workers: tuple[WorkerFacts, ...]
    requests: int
    in_flight: int
    providers: tuple[ProviderStatus, ...]
    ledger: LedgerStatus
    #: Connections to the database in use, of how many are open, and how many wait for one.
    database_in_use: int
    database_open: int
    database_waiting: int


def encode_facts(facts: FleetFacts) -> bytes:
    return msgspec.msgpack.encode(facts)


def decode_facts(data: bytes) -> FleetFacts:
    """Raises: msgspec.DecodeError for what no supervisor of this release says."""
    return msgspec.msgpack.decode(data, type=FleetFacts)


def summarize(facts: FleetFacts) -> Status:
    """The few figures."""
    families = _families(facts)
    return Status(
        version=facts.version,
        uptime_s=round(facts.age_s, 1),
        workers=facts.workers,
        requests=round(_sum(families, "gateway_requests_total")),
        in_flight=round(_sum(families, "gateway_in_flight")),
        providers=providers_of(families),
        ledger=LedgerStatus(
            settle_lag_s=round(_sum(families, "gateway_settle_lag_seconds"), 3),
            drift_usd=_sum(families, "gateway_ledger_drift_nanodollars") / NANOS_PER_USD,
            records_settled=round(_sum(families, "gateway_records_settled_total")),
            records_rejected=round(_sum(families, "gateway_records_rejected_total")),
            holds_open=round(_sum(families, "gateway_holds_open")),
            holds_expired=round(_sum(families, "gateway_holds_expired_total")),
            journal_bytes=round(_sum(families, "gateway_local_journal_bytes")),
        ),
        database_in_use=round(_sum(families, "gateway_db_pool_in_use")),
        database_open=round(_sum(families, "gateway_db_pool_size")),
        database_waiting=round(_sum(families, "gateway_db_pool_waiting")),
    )


def providers_of(families: Families) -> tuple[ProviderStatus, ...]:
    """The providers that were configured, in the order of their names."""
    breakers = _series(families, "gateway_breaker_state")
    keys_out = _series(families, "gateway_provider_keys_out")
    attempts: dict[str, int] = {}
    failures: dict[str, int] = {}
    for (provider, outcome), cell in _series(families, "gateway_upstream_attempts_total").items():
        attempts[provider] = attempts.get(provider, 0) + round(cell[0])
        if outcome.startswith("provider_"):
            failures[provider] = failures.get(provider, 0) + round(cell[0])
    return tuple(
        ProviderStatus(
            name=name,
            breaker=BREAKERS[min(2, max(0, round(cell[0])))],
            keys_out=round(keys_out[name,][0]) if (name,) in keys_out else 0,
            attempts=attempts.get(name, 0),
            failures=failures.get(name, 0),
        )
        for (name,), cell in sorted(breakers.items())
    )


def paces_of(facts: FleetFacts, before: FleetFacts | None = None) -> dict[str, Pace]:
    """How fast each provider answers, by name; since the look `before`, if one is given."""
    now, then = _families(facts), {} if before is None else _families(before)
    seconds = None if before is None else max(facts.age_s - before.age_s, 0.001)
    earlier = {each.name: each for each in providers_of(then)}
    found = {}
    for each in providers_of(now):
        last = earlier.get(each.name)
        attempts = each.attempts - (0 if last is None else last.attempts)
        failures = each.failures - (0 if last is None else last.failures)
        took = _spread(now, then, "gen_ai_client_operation_duration_seconds", each.name)
        begun = _spread(now, then, "gen_ai_server_time_to_first_token_seconds", each.name)
        found[each.name] = Pace(
            attempts_per_s=None if seconds is None else max(0, attempts) / seconds,
            failures_per_s=None if seconds is None else max(0, failures) / seconds,
            latency_p50_s=_quantile(took, 0.5),
            latency_p95_s=_quantile(took, 0.95),
            first_token_p50_s=_quantile(begun, 0.5),
        )
    return found


def _families(facts: FleetFacts) -> Families:
    return {family.spec.name: family for family in facts.families}


def _spread(now: Families, then: Families, name: str, provider: str) -> list[tuple[float, float]]:
    """How many requests of a provider (the second label) took up to how long: bound and count, the last unbounded."""
    family = now.get(name)
    if family is None:
        return []
    bounds = [*family.spec.bounds, inf]
    counts = [0.0] * len(bounds)
    for sign, families in ((1, now), (-1, then)):
        for labels, cell in _series(families, name).items():
            if labels[1] == provider:
                counts = [count + sign * part for count, part in zip(counts, cell, strict=False)]
    return list(zip(bounds, counts, strict=True))


def _quantile(spread: list[tuple[float, float]], share: float) -> float | None:
    """Within the bucket that it falls in, as if all were spread evenly; None of nothing."""
    left = share * sum(count for _, count in spread)
    if left <= 0:
        return None
    lower = 0.0
    for bound, count in spread:
        if count >= left and bound < inf:
            return lower + (bound - lower) * left / count
        if count >= left:
            return lower
        left -= count
        lower = bound
    return lower


def _series(families: Families, name: str) -> dict[tuple[str, ...], Cell]:
    family = families.get(name)
    return {} if family is None else family.series


def _sum(families: Families, name: str) -> float:
    """A count over all its labels."""
    return sum(cell[0] for cell in _series(families, name).values())
