"""`gateway keys create|list|revoke`: the keys that applications call the gateway with."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Self, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.cli.loading import load_config
from gateway.cli.migrate import require_migrated
from gateway.cli.table import Colour, Printer
from gateway.errors import ConfigError
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores, open_stores
from gateway.infra.postgres import Database
from gateway.kernel.key_store import create_key, list_keys, load_pepper, revoke_key
from gateway.kernel.keys import KeySummary
from gateway.settings import Settings

T = TypeVar("T")


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    actions: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
    }
    return actions[arguments.action](arguments, settings)


def _create(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.credits is not None:
        raise ConfigError("--credits: this release keeps no credit yet; create the key without it")
    name = arguments.name.strip()
    if not 1 <= len(name) <= 200:
        raise ConfigError("--name: a name has 1 to 200 characters")
    pepper = load_pepper(settings)
    key = _with_database(settings, lambda database, _: create_key(database, name=name, pepper=pepper))
    out = Printer(sys.stdout)
    out.line(key.text)
    if not arguments.quiet:
        hint = Printer(sys.stderr)
        hint.line(f"This is the only time the key is shown. Its id is {key.id}.")
    return 0


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    keys = _with_database(settings, lambda database, _: list_keys(database))
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(keys), indent=2).decode() + "\n")
        return 0
    out = Printer(sys.stdout)
    if not keys:
        out.line("there are no keys; make one with `gateway keys create --name NAME`")
        return 0
    now = datetime.fromtimestamp(SystemClock().now()).astimezone()
    states = [_state(key, now) for key in keys]
    rows = [
        (state, key.id, key.name, str(key.account_id), key.environment, f"...{key.last_four}", _date(key.created_at))
        for key, state in zip(keys, states, strict=True)
    ]
    colours = [Colour.GREEN if state == "active" else Colour.DIM for state in states]
    out.table(("STATE", "ID", "NAME", "ACCOUNT", "ENVIRONMENT", "ENDS IN", "CREATED"), rows, colours=colours)
    return 0


def _revoke(arguments: argparse.Namespace, settings: Settings) -> int:
    async def revoke(database: Database, stores: Stores) -> tuple[list[str], bool]:
        async with _Notices(stores.redis_url) as notices:
            return await revoke_key(database, notices, id_or_name=arguments.key), notices.lost

    revoked, lost = _with_database(settings, revoke)
    if not revoked:
        raise ConfigError("no living key has that id or name; `gateway keys list` shows them all")
    for key_id in revoked:
        print(f"revoked {key_id}")
    if lost:
        wait_s = settings.auth.cache_s
        print(f"gateway: Redis does not answer: running gateways may take {wait_s:g} s to notice", file=sys.stderr)
        return 1
    return 0


class _Notices:
    """Tells running gateways. What could not be told is remembered in `lost`: by then the key is revoked."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self.lost = False

    async def publish(self, channel: bytes, message: bytes) -> None:
        try:
            await self._client.publish(channel, message)
        except (RedisError, OSError):
            self.lost = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def _with_database(settings: Settings, work: Callable[[Database, Stores], Awaitable[T]]) -> T:
    """Run `work` on a database that is up to date, whoever's it is."""

    async def connected(stores: Stores) -> T:
        await require_migrated(settings, stores.database_dsn)
        async with Database(stores.database_dsn, pool_size=1, timeout_s=10.0, application="gateway keys") as database:
            return await work(database, stores)

    with open_stores(settings) as stores:
        return asyncio.run(connected(stores))


def _state(key: KeySummary, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def _date(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M")
