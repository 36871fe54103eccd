"""What the gateway counts and logs about its requests: the metric families, and the record of one request.

Rules:
- One `Record` is made for each finished request, whatever became of it. It is the line in the access log, and
  `Telemetry.record` puts the same facts into the metrics; so the two can't disagree.
- Labels are closed: a provider or model that is not configured counts as `_other` here, whatever a caller typed.
  Keys, accounts and addresses are in the log line and never a label.
- Facts about models carry OpenTelemetry's GenAI names and buckets, our own the prefix `gateway_`.
- `error_type` says who is at fault by its prefix (`caller_`, `policy_`, `provider_`, `gateway_`); empty is no error.

What is counted as it happens (money, breaker states, Redis time) is a public cell or a small method here, for the
stage that knows it. Nothing here does IO.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal

import msgspec

from gateway.infra.metrics import OTHER, Cell, Observations, Registry

# Advised by the OpenTelemetry semantic conventions for generative AI; the time to the first token goes on to a
# minute, because reasoning models take that long.
OPERATION_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0,
)  # fmt: skip
TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKEN_BOUNDS = tuple(float(4**power) for power in range(14))
# A gateway's own share is well under a millisecond when all is well.
OVERHEAD_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
CONTROL_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STORE_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

#: `total` is all but the time spent waiting for a provider. Of its parts, the stores have metrics of their own; the
#: stages are too short to be worth two readings of a clock each.
TOTAL = "total"

STATUS_CLASSES = {number: f"{number}xx" for number in range(1, 6)}
UsageKind = Literal["reported", "estimated", "partial", "none"]
By = Literal["", "caller", "provider", "gateway"]
#: Label sets kept at hand; beyond it they are looked up for each request.
BOUND_MAX = 4096


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One finished request; a line of the access log, with the fields in this order and the empty ones left out.

    `route` is the template (`/v1/chat/completions`), never the path with its query, and `_other` where there is none.
    `key` is the public id of the caller's key. `upstream_s` is how long the request waited for providers; the rest of
    `duration_s` is the gateway's own. `aborted_by` is set on an answer that was cut after its first byte.
    """

    time: str
    id: str
    method: str
    route: str
    status: int
    error_type: str = ""
    #: OpenTelemetry's word: chat, text_completion, embeddings, ...
    operation: str = ""
    provider: str = ""
    model: str = ""
    attempts: int = 0
    key: str = ""
    account: int = 0
    stream: bool = False
    duration_s: float = 0.0
    first_byte_s: float | None = None
    upstream_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usage_source: UsageKind = "none"
    cost_nanos: int = 0
    aborted_by: By = ""
    client: str = ""


class _Bound:
    """The cells that requests with one set of labels count into."""

    __slots__ = ("duration", "first_token", "input_tokens", "output_tokens", "requests", "token_time")

    def __init__(self, requests: Cell) -> None:
        self.requests = requests
        #: None where no provider was asked.
        self.duration: Cell | None = None
        self.first_token: Cell = []
        self.token_time: Cell = []
        self.input_tokens: Cell = []
        self.output_tokens: Cell = []


