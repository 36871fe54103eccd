"""`gateway byok status|rotate`: under which master key accounts' own provider keys are encrypted."""

import argparse
import sys

from gateway.cli.connecting import with_database
from gateway.cli.loading import load_config
from gateway.cli.table import Colour, Printer
from gateway.errors import ConfigError, StoreUnavailable
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.own_keys import BEGINNING, count_by_master, count_without_master, reseal_batch
from gateway.kernel.vault import Vault
from gateway.settings import Settings

REDIS_TIMEOUT_S = 5.0
#: A batch is a transaction of some hundred rows.
DATABASE_TIMEOUT_S = 30.0
SHOWN_MAX = 20


def run(arguments: argparse.Namespace) -> int:
    """Do what `action` says.

    Raises:
        GatewayError: it could not be done.
    """
    settings = load_config(arguments).settings
    return {"status": _status, "rotate": _rotate}[arguments.action](arguments, settings)


def _status(arguments: argparse.Namespace, settings: Settings) -> int:
    vault = Vault.of(settings.own_keys)
    counts = with_database(settings, lambda database, _: count_by_master(database))
    out = Printer(sys.stdout)
    if not vault.is_open:
        out.line("accounts can't bring keys of their own: there is no master key in [own_keys.masters]")
    names = sorted({*settings.own_keys.masters, *counts})
    rows = [(name, _state(vault, name), str(counts.get(name, 0))) for name in names]
    if rows:
        colours = [Colour.GREEN if vault.knows(name) else Colour.RED for name in names]
        out.table(("MASTER KEY", "STATE", "KEYS"), rows, colours=colours)
    return 1 if any(count and not vault.knows(name) for name, count in counts.items()) else 0


def _state(vault: Vault, name: str) -> str:
    if name == vault.active:
        return "encrypts"
    return "decrypts" if vault.knows(name) else "missing: these keys can't be used"


def _rotate(arguments: argparse.Namespace, settings: Settings) -> int:
    vault = Vault.of(settings.own_keys)
    if not vault.is_open:
        raise ConfigError("there is no master key to encrypt under; see [own_keys.masters] in config/gateway.toml")

    async def rotate(database: Database, stores: Stores) -> tuple[int, list[str], int]:
        if not arguments.force:
            await _check_workers(stores, vault.active)
        counts = await count_by_master(database)
        total = sum(count for name, count in counts.items() if name != vault.active)
        moved, unreadable, after_id = 0, list[str](), BEGINNING
        while (batch := await reseal_batch(database, vault, after_id=after_id, limit=arguments.batch)).last_id:
            moved += batch.moved
            unreadable += batch.unreadable
            after_id = batch.last_id
            print(f"{moved} of {total} keys encrypted under {vault.active}", file=sys.stderr, flush=True)
        left = sum(count for name, count in (await count_by_master(database)).items() if name != vault.active)
        return moved, unreadable, left

    moved, unreadable, left = with_database(settings, rotate, timeout_s=DATABASE_TIMEOUT_S)
    out = Printer(sys.stdout)
    if unreadable:
        shown = ", ".join(unreadable[:SHOWN_MAX])
        out.line(f"{len(unreadable)} keys can't be decrypted and stay as they are: {shown}")
    if left > len(unreadable):
        # Somebody changed them in that moment, or added one with the old configuration.
        out.line(f"{left - len(unreadable)} keys are left; run it again")
    out.line(f"{moved} keys are encrypted under {vault.active} now" + ("" if left else ", as are all others"))
    return 1 if left else 0


async def _check_workers(stores: Stores, master_id: str) -> None:
    """Refuse to move keys to a master key that a running gateway lacks: it could not use them.

    Raises:
        ConfigError: one lacks it, or nobody can tell.
    """
    redis = Redis(stores.redis_url, timeout_s=REDIS_TIMEOUT_S)
    try:
        await redis.connect()
        lacking = await count_without_master(redis, master_id, now_s=SystemClock().now())
    except StoreUnavailable as error:
        raise ConfigError(
            f"Redis does not answer, so that nobody can tell whether all gateways have {master_id}; "
            "`--force` if you know that they do"
        ) from error
    finally:
        await redis.close()
    if lacking:
        raise ConfigError(
            f"{lacking} running workers do not have the master key {master_id}, and could not use what is encrypted "
            "under it; add it to their configuration and reload them first"
        )
