"""Which server of a cluster has which slot, learned from the cluster and corrected by every redirect.

A redirect (`MOVED`) changes the one slot at once and asks for the whole map in the background; so does a node that
is lost. While a master is away its slots fail at once, and the map is asked for until somebody else has them. A slot
is handed to a server we did not know only once we are connected to it; until then the old one redirects. A server
without slots is let go after a while (it may be about to get its first ones), when its last reply is in.
"""

import asyncio
import binascii
import contextlib
import logging
from collections.abc import Callable, Iterator

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.redis.address import Address
from gateway.infra.redis.connection import Argument, Command, Connection
from gateway.infra.redis.dial import Dialer
from gateway.infra.redis.link import Link
from gateway.infra.tasks import TaskGroup

log = logging.getLogger(__name__)

SLOTS = 16384
#: Between two questions for the map, however many redirects ask for it.
REFRESH_S_MIN = 0.1
#: While some slots have no server.
REFRESH_S_DOWN = 0.5
#: While all is well, in case a redirect never comes by.
REFRESH_S_MAX = 30.0
#: How long a server without slots is kept.
LINGER_S = 60.0
#: Masters of one cluster; Redis itself advises no more than 1,000.
NODES_MAX = 1000

#: Where the key is, for the commands that do not have it in the second place.
_KEY_AFTER_COUNT = frozenset({b"EVALSHA", b"EVAL", b"FCALL", b"EVALSHA_RO", b"EVAL_RO", b"FCALL_RO"})
_KEY_IN_THIRD_PLACE = frozenset({b"XGROUP", b"XINFO", b"OBJECT", b"MEMORY"})
_KEY_AFTER_STREAMS = frozenset({b"XREAD", b"XREADGROUP"})
_NO_KEY = frozenset({
    b"ACL", b"CLIENT", b"CLUSTER", b"COMMAND", b"CONFIG", b"DBSIZE", b"ECHO", b"FUNCTION", b"INFO", b"LATENCY",
    b"PING", b"PUBLISH", b"ROLE", b"SCAN", b"SCRIPT", b"SLOWLOG", b"TIME", b"WAIT",
})  # fmt: skip