class Telemetry:
    """The families, declared in `registry`; one for each worker."""

    def __init__(self, registry: Registry, *, version: str) -> None:
        self._providers: frozenset[str] = frozenset()
        self._models: frozenset[str] = frozenset()
        self._bound: dict[tuple[str, ...], _Bound] = {}
        self._declare_requests(registry)
        self._declare_models(registry)
        self._declare_money(registry)
        self._declare_stores(registry)
        registry.gauge("gateway_build_info", "1 for each version that runs.", ("version",), mode="max").set(
            (version,), 1
        )

    def know(self, *, providers: Iterable[str], models: Iterable[str]) -> None:
        """Take the configured names; every other one counts as `_other`. Call at start and after a reload."""
        self._providers = frozenset(providers)
        self._models = frozenset(models)
        self._bound.clear()

    def record(self, done: Record) -> None:
        """Count one finished request."""
        provider = done.provider
        model = done.model
        if provider and provider not in self._providers:
            provider = OTHER
        if model not in self._models:
            model = OTHER
        key = (
            done.route,
            provider,
            model,
            done.operation,
            done.error_type,
            STATUS_CLASSES.get(done.status // 100, OTHER),
        )
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(key)

        bound.requests[0] += 1
        duration_s = done.duration_s
        if done.upstream_s is not None:
            self._overhead_total.observe(duration_s - done.upstream_s)
        if done.aborted_by:
            self._stream_aborts[done.aborted_by][0] += 1
        cell = bound.duration
        if cell is None:
            return
        # In place what Observations.observe does: five calls saved are 0.4 us of each request.
        cell[bisect_left(OPERATION_BOUNDS_S, duration_s)] += 1
        cell[-1] += duration_s
        self._usage_sources[done.usage_source][0] += 1
        first_byte_s = done.first_byte_s
        output_tokens = done.output_tokens
        if done.stream and first_byte_s is not None:
            cell = bound.first_token
            cell[bisect_left(FIRST_TOKEN_BOUNDS_S, first_byte_s)] += 1
            cell[-1] += first_byte_s
            if output_tokens > 1:
                token_s = (duration_s - first_byte_s) / (output_tokens - 1)
                cell = bound.token_time
                cell[bisect_left(TOKEN_BOUNDS_S, token_s)] += 1
                cell[-1] += token_s
        if done.usage_source != "none":
            tokens = done.input_tokens
            cell = bound.input_tokens
            cell[bisect_left(TOKEN_BOUNDS, tokens)] += 1
            cell[-1] += tokens
            cell = bound.output_tokens
            cell[bisect_left(TOKEN_BOUNDS, output_tokens)] += 1
            cell[-1] += output_tokens

    def record_control(self, done: Record) -> None:
        """Count one finished request of the control plane: with all others, and how long it took by its route."""
        self.record(done)
        self._control_duration.bind(done.route).observe(done.duration_s)

    def count_attempt(self, provider: str, outcome: str) -> None:
        """Count one attempt at a provider. `outcome` is `ok` or the error_type it failed with."""
        self._attempts.add((provider if provider in self._providers else OTHER, outcome))

    def count_fallback(self, reason: str) -> None:
        """Count a move to the next offer. `reason` is the error_type that made it necessary."""
        self._fallbacks.add((reason,))

    def count_hedge(self, *, won: bool) -> None:
        """Count a second try beside a first one, and whether it was the one that answered."""
        self._hedges[won][0] += 1

    def count_shed(self, by: Literal["worker", "provider"], priority: str) -> None:
        """Count a request that was refused because the worker, or all providers of its model, had no room for it."""
        self._shed.add((by, priority))

    def count_cache(self, outcome: Literal["hit", "miss"]) -> None:
        """Count a request whose answer was in memory, or was not and may be now."""
        self._cache.add((outcome,))

    def count_disbelief(self, provider: str) -> None:
        """Count a report of usage that nobody could believe."""
        self._disbelieved.add((provider if provider in self._providers else OTHER,))

    def count_refusal(self, scope: str, limit: str) -> None:
        """Count a request that did not get past a limit: which one (requests, tokens, concurrency, budget, credit)
        and whose (account, key, model).
        """
        self._decisions.add((scope, limit))

    def count_narrowing(self, scope: str, limit: str) -> None:
        """Count a request that went on with what there was room for: whose limit, and which (budget, credit)."""
        self._narrowings.add((scope, limit))

    def set_breaker(self, provider: str, state: int) -> None:
        """Show a breaker: 0 closed, 1 half open, 2 open. Of several workers, the worst counts."""
        self._breakers.set((provider if provider in self._providers else OTHER,), state)

    def set_keys_out(self, provider: str, count: int) -> None:
        """Show how many keys of a provider are out of use. Of several workers, the one with the most counts."""
        self._keys_out.set((provider if provider in self._providers else OTHER,), count)

    def set_limit(self, provider: str, limit: int) -> None:
        """Show how many requests at a time a provider takes. Of several workers, the lowest counts."""
        self._limits.set((provider if provider in self._providers else OTHER,), limit)

    def set_pool(self, *, size: int, in_use: int, waiting: int) -> None:
        """Show this process's database connections, and how many tasks wait for one."""
        self._db_pool_size.set((), size)
        self._db_pool_in_use.set((), in_use)
        self._db_pool_waiting.set((), waiting)

    def time_redis(self, op: str) -> Observations:
        """The series for one kind of Redis call; ask once and keep it. `op` is the script's name."""
        return self._redis.bind(op)

    # -- the families ------------------------------------------------------------------------------------------

    def _declare_requests(self, registry: Registry) -> None:
        self._requests = registry.counter(
            "gateway_requests_total",
            "Requests answered. error_type is empty where nothing failed.",
            ("route", "status_class", "error_type"),
        )
        in_flight = registry.gauge("gateway_in_flight", "Requests being handled.", mode="sum")
        #: Add 1 on the way in and take it off on the way out.
        self.in_flight = in_flight.cell()
        overhead = registry.histogram(
            "gateway_overhead_seconds",
            "The gateway's own time; total is all but waiting for providers.",
            ("component",),
            bounds=OVERHEAD_BOUNDS_S,
        )
        self._overhead_total = overhead.bind(TOTAL)
        self._control_duration = registry.histogram(
            "gateway_control_duration_seconds",
            "How long requests at the control plane took.",
            ("route",),
            bounds=CONTROL_BOUNDS_S,
        )
        self._attempts = registry.counter(
            "gateway_upstream_attempts_total",
            "Attempts at providers. outcome is ok or the error type.",
            ("provider", "outcome"),
        )
        self._fallbacks = registry.counter(
            "gateway_fallbacks_total", "Moves to the next offer, by the error type that made them.", ("reason",)
        )
        hedges = registry.counter(
            "gateway_hedges_total",
            "Second tries beside one that took long, by whether theirs was the answer.",
            ("won",),
        )
        self._hedges = (hedges.cell("no"), hedges.cell("yes"))
        self._cache = registry.counter(
            "gateway_cache_total", "Requests that could be answered from memory, by whether they were.", ("outcome",)
        )
        self.cache_bytes = registry.gauge(
            "gateway_cache_bytes", "Size of the answers that are kept, all workers.", mode="sum"
        )
        self._shed = registry.counter(
            "gateway_shed_total",
            "Requests refused because there was no room: by whom, and the priority of the key.",
            ("by", "priority"),
        )
        self.in_flight_bound = registry.gauge(
            "gateway_in_flight_bound", "Requests that a worker lets in now; the lowest of all workers.", mode="min"
        )
        self._limits = registry.gauge(
            "gateway_provider_concurrency_limit",
            "Requests at a time that a provider was found to take, where that is known: of its most limited model.",
            ("provider",),
            mode="min",
        )
        self._breakers = registry.gauge(
            "gateway_breaker_state",
            "Circuit breakers: 0 closed, 1 half open, 2 open; the worst of all workers.",
            ("provider",),
            mode="max",
        )
        self._keys_out = registry.gauge(
            "gateway_provider_keys_out",
            "Keys of each provider that it refused and that are left alone for a while; the most of all workers.",
            ("provider",),
            mode="max",
        )
        #: Set at snapshot time from the budget, which knows nothing of metrics.
        self.retries_refused = registry.counter(
            "gateway_retries_refused_total", "Further tries that the retry budget did not allow."
        ).cell()
        self._decisions = registry.counter(
            "gateway_limiter_decisions_total",
            "Requests allowed by all limits, or the limit that refused them.",
            ("scope", "decision"),
        )
        #: One list item, so that counting costs one addition.
        self.allowed = self._decisions.cell("all", "allowed")
        self._narrowings = registry.counter(
            "gateway_narrowings_total",
            "Requests that went on with the cheaper ones of their offers, and the limit that had no room for all.",
            ("scope", "limit"),
        )
        aborts = registry.counter("gateway_stream_aborts_total", "Answers cut after their first byte.", ("by",))
        self._stream_aborts: dict[By, Cell] = {by: aborts.cell(by) for by in ("caller", "provider", "gateway")}
        #: Set at snapshot time from the access log, which knows nothing of metrics.
        self.access_lines_dropped = registry.counter(
            "gateway_access_lines_dropped_total", "Access log lines dropped because their reader was too slow."
        ).cell()
        self._disbelieved = registry.counter(
            "gateway_usage_disbelieved_total",
            "Reports of usage beyond anything possible; an estimate is charged instead.",
            ("provider",),
        )
        sources = registry.counter("gateway_usage_source_total", "Where the figures billed came from.", ("source",))
        self._usage_sources: dict[UsageKind, Cell] = {
            source: sources.cell(source) for source in ("reported", "estimated", "partial", "none")
        }

    def _declare_models(self, registry: Registry) -> None:
        labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._duration = registry.histogram(
            "gen_ai_client_operation_duration_seconds",
            "How long requests that reached a provider took.",
            (*labels, "error_type"),
            bounds=OPERATION_BOUNDS_S,
        )
        self._first_token = registry.histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request to the first byte of a streamed answer.",
            labels,
            bounds=FIRST_TOKEN_BOUNDS_S,
        )
        self._token_time = registry.histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each output token after the first, streamed answers.",
            labels,
            bounds=TOKEN_BOUNDS_S,
        )
        self._tokens = registry.histogram(
            "gen_ai_client_token_usage",
            "Tokens used by each request; the sum is the total.",
            (*labels, "gen_ai_token_type"),
            bounds=TOKEN_BOUNDS,
        )

    def _declare_money(self, registry: Registry) -> None:
        #: Nano-dollars, as integers.
        self.credit_held = registry.counter(
            "gateway_credit_held_nanodollars_total", "Credit set aside before requests."
        ).cell()
        self.credit_settled = registry.counter(
            "gateway_credit_settled_nanodollars_total", "Credit charged for what was delivered."
        ).cell()
        self.credit_voided = registry.counter(
            "gateway_credit_voided_nanodollars_total", "Credit given back because nothing was delivered."
        ).cell()
        #: Set at snapshot time.
        self.holds_open = registry.gauge("gateway_holds_open", "Requests that credit is held for.", mode="sum")
        self.holds_expired = registry.counter(
            "gateway_holds_expired_total", "Holds whose worker died; settled at what its last renewal said."
        ).cell()
        self.records_settled = registry.counter(
            "gateway_records_settled_total", "Usage records that arrived in the database."
        ).cell()
        self.records_rejected = registry.counter(
            "gateway_records_rejected_total", "Usage records that could not be settled and were set aside."
        ).cell()
        self.ends_journaled = registry.counter(
            "gateway_ends_journaled_total", "Ended requests that Redis could not be told of, written to local disk."
        ).cell()
        self.admitted_locally = registry.counter(
            "gateway_admitted_locally_total", "Requests let in by a worker alone, because Redis was away."
        ).cell()
        #: Rises while Redis is away; what stays here when it is back is not told.
        self.journal_bytes = registry.gauge(
            "gateway_local_journal_bytes", "Size of the files that the workers are writing to.", mode="sum"
        )
        #: Set by whoever reconciled last.
        self.ledger_drift = registry.gauge(
            "gateway_ledger_drift_nanodollars", "Difference between the hot balances and the ledger.", mode="last"
        )
        self.settle_lag = registry.gauge(
            "gateway_settle_lag_seconds", "Age of the oldest usage record that is not in the database.", mode="max"
        )

    def _declare_stores(self, registry: Registry) -> None:
        self._redis = registry.histogram(
            "gateway_redis_seconds", "Round trips to Redis, by script.", ("op",), bounds=STORE_BOUNDS_S
        )
        self._db_pool_size = registry.gauge("gateway_db_pool_size", "Database connections open.", mode="sum")
        self._db_pool_in_use = registry.gauge("gateway_db_pool_in_use", "Database connections in use.", mode="sum")
        self._db_pool_waiting = registry.gauge(
            "gateway_db_pool_waiting", "Tasks waiting for a database connection.", mode="sum"
        )

    def _bind(self, key: tuple[str, ...]) -> _Bound:
        route, provider, model, operation, error_type, status_class = key
        bound = _Bound(self._requests.cell(route, status_class, error_type))
        if provider:
            labels = (operation, provider, model)
            bound.duration = self._duration.cell(*labels, error_type)
            bound.first_token = self._first_token.cell(*labels)
            bound.token_time = self._token_time.cell(*labels)
            bound.input_tokens = self._tokens.cell(*labels, "input")
            bound.output_tokens = self._tokens.cell(*labels, "output")
        if len(self._bound) < BOUND_MAX:
            self._bound[key] = bound
        return bound
