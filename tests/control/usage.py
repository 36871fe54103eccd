"""Settled usage, as the settler would leave it, for tests of what is shown of it."""

import uuid
from datetime import UTC, datetime

from gateway.infra.postgres import Database
from gateway.kernel.request_id import RequestIds

_ADD = """
insert into usage_records (
    request_id, created_at, account_id, key_id, cost_nanos, hold_nanos, model, provider, upstream_model, dialect, route,
    status, outcome, error_type, stream, latency_ms, first_token_ms, usage_source, input_tokens, output_tokens,
    input_cached_tokens, input_cache_write_tokens, input_cache_write_1h_tokens, input_audio_tokens, input_image_tokens,
    output_reasoning_tokens, output_audio_tokens, output_image_tokens, images, audio_ms, characters, searches,
    input_mtok_nanos, output_mtok_nanos, markup_permille, attempts, tags, settled_at)
values ($1, $2, $3, $4, $5, 0, $6, $7, $6, 'openai_chat', '/v1/chat/completions', $8, $9, $10, true, 2000, 500,
        'reported', $11, $12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1000, '[]', '{}', $2)
"""


class FixedClock:
    """A clock that stands still, at any time."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> float:
        return self._at.timestamp()

    def monotonic(self) -> float:
        return 0.0


async def add_usage(
    database: Database,
    account_id: int,
    *,
    at: datetime | None = None,
    model: str = "gpt-test",
    provider: str = "openai",
    cost_nanos: int = 1_500_000,
    input_tokens: int = 100,
    output_tokens: int = 50,
    error_type: str = "",
    key_id: str = "somekey",
) -> uuid.UUID:
    """One ended request; its id."""
    at = at or datetime.now(UTC)
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    request_id = uuid.UUID(RequestIds(FixedClock(at)).make())
    await database.execute(
        _ADD,
        request_id,
        at,
        account_id,
        key_id,
        cost_nanos,
        model,
        provider,
        200 if not error_type else 502,
        error_type or "ok",
        error_type,
        input_tokens,
        output_tokens,
    )
    return request_id
