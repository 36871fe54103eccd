"""What happened: a request id at the start; one metrics update and one access line at the end, whatever it was."""

from typing import Final

from gateway.deps import Deps, Handler
from gateway.errors import Forbidden, GatewayError, Unauthenticated, UnknownModel
from gateway.exchange import Exchange
from gateway.infra.logs import Timestamps
from gateway.kernel.keys import public_id
from gateway.telemetry import Record
from gateway.wire.credentials import presented_key
from gateway.wire.dialects import Dialect

#: OpenTelemetry's `gen_ai.operation.name` of each dialect.
OPERATIONS: Final = {
    Dialect.OPENAI_CHAT: "chat",
    Dialect.OPENAI_COMPLETIONS: "text_completion",
    Dialect.OPENAI_RESPONSES: "chat",
    Dialect.OPENAI_EMBEDDINGS: "embeddings",
    Dialect.OPENAI_IMAGES: "generate_content",
    Dialect.OPENAI_IMAGE_EDITS: "generate_content",
    Dialect.OPENAI_SPEECH: "generate_content",
    Dialect.OPENAI_TRANSCRIPTIONS: "transcription",
    Dialect.OPENAI_MODERATIONS: "moderation",
    Dialect.RERANK: "rerank",
    Dialect.ANTHROPIC_MESSAGES: "chat",
    Dialect.GEMINI_GENERATE: "generate_content",
    Dialect.GEMINI_EMBED: "embeddings",
}
#: A caller chooses the name; a log line has to stay readable.
_MODEL_LENGTH_MAX: Final = 128

# Remembers the second it formatted last.
_timestamps: Final = Timestamps()


async def observe(x: Exchange, *, deps: Deps, call_next: Handler) -> None:
    """Set `x.id`, `x.started_s` and the headers every answer carries."""
    monotonic = deps.clock.monotonic
    x.started_s = monotonic()
    x.id = deps.new_id()
    x.reply_headers.append((b"x-gateway-request-id", x.id.encode("ascii")))
    deps.telemetry.in_flight[0] += 1
    try:
        await call_next(x)
    finally:
        deps.telemetry.in_flight[0] -= 1
        record = _record(x, deps, duration_s=monotonic() - x.started_s)
        deps.telemetry.record(record)
        deps.access_log.write(record)
        if deps.hooks is not None:
            deps.hooks.settled(x, record)
        if x.error is not None:
            _note_refusal(x, x.error, deps)


def _note_refusal(x: Exchange, error: GatewayError, deps: Deps) -> None:
    """A line in the security log, of whom we refused; a provider's refusal of us is none."""
    security, principal = deps.security, x.principal
    if isinstance(error, Unauthenticated):
        client = security.source_of(x.scope)
        # Which key was tried, if it looks like one, is for whoever it belongs to; never more than its public id.
        key = _presented_id(x)
        if error.over is not None:
            security.note("key_misused", key, code=error.over, client=client, route=x.target.label, request_id=x.id)
        else:
            security.note(
                "authentication_failed", client, code=error.code, key=key, route=x.target.label, request_id=x.id
            )
        return
    code = error.code if isinstance(error, Forbidden) else error.withheld if isinstance(error, UnknownModel) else None
    if code is not None and principal is not None:
        security.note(
            "key_misused",
            principal.key_id,
            code=code,
            account=principal.account_id,
            client=security.source_of(x.scope),
            route=x.target.label,
            request_id=x.id,
        )


def _presented_id(x: Exchange) -> str:
    try:
        text = presented_key(x.scope["headers"], x.scope["query_string"])
    except Unauthenticated:
        return ""
    return public_id(text) or ""


def _record(x: Exchange, deps: Deps, *, duration_s: float) -> Record:
    call, offer, principal, error, usage = x.call, x.offer, x.principal, x.error, x.usage
    client = x.scope.get("client")
    return Record(
        time=_timestamps.format(deps.clock.now()),
        id=x.id,
        method=x.scope["method"],
        route=x.target.label,
        status=x.status,
        error_type="" if error is None else error.error_type,
        operation=OPERATIONS.get(x.target.dialect, "other"),
        provider="" if offer is None else offer.provider,
        model="" if offer is None else offer.model[:_MODEL_LENGTH_MAX],
        attempts=len(x.attempts),
        key="" if principal is None else principal.key_id,
        account=0 if principal is None else principal.account_id,
        stream=x.streaming,
        duration_s=round(duration_s, 6),
        first_byte_s=None if x.first_byte_s is None else round(x.first_byte_s - x.started_s, 6),
        upstream_s=None if x.upstream_s is None else round(x.upstream_s, 6),
        bytes_in=0 if call is None else len(call.body) if call.upload is None else call.upload.read_bytes,
        bytes_out=x.bytes_out,
        input_tokens=0 if usage is None else usage.input_tokens,
        output_tokens=0 if usage is None else usage.output_tokens,
        usage_source="none" if usage is None else usage.source,
        cost_nanos=x.cost_nanos,
        aborted_by=x.aborted_by,
        client=client[0] if client else "",
    )
