"""Own keys in the database: moved to another master key in batches, from where they were left, and never half."""

import asyncio
import uuid

import pytest

from gateway.infra.postgres import Database
from gateway.kernel.own_keys import (
    BEGINNING,
    SealedKey,
    count_by_master,
    find_own_key,
    fingerprint_of,
    is_own,
    reseal_batch,
)
from gateway.kernel.vault import Owner, Vault

OLD = Vault({"k1": b"\1" * 32}, active="k1")
BOTH = Vault({"k1": b"\1" * 32, "k2": b"\2" * 32}, active="k2")
NEW = Vault({"k2": b"\2" * 32}, active="k2")


@pytest.fixture
async def opened(database):
    async with Database(database, pool_size=3, timeout_s=20) as opened:
        await opened.execute("insert into accounts (id, name) overriding system value values (7, 'seven')")
        yield opened


async def put(database: Database, text: str, *, vault: Vault = OLD, account_id: int = 7, enabled: bool = True) -> str:
    key_id = str(uuid.uuid4())
    sealed = vault.seal(text, Owner(account_id=account_id, id=key_id, provider="openai"))
    await database.execute(
        "insert into provider_keys (id, account_id, provider, name, mode, enabled, last_four, fingerprint, master_id, "
        "nonce, sealed) values ($1::text::uuid, $2, 'openai', 'a key', 'first', $3, '1234', $4, $5, $6, $7)",
        key_id,
        account_id,
        enabled,
        fingerprint_of(text, account_id=account_id),
        sealed.master_id,
        sealed.nonce,
        sealed.sealed,
    )
    return key_id


async def read_all(database: Database, vault: Vault) -> set[str]:
    rows = await database.fetch(
        "select id::text, provider, mode, fingerprint, master_id, nonce, sealed from provider_keys where account_id = 7"
    )
    return {SealedKey(**dict(row)).open(vault, 7).reveal() for row in rows}


async def test_a_rotation_that_was_stopped_half_way_goes_on_where_it_was(opened):
    texts = {f"sk-{number}" for number in range(10)}
    for text in texts:
        await put(opened, text)

    first = await reseal_batch(opened, BOTH, after_id=BEGINNING, limit=4)
    # Killed here: another process knows nothing of how far this one was.
    assert first.moved == 4
    assert await count_by_master(opened) == {"k1": 6, "k2": 4}
    assert await read_all(opened, BOTH) == texts

    moved, after_id = 0, BEGINNING
    while (batch := await reseal_batch(opened, BOTH, after_id=after_id, limit=4)).last_id:
        moved, after_id = moved + batch.moved, batch.last_id

    assert moved == 6
    assert await read_all(opened, NEW) == texts


async def test_a_batch_that_is_cancelled_in_its_middle_changes_nothing(opened):
    await put(opened, "sk-1")
    await put(opened, "sk-2")
    reached = asyncio.Event()

    class Stuck(Vault):
        """Seals one, and is stopped before the next."""

        def seal(self, text, owner):
            if reached.is_set():
                raise asyncio.CancelledError
            reached.set()
            return super().seal(text, owner)

    stuck = Stuck({"k1": b"\1" * 32, "k2": b"\2" * 32}, active="k2")
    with pytest.raises(asyncio.CancelledError):
        await reseal_batch(opened, stuck, after_id=BEGINNING)

    assert await count_by_master(opened) == {"k1": 2}
    assert await read_all(opened, OLD) == {"sk-1", "sk-2"}


async def test_two_rotations_at_once_move_every_key_once(opened):
    for number in range(20):
        await put(opened, f"sk-{number}")

    async def rotate() -> int:
        moved, after_id = 0, BEGINNING
        while (batch := await reseal_batch(opened, BOTH, after_id=after_id, limit=3)).last_id:
            moved, after_id = moved + batch.moved, batch.last_id
        return moved

    moved = sum(await asyncio.gather(rotate(), rotate())) + await rotate()

    assert moved == 20
    assert await count_by_master(opened) == {"k2": 20}
    assert len(await read_all(opened, NEW)) == 20


async def test_what_can_not_be_opened_is_named_and_holds_up_nothing(opened):
    lost = await put(opened, "sk-lost", vault=Vault({"k0": b"\0" * 32}, active="k0"))
    await put(opened, "sk-1")

    batch = await reseal_batch(opened, BOTH, after_id=BEGINNING)

    assert (batch.moved, batch.unreadable) == (1, (lost,))
    assert await count_by_master(opened) == {"k0": 1, "k2": 1}


async def test_what_was_made_with_a_key_finds_it_while_it_is_there_and_on(opened):
    await put(opened, "sk-1")
    await put(opened, "sk-2", enabled=False)

    async def find(text: str, account_id: int = 7):
        fingerprint = fingerprint_of(text, account_id=account_id)
        return await find_own_key(opened, account_id=account_id, provider="openai", fingerprint=fingerprint)

    found = await find("sk-1")
    assert isinstance(found, SealedKey)
    assert found.open(OLD, 7).reveal() == "sk-1"
    assert await find("sk-2") == "off"
    assert await find("sk-3") is None
    assert await find("sk-1", account_id=8) is None


def test_fingerprints_of_two_accounts_say_nothing_about_each_other():
    assert is_own(fingerprint_of("sk-1", account_id=7))
    assert fingerprint_of("sk-1", account_id=7) == fingerprint_of("sk-1", account_id=7)
    assert fingerprint_of("sk-1", account_id=7) != fingerprint_of("sk-1", account_id=8)
