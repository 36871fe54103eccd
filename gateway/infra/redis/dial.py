"""From a target to an open, greeted connection: the one place where what goes wrong with sockets is mapped.

A Sentinel is asked anew for every connection, because the answer changes exactly when connections break. What it
names must say itself that it is the master: right after a failover, some Sentinels still name the old one.
"""

import asyncio
import socket
from collections.abc import Iterable

from gateway.errors import GatewayError, StoreUnavailable
from gateway.infra.redis.address import Address, Login, Target
from gateway.infra.redis.connection import CommandRefused, Connection

CLIENT_NAME = "gateway"


class Dialer:
    """Opens connections to the servers of one target."""

    def __init__(self, target: Target, *, timeout_s: float, connect_timeout_s: float, pending_max: int) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._pending_max = pending_max
        #: Source by digest; every new connection loads them, so that a restarted server knows them at once.
        self.scripts: dict[str, bytes] = {}

    async def dial(self) -> Connection:
        """A connection to the server: the one there is, the master of the Sentinels, or any node of a cluster.

        Raises:
            StoreUnavailable: none could be had.
        """
        if self.target.mode == "sentinel":
            return await self.open(await self._find_master())
        return await self._first(self.target.addresses)

    async def dial_any(self, addresses: Iterable[Address]) -> Connection:
        """A connection to the first of `addresses` that answers, or else of the target's own.

        Raises:
            StoreUnavailable: none answered.
        """
        return await self._first(dict.fromkeys((*addresses, *self.target.addresses)))

    async def open(self, address: Address, *, sentinel: bool = False) -> Connection:
        """A greeted connection to `address`.

        Raises:
            StoreUnavailable: it can't be reached, does not answer, or does not want us.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._connect(address)
                await self._greet(connection, sentinel=sentinel)
        except TimeoutError:
            reason = f"{address}: no connection within {self._connect_timeout_s} s"
        except OSError as error:
            reason = f"{address}: {error}"
        except GatewayError as error:
            reason = error.detail or f"{address}: {error}"
        else:
            return connection
        finally:
            # Not opened, for whatever reason, cancellation too.
            if connection is not None and not connection.greeted:
                connection.give_up("not greeted")
        raise StoreUnavailable(detail=reason)

    async def _first(self, addresses: Iterable[Address]) -> Connection:
        reasons = []
        for address in addresses:
            try:
                return await self.open(address)
            except StoreUnavailable as error:
                reasons.append(error.detail or "")
        raise StoreUnavailable(detail="; ".join(reasons))

    async def _connect(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(str(address), timeout_s=self._timeout_s, pending_max=self._pending_max)

        if address.path:
            _, connection = await loop.create_unix_connection(make, address.path)
            return connection
        transport, connection = await loop.create_connection(
            make,
            address.host,
            address.port,
            ssl=self.target.tls,
            server_hostname=address.host if self.target.tls else None,
        )
        if (raw := transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    async def _greet(self, connection: Connection, *, sentinel: bool) -> None:
        """Log in, choose the database, load the scripts; all in one round trip."""
        target = self.target
        replies = []
        if login := _auth(target.sentinel_login if sentinel else target.login):
            replies.append(connection.ask(*login))
        if not sentinel:
            if target.database:
                replies.append(connection.ask("SELECT", target.database))
            replies += [connection.ask("SCRIPT", "LOAD", source) for source in self.scripts.values()]
            connection.tell("CLIENT", "SETNAME", CLIENT_NAME)
            if target.mode == "sentinel":
                replies.append(connection.ask("ROLE"))
        # Nothing to say is no proof that somebody listens.
        replies.append(connection.ask("PING"))
        # All of them, so that none fails unseen; the first failure is what is told.
        answers = await asyncio.gather(*replies, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if not sentinel and target.mode == "sentinel":
            role = answers[-2]
            if not isinstance(role, list) or role[0] != b"master":
                raise StoreUnavailable(detail=f"{connection.name}: not the master that the Sentinels said it is")
        connection.greeted = True

    async def _find_master(self) -> Address:
        target = self.target
        reasons = []
        for address in target.addresses:
            try:
                sentinel = await self.open(address, sentinel=True)
            except StoreUnavailable as error:
                reasons.append(error.detail or "")
                continue
            try:
                answer = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.master)
            except (StoreUnavailable, CommandRefused) as error:
                reasons.append(error.detail or "")
                continue
            finally:
                sentinel.give_up("done")
            if isinstance(answer, list):
                return Address(answer[0].decode(), int(answer[1]))
            reasons.append(f"{address}: no master called {target.master!r}")
        raise StoreUnavailable(detail="; ".join(reasons))


def _auth(login: Login) -> tuple[str, ...]:
    if login.password is None:
        return ()
    return ("AUTH", *([login.username] if login.username else []), login.password.reveal())
