"""The KeyRing's rules, with the database and the clock passed in."""

import asyncio

import pytest

from gateway.errors import StoreUnavailable, Unauthenticated
from gateway.kernel.keys import (
    RETRY_S,
    UNKNOWN_S,
    KeyRecord,
    KeyRing,
    NewKey,
    digest,
    mint,
    public_id,
)
from gateway.settings import Auth

PEPPER = b"pepper-of-the-tests"


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at + 1_700_000_000

    def monotonic(self) -> float:
        return self.at


class Table:
    """A database with a few keys in it, which counts how often it was asked and may be away."""

    def __init__(self) -> None:
        self.rows: dict[str, KeyRecord] = {}
        self.asked = 0
        self.away = False
        self.gate: asyncio.Event | None = None

    def add(self, key: NewKey, **changes: object) -> None:
        facts = {"id": key.id, "account_id": 7, "environment": "live", "digest": key.digest} | changes
        self.rows[key.id] = KeyRecord(**facts)  # type: ignore[arg-type]

    async def fetch(self, key_id: str) -> KeyRecord | None:
        self.asked += 1
        found = self.rows.get(key_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailable
        return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def ring(table: Table, clock: Clock) -> KeyRing:
    return KeyRing(Auth(cache_s=60, stale_s=600), pepper=PEPPER, fetch=table.fetch, clock=clock)


def test_a_key_has_its_public_id_inside() -> None:
    key = mint("staging", pepper=PEPPER)

    assert key.text.startswith("gw_staging_")
    assert public_id(key.text) == key.id
    assert key.text.endswith(key.last_four)
    assert digest(key.text, pepper=PEPPER) == key.digest


@pytest.mark.parametrize("text", ["", "gw_live_", "sk-abc", "gw_prod_" + "a" * 55, "x" * 63, "gw_live_" + "é" * 55])
async def test_what_is_no_key_is_refused_without_asking(ring: KeyRing, table: Table, text: str) -> None:
    with pytest.raises(Unauthenticated):
        await ring.verify(text)

    assert table.asked <= 1


async def test_a_good_key_is_asked_about_once(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)

    principal = await ring.verify(key.text)

    assert (principal.key_id, principal.account_id) == (key.id, 7)
    assert ring.verify_known(key.text) == principal
    assert table.asked == 1


async def test_the_right_id_with_a_wrong_secret_is_refused(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    forged = key.text[:-1] + ("A" if key.text[-1] != "A" else "B")

    with pytest.raises(Unauthenticated):
        await ring.verify(forged)
    with pytest.raises(Unauthenticated):
        ring.verify_known(forged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revoked": True}, "revoked"),
        ({"expires_at_s": 1_700_000_999.0}, "expired"),
        ({"account_status": "suspended"}, "not active"),
    ],
)
async def test_a_key_that_is_over_says_so(
    ring: KeyRing, table: Table, changes: dict[str, object], message: str
) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key, **changes)

    with pytest.raises(Unauthenticated, match=message):
        await ring.verify(key.text)


async def test_a_key_expires_while_it_is_cached(ring: KeyRing, table: Table, clock: Clock) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key, expires_at_s=clock.now() + 5)
    await ring.verify(key.text)

    clock.at += 6

    with pytest.raises(Unauthenticated, match="expired"):
        ring.verify_known(key.text)


