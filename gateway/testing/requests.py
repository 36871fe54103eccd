"""Requests and records as plugins see them, for tests of plugins: no gateway runs, and nothing is sent."""

from typing import Any

import msgspec

from gateway.api import Call, Dialect, Headers, Request, Settled
from gateway.exchange import Exchange, Message, Principal
from gateway.wire.paths import resolve
from gateway.wire.peek import Peek, peek


def make_request(
    body: bytes = b"",
    *,
    path: bytes = b"/v1/chat/completions",
    headers: Headers | None = None,
    account_id: int = 1,
    key_id: str = "key",
    reads_body: bool = False,
) -> Request:
    """A request that has just been let in. `reads_body` is what the plugin declares."""
    target = resolve(path)
    if target is None:
        raise ValueError(f"{path!r} leads nowhere")
    found = peek(body) if body else Peek()
    scope = {"type": "http", "method": "POST", "headers": headers or []}
    x = Exchange(scope, _nothing, _nowhere, target, id="request-1", tags={})
    x.principal = Principal(key_id=key_id, account_id=account_id, environment="test", limits=b"")
    x.call = Call(
        id=x.id,
        dialect=target.dialect,
        method="POST",
        path=target.path,
        query=b"",
        headers=headers or [],
        body=body,
        peek=found,
        model=target.model or found.model or "",
    )
    return Request(x, notes={}, readable=reads_body)


def make_settled(**facts: Any) -> Settled:  # Any: as many types as Settled has fields
    """A request that ended well, but for what `facts` say."""
    plain = Settled(
        id="request-1",
        method="POST",
        route="/v1/chat/completions",
        dialect=Dialect.OPENAI_CHAT,
        operation="chat",
        status=200,
        error_type="",
        aborted_by="",
        account_id=1,
        key_id="key",
        model="model",
        upstream_model="model",
        provider="provider",
        attempts=(("provider", "ok"),),
        stream=False,
        started_at=1_790_000_000.0,
        duration_s=0.25,
        first_byte_s=0.125,
        upstream_s=0.25,
        bytes_in=64,
        bytes_out=256,
        usage=None,
        cost_nanos=0,
        client="192.0.2.1",
        tags={},
        notes={},
    )
    return msgspec.structs.replace(plain, **facts)


async def _nothing() -> Message:
    raise AssertionError("plugins read nothing from the caller's connection")


async def _nowhere(message: Message) -> None:
    raise AssertionError("plugins write nothing to the caller's connection")
