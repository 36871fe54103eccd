"""A worker's parts for tests of one stage: the few that the test is about, and nothing behind the others."""

import dataclasses
from typing import Any

from gateway.deps import Deps
from gateway.exchange import Call, Exchange, Message, Offer, Principal
from gateway.kernel.limits import pack_limits
from gateway.wire.dialects import Dialect
from gateway.wire.paths import Target
from gateway.wire.peek import Peek


class _Absent:
    """Fails where it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test gives no `{self._name}`, but its `{name}` is used")


class HandClock:
    """Both clocks, turned by hand."""

    def __init__(self, now_s: float = 1_763_640_000.0) -> None:
        self.now_s = now_s

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s - 1_763_000_000.0


def deps_of(**parts: Any) -> Deps:
    """Parts of a worker, of which only these are there."""
    absent = {
        field.name: _Absent(field.name) for field in dataclasses.fields(Deps) if field.default is dataclasses.MISSING
    }
    return Deps(**(absent | parts))


def exchange_of(
    *, path: bytes, method: str = "POST", body: bytes = b"", dialect: Dialect = Dialect.OPENAI_OTHER, model: str = ""
) -> Exchange:
    """A request that is known, asked for by `key` of account 7 and read; on its way to nobody yet."""

    async def receive() -> Message:
        raise AssertionError("nobody reads the request here")

    async def send(message: Message) -> None:
        raise AssertionError("nobody answers over ASGI here")

    scope = {"type": "http", "method": method, "headers": [], "path": path.decode(), "query_string": b""}
    x = Exchange(scope, receive, send, Target(dialect, path, "/v1/*"))
    x.id = "0199a7c0-0000-7000-8000-000000000001"
    x.principal = Principal(key_id="key", account_id=7, environment="live", limits=pack_limits())
    x.call = Call(
        id=x.id, dialect=dialect, method=method, path=path, query=b"", headers=[], body=body, peek=Peek(), model=model
    )
    return x


def offer_of(model: str, **members: Any) -> Offer:
    return Offer(model=model, upstream_model=model, provider="local", **members)
