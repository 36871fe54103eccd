"""Credentials that run out, fetched again in time for the adapters that have such.

Rules:
- One asking at a time for each adapter, and one task that does it, so that two can't race.
- The first is awaited before the worker takes requests, but not for longer than `FIRST_WAIT_S`: a provider whose
  token server is away must not keep the others from being served.
- A failed asking is tried again after `RETRY_S`, then at growing distances up to `RETRY_S_MAX`. The log names the
  provider and what went wrong, never the request or the answer.

An account's own key comes and goes while the worker runs (`follow`): its credential is fetched when it is first used,
and again for as long as it is.

It goes out as any other request does: same proxies, same trusted certificates, same bounds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable
from typing import Final

from gateway.api import Renewing, UpstreamRequest
from gateway.errors import GatewayError
from gateway.infra.clock import Clock
from gateway.infra.tasks import TaskGroup
from gateway.settings import Timeouts
from gateway.upstream.client import UpstreamClient

log = logging.getLogger(__name__)

FIRST_WAIT_S: Final = 5.0
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 60.0
#: Never sooner, whatever the answer says.
RENEW_S_MIN: Final = 1.0
#: A token and what comes with it.
ANSWER_BYTES_MAX: Final = 64 * 1024
_TIMEOUTS: Final = Timeouts(connect_s=5.0, first_byte_s=10.0, idle_s=10.0, total_s=15.0)


class Renewal:
    """Of an adapter that comes and goes while the worker runs: with an account's own key."""

    __slots__ = ("_task", "adapter", "first", "name", "wanted")

    def __init__(self, name: str, adapter: Renewing) -> None:
        self.name = name
        self.adapter = adapter
        #: Set whenever it is used; what is not used until the next renewal is due is not renewed.
        self.wanted = False
        #: A first asking has ended, well or not.
        self.first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        return self._task is not None and not self._task.done()

    def begin(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    def stop(self) -> None:
        """It is not needed any more."""
        if self._task is not None:
            self._task.cancel()


class Renewals:
    """Keeps the credentials of some adapters good."""

    def __init__(
        self,
        client: UpstreamClient,
        *,
        clock: Clock,
        first_wait_s: float = FIRST_WAIT_S,
        renew_s_min: float = RENEW_S_MIN,
    ) -> None:
        self._client = client
        self._first_wait_s = first_wait_s
        self._renew_s_min = renew_s_min
        self._clock = clock
        self._tasks = TaskGroup()

    async def start(self, adapters: Iterable[tuple[str, object]]) -> None:
        """Begin to renew for those of the adapters that want it, each with its provider's name."""
        firsts: list[asyncio.Event] = []
        for name, adapter in adapters:
            if isinstance(adapter, Renewing):
                first = asyncio.Event()
                firsts.append(first)
                self._tasks.spawn(self._renew_forever(name, adapter, first), name=f"renew the credential of {name}")
        if not firsts:
            return
        try:
            async with asyncio.timeout(self._first_wait_s):
                for first in firsts:
                    await first.wait()
        except TimeoutError:
            log.warning("a provider's credential is not here yet; requests are taken without it")

    async def follow(self, renewals: Collection[Renewal]) -> None:
        """Renew for these for as long as they are used; waits, for a while, until each was asked for once."""
        for renewal in renewals:
            renewal.wanted = True
            if not renewal.runs:
                renewal.first.clear()
                task = self._tasks.spawn(
                    self._renew_forever(renewal.name, renewal.adapter, renewal.first, follows=renewal),
                    name=f"renew the credential of {renewal.name}",
                )
                renewal.begin(task)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._first_wait_s):
                for renewal in renewals:
                    await renewal.first.wait()

    async def renew_once(self, adapter: Renewing) -> None:
        """Ask for one credential now.

        Raises:
            GatewayError: there is none.
        """
        request = adapter.renewal(self._clock.now())
        if request is not None:
            await self._renew(adapter, request)

    async def stop(self) -> None:
        await self._tasks.close()

    async def _renew_forever(
        self, name: str, adapter: Renewing, first: asyncio.Event, *, follows: Renewal | None = None
    ) -> None:
        retry_s = RETRY_S
        while (request := adapter.renewal(self._clock.now())) is not None:
            if follows is not None:
                if not follows.wanted:
                    return
                follows.wanted = False
            try:
                pause_s = max(await self._renew(adapter, request), self._renew_s_min)
                retry_s = RETRY_S
            except GatewayError as error:
                # An account's own is its owner's trouble, not the operator's.
                level = logging.WARNING if follows is None else logging.INFO
                log.log(level, "provider %s has no new credential: %s", name, error.detail or error.message)
                pause_s, retry_s = retry_s, min(retry_s * 2, RETRY_S_MAX)
            # Also where it failed: waiting longer would not help the start.
            first.set()
            await asyncio.sleep(pause_s)
        first.set()

    async def _renew(self, adapter: Renewing, request: UpstreamRequest) -> float:
        response = await self._client.send(request, timeouts=_TIMEOUTS)
        try:
            body = await response.read(ANSWER_BYTES_MAX)
        finally:
            response.close()
        return adapter.renewed(response.head, body)
