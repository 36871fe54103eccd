"""Provider keys that accounts bring themselves, as the database has them: what each is, and how they get from one
master key to another.

Workers get those of an account together with its gateway keys (`keys.sql`), so they come to every worker, are kept
there and end there as these do, and no request waits for the database for them. What workers make of them is in
`gateway/keychains.py`; people change them in `control/accounts/provider_keys.py`.

Rules:
- `first`: asked before the operator's keys. `fallback`: after them. `only`: in their place, so that nothing is ever
  charged but the fee.
- Workers say which master keys they have; rows are moved to one that all of them have.
- A row says which master key it is encrypted under. Moving rows to the active one (`reseal_batch`) goes in batches,
  each a transaction; stopped half way, it goes on where it was, since what is done is told by the row itself. What
  workers know already they need not hear of anew: the key itself stays what it is.
"""

from collections.abc import Awaitable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

import msgspec

from gateway.infra.postgres import Database, load_queries
from gateway.kernel.vault import Owner, Sealed, Unreadable, Vault
from gateway.secret import Secret

#: When the key is used, beside the operator's.
Mode = Literal["first", "fallback", "only"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
#: Of what a provider takes for a key; the JSON of a service account is the longest.
TEXT_BYTES_MAX: Final = 16 * 1024
#: How fingerprints of such keys begin: none is ever taken for one of the operator's, be they the same text.
FINGERPRINT_PREFIX: Final = "own:"
BATCH_MAX: Final = 200
#: Before all others.
BEGINNING: Final = "00000000-0000-0000-0000-000000000000"

#: A hash in Redis: each worker, to when it last said so and which master keys it has.
MASTERS: Final = b"gateway:own-keys:masters"
#: How often a worker says so, after how long it is taken to be gone, and after how long it is forgotten.
ANNOUNCE_S: Final = 5.0
SILENT_S: Final = 30.0
FORGOTTEN_S: Final = 3600.0

queries: Final = load_queries(Path(__file__).with_name("own_keys.sql"))


class SealedKey(msgspec.Struct, frozen=True, kw_only=True):
    """One of them, as it is stored."""

    id: str
    provider: str
    mode: Mode
    fingerprint: str
    master_id: str
    nonce: bytes
    sealed: bytes

    def open(self, vault: Vault, account_id: int) -> Secret:
        """Its text.

        Raises:
            Unreadable
        """
        owner = Owner(account_id=account_id, id=self.id, provider=self.provider)
        sealed = Sealed(master_id=self.master_id, nonce=self.nonce, sealed=self.sealed)
        return vault.open(sealed, owner)


class Resealed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one batch."""

    #: How many are under the active master key now that were not.
    moved: int
    #: The ids of those that could not be opened, and so stay as they are.
    unreadable: tuple[str, ...]
    #: The last one looked at; empty where there was none left.
    last_id: str


def fingerprint_of(text: str, *, account_id: int) -> str:
    """The same for the same key of the same account, for ever; two accounts' say nothing about each other."""
    digest = blake2b(text.encode(), digest_size=8, key=b"%d" % account_id, person=b"own provider key")
    return FINGERPRINT_PREFIX + digest.hexdigest()


def is_own(fingerprint: str) -> bool:
    """Whether a fingerprint is that of an account's own key."""
    return fingerprint.startswith(FINGERPRINT_PREFIX)


async def find_own_key(
    database: Database, *, account_id: int, provider: str, fingerprint: str
) -> SealedKey | Literal["off"] | None:
    """The key that something at a provider was made with; "off" where it is switched off, None where it is gone.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    row = await database.fetch_row(queries["find_own_keys"], account_id, provider, fingerprint)
    if row is not None:
        return msgspec.convert(dict(row), SealedKey)
    there = await database.fetch_value(queries["has_own_key"], account_id, provider, fingerprint)
    return "off" if there else None


class Commands(Protocol):
    """The part of the Redis client that is needed here."""

    def execute(self, *command: bytes | str | int) -> Awaitable[object]: ...


async def announce_masters(redis: Commands, worker: str, vault: Vault, *, now_s: float) -> None:
    """Say which master keys this worker has, so that nothing is moved to one that it lacks.

    Raises:
        StoreUnavailable: nobody was told.
    """
    await redis.execute("HSET", MASTERS, worker, f"{int(now_s)} {' '.join(vault.names)}")


async def count_without_master(redis: Commands, master_id: str, *, now_s: float) -> int:
    """How many workers run that keep own keys and lack this master key.

    Raises:
        StoreUnavailable: nobody can tell.
    """
    reply: Any = await redis.execute("HGETALL", MASTERS)  # Any: names and values in turn
    lacking = 0
    for worker, said in zip(reply[::2], reply[1::2], strict=True):
        at, _, names = said.decode().partition(" ")
        age_s = now_s - float(at)
        if age_s > FORGOTTEN_S:
            await redis.execute("HDEL", MASTERS, worker)
        elif age_s <= SILENT_S:
            lacking += master_id not in names.split(" ")
    return lacking


async def count_by_master(database: Database) -> dict[str, int]:
    """How many keys are encrypted under which master key."""
    return {row["master_id"]: row["keys"] for row in await database.fetch(queries["count_by_master"])}


async def reseal_batch(database: Database, vault: Vault, *, after_id: str, limit: int = BATCH_MAX) -> Resealed:
    """Encrypt the next keys anew under the active master key, in one transaction."""
    moved = 0
    unreadable: list[str] = []
    last_id = ""
    async with database.transaction() as session:
        for row in await session.fetch(queries["lock_old"], vault.active, after_id, limit):
            last_id = row["id"]
            owner = Owner(account_id=row["account_id"], id=row["id"], provider=row["provider"])
            old = Sealed(master_id=row["master_id"], nonce=row["nonce"], sealed=row["sealed"])
            try:
                text = vault.open(old, owner)
            except Unreadable:
                unreadable.append(row["id"])
                continue
            new = vault.seal(text.reveal(), owner)
            await session.execute(queries["reseal"], row["id"], new.master_id, new.nonce, new.sealed)
            moved += 1
    return Resealed(moved=moved, unreadable=tuple(unreadable), last_id=last_id)
