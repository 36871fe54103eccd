"""Listening to channels, for ever: published messages, and None wherever some may be missing.

Rules:
- Redis forgets a message as it sends it: whoever was away missed it. So each time listening begins, the first time
  too, there is a None before any message that came after: what was cached until then may be stale.
- A connection that is silent for `PING_S` is asked, and given up when it does not answer: it takes little more than a
  second to notice that nothing can be heard.
- At most `MESSAGES_MAX` messages wait to be taken. What comes on top makes a gap, not a queue without end.
"""

import asyncio
import logging
import random
from collections import deque

import msgspec

from gateway.errors import StoreUnavailable
from gateway.infra.redis.connection import Connection
from gateway.infra.redis.link import DELAY_S_MAX, DELAY_S_MIN, PROVEN_S, Dial
from gateway.infra.tasks import TaskGroup

log = logging.getLogger(__name__)

MESSAGES_MAX = 10_000


class Message(msgspec.Struct, frozen=True):
    """What was published."""

    channel: bytes
    data: bytes


class Subscription:
    """An endless iterator over messages, and None wherever some may be missing; it ends when it is closed.

    One task may iterate at a time.
    """

    def __init__(
        self,
        channels: tuple[bytes, ...],
        dial: Dial,
        *,
        tasks: TaskGroup,
        messages_max: int = MESSAGES_MAX,
    ) -> None:
        assert channels, "no channels to listen to"
        #: True while messages would be heard.
        self.listening = False
        self.closed = False
        self._channels = channels
        self._dial = dial
        self._messages_max = messages_max
        self._messages: deque[Message | None] = deque()
        self._arrived = asyncio.Event()
        self._unconfirmed = len(channels)
        self._connection: Connection | None = None
        self._task = tasks.spawn(self._keep(), name=f"redis subscription {channels[0]!r}")

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Message | None:
        while not self._messages:
            if self.closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._messages.popleft()

    def close(self) -> None:
        """Listen no more; whoever iterates gets what has arrived, and then the end."""
        self.closed = True
        self._task.cancel()
        if self._connection is not None:
            self._connection.give_up("closed by us")
        self._arrived.set()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = 0.0
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            proven = False
            try:
                connection = await self._dial()
            except StoreUnavailable as error:
                reason = error.detail
            else:
                began_s = loop.time()
                reason = await self._listen(connection)
                proven = loop.time() - began_s >= PROVEN_S
            log.log(
                logging.WARNING if proven or not delay_s else logging.DEBUG,
                "redis subscription lost",
                extra={
                    "channels": [channel.decode("ascii", "replace") for channel in self._channels],
                    "reason": reason,
                },
            )
            delay_s = DELAY_S_MIN if proven else min(DELAY_S_MAX, max(DELAY_S_MIN, delay_s * 2))

    async def _listen(self, connection: Connection) -> str:
        self._unconfirmed = len(self._channels)
        self._connection = connection
        try:
            connection.listen(self._pushed)
            connection.write("SUBSCRIBE", *self._channels)
            return await connection.lost
        finally:
            self.listening = False
            self._connection = None
            connection.give_up("closed by us")

    def _pushed(self, reply: object) -> None:
        # A kind, a channel, and a message or a count; else it is an error, or the answer to PING.
        match reply:
            case [b"message", bytes() as channel, bytes() as data]:
                self._take(Message(channel, data))
            case [b"subscribe", *_]:
                self._unconfirmed -= 1
                if self._unconfirmed == 0:
                    self.listening = True
                    self._take(None)
            case [b"pong", *_] | b"PONG":
                pass
            case _:
                assert self._connection is not None
                self._connection.give_up(f"unexpected: {reply!r}")

    def _take(self, message: Message | None) -> None:
        if len(self._messages) >= self._messages_max:
            self._messages.clear()
            self._messages.append(None)
        self._messages.append(message)
        self._arrived.set()