def slot_of(key: bytes) -> int:
    """The slot of a key: of what stands between its first `{` and the next `}`, where that is not nothing."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    # The CRC that Redis uses (polynomial 0x1021, from 0) is the one of binhex, which the standard library has in C.
    return binascii.crc_hqx(key, 0) % SLOTS


def key_of(command: Command) -> bytes | None:
    """The first key of a command; None where it has none and any server will do."""
    name = as_bytes(command[0]).upper()
    if name in _NO_KEY:
        return None
    place = 1
    if name in _KEY_AFTER_COUNT:
        if as_bytes(command[2]) == b"0":
            return None
        place = 3
    elif name in _KEY_IN_THIRD_PLACE:
        place = 2
    elif name in _KEY_AFTER_STREAMS:
        place = next(index for index, each in enumerate(command) if as_bytes(each).upper() == b"STREAMS") + 1
    return as_bytes(command[place]) if len(command) > place else None


def as_bytes(argument: Argument) -> bytes:
    """An argument as it is sent."""
    return argument if isinstance(argument, bytes) else str(argument).encode()


class Cluster:
    """The links to all masters. `on_connection` is told of every new connection to one of them."""

    def __init__(
        self, dialer: Dialer, *, tasks: TaskGroup, timeout_s: float, on_connection: Callable[[Connection], None]
    ) -> None:
        self._dialer = dialer
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._on_connection = on_connection
        self._slots: list[Link | None] = [None] * SLOTS
        self._links: dict[Address, Link] = {}
        #: When each server was last seen to have slots.
        self._seen_s: dict[Address, float] = {}
        self._masters: frozenset[Link] = frozenset()
        self._stale = asyncio.Event()

    async def start(self, connection: Connection) -> None:
        """Learn the map from `connection`, connect to all masters, and keep at it.

        Raises:
            StoreUnavailable: some slots have no server, or it can't be reached.
        """
        await self._learn(connection)
        if not self.connected:
            raise StoreUnavailable(detail="some slots of the cluster have no server that answers")
        self._tasks.spawn(self._refresh(), name="redis cluster map")

    @property
    def connected(self) -> bool:
        """Whether every slot has a server that is connected."""
        return None not in self._slots and all(link.connection is not None for link in self._masters)

    @property
    def addresses(self) -> list[Address]:
        """The servers known."""
        return list(self._links)

    def connections(self) -> Iterator[Connection]:
        """The open ones."""
        return (link.connection for link in self._links.values() if link.connection is not None)

    def route(self, command: Command) -> Connection:
        """The connection to the server that has the command's key.

        Raises:
            StoreUnavailable: that server is away.
        """
        key = key_of(command)
        if key is None:
            if (connection := next(self.connections(), None)) is None:
                raise StoreUnavailable(detail="no server of the cluster is connected")
            return connection
        slot = slot_of(key)
        link = self._slots[slot]
        if link is None or link.connection is None:
            self._stale.set()
            raise StoreUnavailable(detail=f"slot {slot}: {link.name if link else 'no server'} is not connected")
        return link.connection

    def moved(self, slot: int, address: Address) -> Link:
        """Take note that `address` has `slot` now; the link to it."""
        link = self.link(address)
        if link.connection is not None:
            self._slots[slot] = link
        self._stale.set()
        return link

    def link(self, address: Address) -> Link:
        """The link to `address`, made if there is none; it may not be connected yet.

        Raises:
            StoreUnavailable: there are too many servers.
        """
        link = self._links.get(address)
        if link is None:
            if len(self._links) >= NODES_MAX:
                raise StoreUnavailable(detail=f"more than {NODES_MAX} servers in the cluster")

            async def dial() -> Connection:
                return await self._dialer.open(address)

            link = self._links[address] = Link(str(address), dial, tasks=self._tasks, on_change=self._changed)
            link.start()
        return link

    def refresh(self) -> None:
        """Ask for the map soon."""
        self._stale.set()

    async def close(self, wait_s: float) -> None:
        """Close every link, once what was sent is answered or `wait_s` has passed."""
        await asyncio.gather(*(link.close(wait_s) for link in self._links.values()))

    def _changed(self, link: Link) -> None:
        if link.connection is not None:
            self._on_connection(link.connection)
        else:
            self._stale.set()

    async def _refresh(self) -> None:
        while True:
            if self.connected:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_S_MAX):
                        await self._stale.wait()
            self._stale.clear()
            await self._ask_anyone()
            await asyncio.sleep(REFRESH_S_MIN if self.connected else REFRESH_S_DOWN)

    async def _ask_anyone(self) -> None:
        for connection in list(self.connections()):
            try:
                await self._learn(connection)
                return
            except GatewayError as error:
                log.debug("cluster map not learned", extra={"server": connection.name, "reason": error.detail})
        try:
            connection = await self._dialer.dial_any(self.addresses)
        except StoreUnavailable:
            return
        try:
            await self._learn(connection)
        except GatewayError as error:
            log.debug("cluster map not learned", extra={"server": connection.name, "reason": error.detail})
        finally:
            connection.give_up("done")

    async def _learn(self, connection: Connection) -> None:
        """Take the map that the server behind `connection` has."""
        reply = await connection.ask("CLUSTER", "SLOTS")
        ranges = list(read_slots(reply, connection.name))
        known = set(self._links)
        links = {address: self.link(address) for _, _, address in ranges}
        new = [link for address, link in links.items() if address not in known]
        # One that does not come up is left to the next round; its slots fail until then.
        await asyncio.gather(*(link.wait_up(self._timeout_s) for link in new), return_exceptions=True)
        slots: list[Link | None] = [None] * SLOTS
        for first, last, address in ranges:
            slots[first : last + 1] = [links[address]] * (last + 1 - first)
        self._slots = slots
        self._masters = frozenset(links.values())
        now_s = asyncio.get_running_loop().time()
        self._seen_s |= dict.fromkeys(links, now_s)
        for address in [each for each in self._links if now_s - self._seen_s.setdefault(each, now_s) > LINGER_S]:
            del self._seen_s[address]
            self._tasks.spawn(self._links.pop(address).close(self._timeout_s), name=f"redis let go {address}")


def read_slots(reply: object, asked: str) -> Iterator[tuple[int, int, Address]]:
    """First slot, last slot and master of each range in the answer to `CLUSTER SLOTS`.

    `asked` is the name of the connection that answered: a node that does not know its own address means that one.

    Raises:
        StoreUnavailable: that is no such answer.
    """
    try:
        # Whatever is no list of ranges fails on the way and is told as such.
        for first, last, master, *_ in reply:  # type: ignore[attr-defined] # an object until proven otherwise
            host = (master[0] or b"").decode()
            if host in {"", "?"}:
                host = asked.rpartition(":")[0]
            yield int(first), int(last), Address(host, int(master[1]))
    except (TypeError, ValueError, IndexError, AttributeError):
        raise StoreUnavailable(detail=f"{asked}: not a cluster map: {reply!r}") from None
