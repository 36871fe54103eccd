"""`GET /v1/generations/{id}`: what one earlier request came to, for the key that made it.

The id is the one in that request's `x-gateway-request-id`. `GET /v1/generation?id=...` answers the same in the shape
that clients of OpenRouter know. A request is found as soon as it has ended and Redis has been told so; until then,
and for every other key, it is a 404, with `retry-after` where the id is so young that it may still appear.
"""

import urllib.parse
from typing import Final

import msgspec

from gateway.deps import Deps, Handler
from gateway.errors import BadRequest, MethodNotAllowed, UnknownGeneration
from gateway.exchange import Exchange
from gateway.kernel.journal import UsageRow
from gateway.kernel.money import Nanos, format_usd
from gateway.kernel.request_id import is_request_id, time_ms
from gateway.wire.paths import GENERATION, GENERATIONS

#: A request that began longer ago is not awaited.
YOUNG_S: Final = 3600.0
RETRY_S: Final = 1.0


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What was used. `source`: the provider "reported" it, or it was "estimated", wholly or in "partial"."""

    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    output_reasoning_tokens: int
    source: str


class Try(msgspec.Struct, frozen=True):
    """One attempt at a provider: `outcome` is "ok", or says what was wrong."""

    provider: str
    outcome: str


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One ended request."""

    id: str
    object: str = "generation"
    #: Unix time of its begin, seconds.
    created: int
    model: str
    provider: str
    upstream_model: str
    #: What the caller got.
    status: int
    outcome: str
    error_type: str | None
    stream: bool
    usage: Tokens
    #: Exact, as a decimal; and in billionths of a dollar.
    cost_usd: str
    cost_nanos: Nanos
    latency_ms: int
    #: Until the first byte of the answer.
    first_token_ms: int | None
    attempts: list[Try]
    #: Whether it went out with a provider key of the account's own; then the cost is a fee, of so many thousandths of
    #: what it would have cost without.
    own_key: bool
    fee_permille: int | None
    tags: dict[str, str]


class OpenRouterGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """The same, as far as OpenRouter's object has words for it."""

    id: str
    created_at: str
    model: str
    provider_name: str
    total_cost: float
    usage: float
    upstream_inference_cost: float | None
    streamed: bool
    cancelled: bool
    latency: int | None
    generation_time: int
    tokens_prompt: int
    tokens_completion: int
    native_tokens_prompt: int
    native_tokens_completion: int
    native_tokens_reasoning: int
    native_tokens_cached: int
    is_byok: bool


class OpenRouterAnswer(msgspec.Struct, frozen=True):
    """Its envelope."""

    data: OpenRouterGeneration


async def show_generation(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Answer with the request whose id is in the path, or in the query.

    Raises:
        UnknownGeneration: this key made none of that id, or it has not ended.
        BadRequest: there is no id.
        StoreUnavailable: it can't be looked up.
    """
    assert x.principal is not None
    if x.scope["method"] not in {"GET", "HEAD"}:
        raise MethodNotAllowed(allow="GET, HEAD")
    request_id = _asked_id(x)
    row = await deps.history.find(request_id, account_id=x.principal.account_id, key_id=x.principal.key_id)
    if row is None:
        raise UnknownGeneration(retry_after_s=_retry_s(request_id, now_s=deps.clock.now()))
    body = msgspec.json.encode(_as_openrouter(row) if x.target.path == GENERATION else _as_ours(row))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", x.id.encode()),
        *x.reply_headers,
    ]
    x.committed = True
    x.status = 200
    x.bytes_out = len(body)
    await x.send({"type": "http.response.start", "status": 200, "headers": headers})
    await x.send({"type": "http.response.body", "body": b"" if x.scope["method"] == "HEAD" else body})


def _asked_id(x: Exchange) -> str:
    if x.target.path != GENERATION:
        return urllib.parse.unquote(x.target.path.removeprefix(GENERATIONS).decode("latin-1")).lower()
    for field in x.scope["query_string"].split(b"&"):
        name, _, value = field.partition(b"=")
        if name == b"id" and value:
            return urllib.parse.unquote(value.decode("latin-1")).lower()
    raise BadRequest("Name the request: `?id=...`.", param="id")


def _retry_s(request_id: str, *, now_s: float) -> float | None:
    if not is_request_id(request_id):
        return None
    age_s = now_s - time_ms(request_id) / 1000
    return RETRY_S if -RETRY_S < age_s < YOUNG_S else None


def _as_ours(row: UsageRow) -> Generation:
    return Generation(
        id=str(row.request_id),
        created=int(row.created_at.timestamp()),
        model=row.model,
        provider=row.provider,
        upstream_model=row.upstream_model,
        status=row.status,
        outcome=row.outcome,
        error_type=row.error_type or None,
        stream=row.stream,
        usage=Tokens(
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            input_cached_tokens=row.input_cached_tokens,
            input_cache_write_tokens=row.input_cache_write_tokens,
            output_reasoning_tokens=row.output_reasoning_tokens,
            source=row.usage_source,
        ),
        cost_usd=format_usd(row.cost_nanos),
        cost_nanos=row.cost_nanos,
        latency_ms=row.latency_ms,
        first_token_ms=row.first_token_ms,
        attempts=[Try(attempt.provider, attempt.outcome) for attempt in row.attempts],
        own_key=row.fee_permille is not None,
        fee_permille=row.fee_permille,
        tags=row.tags,
    )


def _as_openrouter(row: UsageRow) -> OpenRouterAnswer:
    cost_usd = float(format_usd(row.cost_nanos))
    provider_nanos = row.provider_cost_nanos
    return OpenRouterAnswer(
        OpenRouterGeneration(
            id=str(row.request_id),
            created_at=row.created_at.isoformat(),
            model=row.model,
            provider_name=row.provider,
            total_cost=cost_usd,
            usage=cost_usd,
            upstream_inference_cost=None if provider_nanos is None else float(format_usd(provider_nanos)),
            streamed=row.stream,
            cancelled=row.outcome == "caller_gone",
            latency=row.first_token_ms,
            generation_time=row.latency_ms,
            tokens_prompt=row.input_tokens,
            tokens_completion=row.output_tokens,
            native_tokens_prompt=row.input_tokens,
            native_tokens_completion=row.output_tokens,
            native_tokens_reasoning=row.output_reasoning_tokens,
            native_tokens_cached=row.input_cached_tokens,
            is_byok=row.fee_permille is not None,
        )
    )
