"""Letting callers in as fast as they come.

libuv accepts one connection from a listening socket in each turn of the loop. In a busy worker turns are long, so it
would let in a few callers a second, and the others, those who matter most among them, would time out before anybody
could tell whose they are. Whenever a connection was let in, those that wait behind it are let in as well. One that
comes alone costs a look, 10 us.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from uvicorn.server import ServerState

#: In one turn: the requests of those who are in have to be served as well.
ACCEPTED_AT_ONCE: Final = 256


class Acceptor:
    """Of one listening socket, which does not block. `close` it before the socket."""

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        """`factory` makes the protocol of a connection."""
        self._listener = listener
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting = False
        self._closed = False

    def let_in(self) -> None:
        """Let in who waits; once in a turn of the loop."""
        if self._resting:
            return
        self._resting = True
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except OSError:
                # Nobody waits; or there is no descriptor left, which libuv deals with.
                break
            task = self._loop.create_task(self._open(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._loop.call_soon(self._rest_no_more)

    def close(self) -> None:
        """Let nobody in any more."""
        self._resting = self._closed = True

    def _rest_no_more(self) -> None:
        self._resting = self._closed

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            # It has gone again.
            connection.close()


class State(ServerState):
    """uvicorn's, with who lets callers in."""

    def __init__(self) -> None:
        super().__init__()
        self.acceptors: list[Acceptor] = []
