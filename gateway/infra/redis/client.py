"""`Redis`: what the rest of the gateway talks to, whatever stands behind the URL.

It sends each command to the connection that has its key, and decides what becomes of a refusal: a script the server
has forgotten is loaded and called again, a key that has moved is followed, a master that became a replica is left.
Everything else is the caller's, as `CommandRefused` or `StoreUnavailable`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.redis.address import Address, parse
from gateway.infra.redis.cluster import Cluster
from gateway.infra.redis.connection import PENDING_MAX, Argument, Command, Connection, Entry, fail_refused
from gateway.infra.redis.dial import Dialer
from gateway.infra.redis.link import Link
from gateway.infra.redis.subscription import Subscription
from gateway.infra.tasks import TaskGroup

CONNECT_TIMEOUT_S = 2.0
#: How often one command is sent on or again before it fails: a few redirects, or a slot that is just being moved.
HOPS_MAX = 8
#: Before a command that needs two keys of a slot in motion is tried again.
TRY_AGAIN_S = 0.02


class Redis:
    """One connection to each server, for everyone in this loop.

    `timeout_s` is how long a server may be silent before its connection is given up.

    Raises:
        ConfigError: the URL can't be read; see `address` for its forms.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        pending_max: int = PENDING_MAX,
    ) -> None:
        self._timeout_s = timeout_s
        self._dialer = Dialer(
            parse(url), timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, pending_max=pending_max
        )
        self._tasks = TaskGroup()
        self._link: Link | None = None
        self._cluster: Cluster | None = None
        self._subscriptions: list[Subscription] = []
        #: The connection of every command; None in a cluster, and while the server is away.
        self._connection: Connection | None = None
        self._create_future: Callable[[], asyncio.Future[object]] = _not_connected

    @property
    def connected(self) -> bool:
        """Whether commands can be sent now; in a cluster, to every slot."""
        return self._connection is not None or (self._cluster is not None and self._cluster.connected)

    async def connect(self) -> None:
        """Make the first connection; from then on it comes back by itself.

        Raises:
            StoreUnavailable: it could not be made. May be called again.
        """
        self._create_future = asyncio.get_running_loop().create_future
        if self._dialer.target.mode == "cluster":
            await self._connect_cluster(await self._dialer.dial())
            return
        link = Link(
            str(self._dialer.target.addresses[0]), self._dialer.dial, tasks=self._tasks, on_change=self._changed
        )
        await link.open()
        self._link = link
        connection = link.connection
        if connection is not None and self._dialer.target.mode == "single" and await _is_cluster(connection):
            await link.close(0)
            self._link = None
            await self._connect_cluster(await self._dialer.dial())

    def execute(self, *command: Argument) -> "asyncio.Future[object]":
        """Send a command. Awaiting the future gives the reply: bytes, int, None or a list of these.

        A command to an unconnected server raises here and now; what goes wrong later comes out of the future, which
        must therefore be awaited.

        Raises:
            StoreUnavailable: the server is away, was lost or timed out on the way, or can't take commands. Whether
                the command was executed is unknown.
            CommandRefused: the server answered with an error.
        """
        connection = self._connection
        if connection is None:
            connection = self._route(command)
        future = self._create_future()
        connection.send(future, command)
        return future

    def script(self, source: bytes) -> "Script":
        """A Lua script, called by its digest; every connection loads it when it is made."""
        script = Script(self, source)
        self._dialer.scripts[script.digest] = source
        return script

    def subscribe(self, *channels: bytes) -> Subscription:
        """Listen to `channels`, on a connection of its own, until it is closed.

        The iterator gives None at every moment before which messages may have been missed: when listening begins,
        when it begins again after the connection was lost, and when messages came faster than they were taken.
        """

        async def dial() -> Connection:
            if self._cluster is not None:
                return await self._dialer.dial_any(self._cluster.addresses)
            return await self._dialer.dial()

        subscription = Subscription(channels, dial, tasks=self._tasks)
        self._subscriptions = [each for each in self._subscriptions if not each.closed]
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Wait for the replies to what was sent, at most `timeout_s`, and close everything."""
        for subscription in self._subscriptions:
            subscription.close()
        if self._link is not None:
            await self._link.close(self._timeout_s)
        if self._cluster is not None:
            await self._cluster.close(self._timeout_s)
        await self._tasks.close()

    # -- where to ----------------------------------------------------------------------------------------------

    async def _connect_cluster(self, connection: Connection) -> None:
        cluster = Cluster(
            self._dialer, tasks=self._tasks, timeout_s=self._timeout_s, on_connection=self._take_refusals
        )
        try:
            await cluster.start(connection)
        except GatewayError as error:
            await cluster.close(0)
            raise StoreUnavailable(detail=error.detail) from error
        finally:
            connection.give_up("done")
        self._cluster = cluster

    def _route(self, command: Command) -> Connection:
        if self._cluster is None:
            raise StoreUnavailable(detail="not connected")
        return self._cluster.route(command)

    def _changed(self, link: Link) -> None:
        self._connection = link.connection
        if link.connection is not None:
            self._take_refusals(link.connection)

    def _take_refusals(self, connection: Connection) -> None:
        connection.on_refusal = self._refused

    # -- refusals ----------------------------------------------------------------------------------------------

    def _refused(self, connection: Connection, entry: Entry, said: str) -> None:
        future, command, hops = entry
        prefix = said.partition(" ")[0]
        if prefix == "READONLY" and self._cluster is None:
            # It was the master once. Whoever is now will be found by dialling again.
            fail_refused(connection, entry, said)
            connection.give_up("became a replica")
            return
        if future.done():
            return
        if hops >= HOPS_MAX:
            fail_refused(connection, entry, said)
            return
        try:
            if prefix == "NOSCRIPT" and command[1] in self._dialer.scripts:
                self._reload(connection, entry)
            elif self._cluster is not None and prefix in {"MOVED", "ASK"}:
                self._follow(self._cluster, connection, entry, said)
            elif self._cluster is not None and prefix == "TRYAGAIN":
                asyncio.get_running_loop().call_later(TRY_AGAIN_S, self._send_again, entry)
            else:
                if self._cluster is not None and prefix in {"CLUSTERDOWN", "READONLY"}:
                    self._cluster.refresh()
                fail_refused(connection, entry, said)
        except GatewayError as error:
            future.set_exception(error)

    def _reload(self, connection: Connection, entry: Entry) -> None:
        """Load the script and call it again. Replies come in order, so one load answers every call behind it."""
        future, command, hops = entry
        digest = command[1]
        if digest not in connection.loading:
            connection.loading.add(digest)
            loaded = connection.ask("SCRIPT", "LOAD", self._dialer.scripts[str(digest)])
            loaded.add_done_callback(lambda done: _loaded(connection, digest, done))
        connection.send(future, command, hops + 1)

    def _follow(self, cluster: Cluster, connection: Connection, entry: Entry, said: str) -> None:
        """Send a command on to the server that the redirect names: `MOVED 3999 127.0.0.1:6381`."""
        future, command, hops = entry
        prefix, slot, where = said.split(" ")[:3]
        host, _, port = where.rpartition(":")
        address = Address(host or connection.name.rpartition(":")[0], int(port))
        asking = prefix == "ASK"
        link = cluster.link(address) if asking else cluster.moved(int(slot), address)
        entry = (future, command, hops + 1)
        if link.connection is not None:
            _send_on(link.connection, entry, asking=asking)
        else:
            self._tasks.spawn(self._send_later(link, entry, asking=asking), name=f"redis redirect to {address}")

    async def _send_later(self, link: Link, entry: Entry, *, asking: bool) -> None:
        try:
            _send_on(await link.wait_up(self._timeout_s), entry, asking=asking)
        except GatewayError as error:
            if not entry[0].done():
                entry[0].set_exception(error)

    def _send_again(self, entry: Entry) -> None:
        future, command, hops = entry
        if future.done():
            return
        try:
            self._route(command).send(future, command, hops + 1)
        except GatewayError as error:
            future.set_exception(error)


class Script:
    """A Lua script. Call it with its keys and arguments; in a cluster, all keys must be of one slot."""

    __slots__ = ("_execute", "digest")

    def __init__(self, redis: Redis, source: bytes) -> None:
        # Not for secrecy: it is how the protocol names scripts.
        self.digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        self._execute = redis.execute

    def __call__(self, keys: Sequence[bytes], args: Sequence[Argument]) -> "asyncio.Future[object]":
        """Run the script; see `Redis.execute` for what comes of it."""
        return self._execute("EVALSHA", self.digest, len(keys), *keys, *args)


async def subscribe(url: str, channel: bytes, *, timeout_s: float = 1.0) -> AsyncIterator[bytes | None]:
    """What is published on `channel`, for one who has no other use for Redis; see `Redis.subscribe` for the Nones."""
    redis = Redis(url, timeout_s=timeout_s)
    try:
        async for message in redis.subscribe(channel):
            yield None if message is None else message.data
    finally:
        await redis.close()


def _send_on(connection: Connection, entry: Entry, *, asking: bool) -> None:
    if asking:
        connection.tell("ASKING")
    connection.send(*entry)


def _loaded(connection: Connection, digest: Argument, done: "asyncio.Future[object]") -> None:
    connection.loading.discard(digest)
    # Looked at, so that it does not count as unseen; the call behind it fails for the same reason.
    if not done.cancelled():
        done.exception()


async def _is_cluster(connection: Connection) -> bool:
    try:
        info = await connection.ask("INFO", "cluster")
    except GatewayError:
        # Forbidden, as some hosted servers do: then it is what the URL says.
        return False
    return isinstance(info, bytes) and b"cluster_enabled:1" in info


def _not_connected() -> "asyncio.Future[object]":
    raise StoreUnavailable(detail="not connected yet")
