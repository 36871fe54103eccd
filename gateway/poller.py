"""Asks providers whether work that is still to be charged is done, so that it is charged although nobody else asks.

Rules:
- Whose turn it is stands in PostgreSQL: any number of pollers share the work, and a claim is a lease by itself, since
  each makes the next one later, up to a bound.
- What the provider says is charged by `kernel/charging.py`, once. An answer that can't be had is no news: the next
  turn will tell.
- A provider that does not sum up what a batch used is read line by line. Answers that can't be read are no reason to
  give them away: they are read at the next turn.
- What an account's own key does is asked for with that key. Once it is deleted nobody can ask: the hold is let go.
- What a provider denies to know, several times in a row, and what is not done for a month, is given up and logged:
  its cost will never be known.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

from gateway.api import Renewing
from gateway.errors import BadRequest, OwnKeyGone, StoreUnavailable, UpstreamError
from gateway.infra.clock import Clock
from gateway.inquiry import ask_provider
from gateway.kernel.charging import Charging, read_output
from gateway.kernel.objects import PURGE_MAX, Due
from gateway.kernel.own_keys import is_own
from gateway.registry import Provider
from gateway.settings import Batches
from gateway.upstream.client import UpstreamClient
from gateway.upstream.renewal import Renewals
from gateway.upstream.response import UpstreamResponse
from gateway.wire.objects import ENDED, BatchOutput, Document, read_document
from gateway.wire.usage import Usage

log = logging.getLogger(__name__)

#: Asked in one round, and of these at once.
ROUND_MAX: Final = 20
AT_ONCE_MAX: Final = 4
#: Between two rounds: while there is work, and while there is none.
BUSY_S: Final = 0.2
IDLE_S: Final = 5.0
#: After a failure of a store, doubled for each that follows.
FAILED_S_MAX: Final = 30.0
PURGE_EVERY_S: Final = 600.0
#: A provider that denies an object, or says nothing of its usage, so often in a row is believed.
DENIALS_MAX: Final = 3
#: Objects whose denials are counted at a time; whatever was forgotten is counted anew.
DENIED_MAX: Final = 10_000
GIVE_UP_S: Final = 30 * 86400.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_BYTES_PER_TOKEN: Final = 4
#: With these it has done something, and may say later how much.
_WORKED: Final = {
    "batch": ENDED - {"failed"},
    "response": frozenset({"completed", "incomplete"}),
}
#: The provider knows no such thing.
_GONE: Final = frozenset({404, 410})

_PATHS: Final = {"batch": b"/batches/", "response": b"/responses/"}


#: An account, a provider and a fingerprint to the provider with that key: see `keychains.find_own`.
FindOwn = Callable[[int, str, str], Awaitable[Provider | Literal["off"] | None]]


class Poller:
    """Spawn `poll_forever`, or call `poll_once`."""

    def __init__(
        self,
        charging: Charging,
        *,
        providers: Mapping[str, Provider],
        client: UpstreamClient,
        clock: Clock,
        settings: Batches,
        find_own: FindOwn,
        renewals: Renewals,
    ) -> None:
        self._find_own = find_own
        self._renewals = renewals
        self._charging = charging
        self._providers = providers
        self._client = client
        self._clock = clock
        self._settings = settings
        self._permits = asyncio.Semaphore(AT_ONCE_MAX)
        self._purge_at_s = 0.0
        #: By object, how often in a row this process was denied it, least recently first.
        self._denials: OrderedDict[str, int] = OrderedDict()

    async def poll_forever(self) -> None:
        failed_s = 0.0
        while True:
            try:
                wait_s = BUSY_S if await self.poll_once() >= ROUND_MAX else IDLE_S
                await self._purge()
                failed_s = 0.0
            except StoreUnavailable as error:
                wait_s = failed_s = min(FAILED_S_MAX, max(1.0, failed_s * 2))
                log.warning("polling waits for a store: %s", error.detail)
            await asyncio.sleep(wait_s)

    async def poll_once(self) -> int:
        """Ask about what is due, `ROUND_MAX` at most; how many.

        Raises:
            StoreUnavailable: PostgreSQL can't say what is due.
        """
        settings = self._settings
        due = await self._charging.deferred.claim(ROUND_MAX, first_s=settings.poll_s, most_s=settings.poll_most_s)
        await asyncio.gather(*(self._look(each) for each in due))
        return len(due)

    async def _purge(self) -> None:
        now_s = self._clock.monotonic()
        if now_s >= self._purge_at_s:
            full = await self._charging.deferred.purge() >= PURGE_MAX
            self._purge_at_s = now_s + (0.0 if full else PURGE_EVERY_S)

    async def _look(self, due: Due) -> None:
        """Whatever goes wrong with one is no reason to leave out the others."""
        async with self._permits:
            try:
                await self._ask(due)
            except (UpstreamError, StoreUnavailable) as error:
                log.info("%s %s: %s", due.kind, due.id, error.detail or error.message)
            except Exception:  # a border: the next turn of this one comes anyway
                log.exception("%s %s can't be looked at", due.kind, due.id)

    async def _ask(self, due: Due) -> None:
        if self._clock.now() - due.created_s > GIVE_UP_S:
            await self._charging.give_up(due.id)
            return
        try:
            response = await self._send(due, _PATHS[due.kind] + due.id.encode())
        except OwnKeyGone:
            await self._charging.give_up(due.id)
            return
        if response is None:
            log.warning("%s %s: its provider %s is not configured any more", due.kind, due.id, due.provider)
            return
        try:
            status = response.head.status
            body = await response.read(ANSWER_BYTES_MAX)
        finally:
            response.close()
        if status in _GONE:
            if self._is_denied(due):
                await self._charging.give_up(due.id)
            return
        document = read_document(body) if status == 200 else None
        if document is None or document.id != due.id:
            log.info("%s %s: its provider answered %d", due.kind, due.id, status)
        elif not document.ended:
            self._denials.pop(due.id, None)
            await self._charging.extend(due)
        else:
            await self._end(due, document, body)

    async def _end(self, due: Due, document: Document, body: bytes) -> None:
        usage = document.counted()
        if usage is None and document.output_file_id:
            lines = await self._read_lines(due, document.output_file_id)
            if lines is None:
                return
            usage = lines.usage()
        if usage is None and document.status in _WORKED[due.kind]:
            if not self._is_denied(due):
                # Some fill in the numbers after the status.
                return
            if due.kind == "response":
                usage = Usage(output_tokens=len(body) // _BYTES_PER_TOKEN, source="estimated")
        await self._charging.end(due.id, usage)

    def _is_denied(self, due: Due) -> bool:
        """Count a denial; whether there were so many in a row that it is to be believed."""
        count = self._denials.pop(due.id, 0) + 1
        if count >= DENIALS_MAX:
            return True
        self._denials[due.id] = count
        if len(self._denials) > DENIED_MAX:
            self._denials.popitem(last=False)
        return False

    async def _read_lines(self, due: Due, file_id: str) -> BatchOutput | None:
        """What the answers of a batch report, one by one; None where they can't be read, now or ever."""
        response = await self._send(due, b"/files/" + file_id.encode() + b"/content")
        if response is None:
            return None
        try:
            status = response.head.status
            if status != 200:
                log.info("%s %s: its answers can't be read, its provider answers %d", due.kind, due.id, status)
                if status in _GONE and self._is_denied(due):
                    await self._charging.give_up(due.id)
                return None
            lines = await read_output(response)
        except BadRequest as error:
            log.warning("%s %s: its output can't be read: %s", due.kind, due.id, error.message)
            return BatchOutput()
        finally:
            response.close()
        if lines.silent:
            log.warning("%s %s: %d of its answers report no usage", due.kind, due.id, lines.silent)
        return lines

    async def _send(self, due: Due, path: bytes) -> UpstreamResponse | None:
        """Ask where the object lives; None where that is not configured any more.

        Raises:
            OwnKeyGone: it was made with an account's own key that is gone for good.
        """
        provider = self._providers.get(due.provider)
        if provider is not None and is_own(due.fingerprint):
            provider = await self._open_own(due)
        if provider is None or due.fingerprint not in provider.fingerprints:
            return None
        key = provider.fingerprints.index(due.fingerprint)
        return await ask_provider(self._client, provider, path, key=key, request_id=due.charge_id)

    async def _open_own(self, due: Due) -> Provider | None:
        """The provider with the account's own key; None while that can't be used."""
        found = await self._find_own(due.account_id, due.provider, due.fingerprint)
        if found is None:
            raise OwnKeyGone
        if found == "off":
            return None
        if isinstance(found.adapter, Renewing):
            await self._renewals.renew_once(found.adapter)
        return found