async def test_a_revocation_takes_effect_at_once(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    await ring.verify(key.text)

    table.add(key, revoked=True)
    ring.forget(key.id)

    with pytest.raises(Unauthenticated):
        await ring.verify(key.text)


async def test_a_revocation_beats_a_read_that_began_before_it(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    table.gate = asyncio.Event()
    reading = asyncio.ensure_future(ring.verify(key.text))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    table.add(key, revoked=True)
    ring.forget(key.id)
    table.gate.set()
    await reading

    assert ring.verify_known(key.text) is None, "what was read before the revocation must not be kept"
    with pytest.raises(Unauthenticated):
        await ring.verify(key.text)


async def test_a_missed_notice_costs_one_question(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    await ring.verify(key.text)

    table.add(key, revoked=True)
    ring.doubt()

    assert ring.verify_known(key.text) is None
    with pytest.raises(Unauthenticated):
        await ring.verify(key.text)


async def test_doubt_beats_a_read_that_began_before_it(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    table.gate = asyncio.Event()
    reading = asyncio.ensure_future(ring.verify(key.text))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    table.add(key, revoked=True)
    ring.doubt()
    table.gate.set()
    await reading

    assert ring.verify_known(key.text) is None, "the notice of its revocation may be one of those that were missed"
    with pytest.raises(Unauthenticated):
        await ring.verify(key.text)


async def test_those_who_wait_for_one_key_share_one_question(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    table.gate = asyncio.Event()

    waiting = [asyncio.ensure_future(ring.verify(key.text)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting[0].cancel()
    table.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert table.asked == 1
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(not isinstance(result, BaseException) for result in results[1:])


async def test_guessing_ids_asks_the_database_once_each(ring: KeyRing, table: Table, clock: Clock) -> None:
    guess = mint("live", pepper=PEPPER).text

    for _ in range(10):
        with pytest.raises(Unauthenticated):
            await ring.verify(guess)
    assert table.asked == 1

    clock.at += UNKNOWN_S + 0.1
    with pytest.raises(Unauthenticated):
        await ring.verify(guess)
    assert table.asked == 2


async def test_a_database_that_is_away_is_never_a_401(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    table.away = True

    with pytest.raises(StoreUnavailable):
        await ring.verify(key.text)

    table.away = False
    assert await ring.verify(key.text)


async def test_a_known_key_is_served_while_the_database_is_away(ring: KeyRing, table: Table, clock: Clock) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    await ring.verify(key.text)
    table.away = True

    clock.at += 61
    asked = table.asked
    assert await ring.verify(key.text)
    assert await ring.verify(key.text)
    assert table.asked == asked + 1, "after a failure a known key waits for no other one"

    clock.at += RETRY_S + 0.1
    assert await ring.verify(key.text)
    assert table.asked == asked + 2

    clock.at += 600
    with pytest.raises(StoreUnavailable):
        await ring.verify(key.text)


async def test_memory_is_bounded(table: Table, clock: Clock) -> None:
    ring = KeyRing(Auth(cache_size=3), pepper=PEPPER, fetch=table.fetch, clock=clock)

    for _ in range(10):
        key = mint("live", pepper=PEPPER)
        table.add(key)
        await ring.verify(key.text)

    assert repr(ring) == "<KeyRing: 3 known, 0 being fetched>"


async def test_a_rotated_key_may_be_good_in_both_texts_for_a_while(ring: KeyRing, table: Table, clock: Clock) -> None:
    old = mint("live", pepper=PEPPER)
    new = mint("live", pepper=PEPPER, key_id=old.id)
    table.add(new, previous_digest=old.digest, previous_until_s=clock.now() + 10)

    first, second = await ring.verify(old.text), await ring.verify(new.text)
    clock.at += 11

    assert first == second
    assert ring.verify_known(new.text) == second
    with pytest.raises(Unauthenticated, match="rotated"):
        ring.verify_known(old.text)


async def test_a_key_that_is_switched_off_says_so(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key, disabled=True)

    with pytest.raises(Unauthenticated) as refused:
        await ring.verify(key.text)

    assert refused.value.code == "api_key_disabled"


async def test_what_goes_on_for_long_goes_by_what_holds_now(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key)
    principal = await ring.verify(key.text)

    assert await ring.renew(principal) is principal
    table.add(key, models=("m",))
    ring.forget(key.id)
    narrowed = await ring.renew(principal)
    table.add(key, revoked=True)
    ring.forget(key.id)

    assert narrowed.constraints is not None
    assert narrowed.constraints.allows_model("m")
    with pytest.raises(Unauthenticated, match="revoked"):
        await ring.renew(principal)
    del table.rows[key.id]
    ring.forget(key.id)
    with pytest.raises(Unauthenticated):
        await ring.renew(principal)


async def test_a_key_that_nothing_narrows_has_no_constraints(ring: KeyRing, table: Table) -> None:
    key = mint("live", pepper=PEPPER)
    table.add(key, scopes={"read": ("*",), "write": ("*",), "admin": ()})

    assert (await ring.verify(key.text)).constraints is None
