"""Callers who wait to be let in are, at once."""

import asyncio
import socket

from gateway.server.accepting import ACCEPTED_AT_ONCE, Acceptor

CALLERS = 20


class _Opened(asyncio.Protocol):
    def __init__(self, opened: list[asyncio.Transport]) -> None:
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._opened.append(transport)


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=CALLERS)
    listener.setblocking(False)
    return listener


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_all_who_wait_are_let_in_together() -> None:
    opened: list[asyncio.Transport] = []
    with listening() as listener:
        acceptor = Acceptor(listener, lambda: _Opened(opened))
        acceptor.let_in()
        callers = [socket.create_connection(listener.getsockname()) for _ in range(CALLERS)]
        # One look in each turn of the loop.
        acceptor.let_in()
        await turns()
        assert opened == []

        acceptor.let_in()
        await turns()

        assert CALLERS <= ACCEPTED_AT_ONCE
        assert len(opened) == CALLERS
        acceptor.close()
        with socket.create_connection(listener.getsockname()):
            acceptor.let_in()
            await turns()
            assert len(opened) == CALLERS
        for each in (*opened, *callers):
            each.close()
        await turns()
