"""Prices that administrators set: used by the next request, held against the rules, and gone when dropped."""

import asyncio

import msgspec
import pytest

from gateway.infra.embedded import Stores
from gateway.settings import Model, Provider, Settings
from tests.control.desk import Caller, Desk

PATIENCE_S = 20


class PricedDesk(Desk):
    """With a model that has a price of its own, and one that the catalogue knows."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores, Settings())
        self.settings = msgspec.structs.replace(
            self.settings,
            providers={
                "echo": Provider(adapter="echo", models=("free-model", "own-model", "*")),
            },
            models={
                "own-model": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0),
            },
        )


@pytest.fixture
async def desk(database: str, redis_url: str):
    async with PricedDesk(Stores(database, redis_url)) as desk:
        yield desk


@pytest.fixture
async def boss(desk: Desk) -> Caller:
    return await desk.person(role="admin")


async def test_what_is_set_is_offered_and_what_is_dropped_is_not(desk: Desk, boss: Caller):
    reason = {"reason": "a test"}
    assert price_of(desk, "own-model") == (1_000_000_000, 2_000_000_000, 1000)
    before = desk.parts.deps.offers

    answer = await boss.put(
        "/admin/models/prices",
        {
            "model": "own-model",
            "prices": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 4, "markup": 1.2},
            **reason,
        },
    )
    assert answer.status == 200
    await offered(desk, "own-model", (3_000_000_000, 4_000_000_000, 1200))
    assert desk.parts.deps.offers is not before
    # The old table is as it was: whoever was let in by it is charged by it.
    assert before.find("own-model")[0].price.input_mtok_nanos == 1_000_000_000

    await boss.put("/admin/models/prices", {"model": "own-model", "prices": {"markup": 2}, **reason})
    await offered(desk, "own-model", (1_000_000_000, 2_000_000_000, 2000))

    await boss.put(
        "/admin/models/prices",
        {"model": "free-model", "prices": {"input_usd_per_mtok": 5, "output_usd_per_mtok": 5}, **reason},
    )
    await offered(desk, "free-model", (5_000_000_000, 5_000_000_000, 1000))

    assert (await boss.delete("/admin/models/prices", {"model": "own-model", **reason})).status == 200
    await offered(desk, "own-model", (1_000_000_000, 2_000_000_000, 1000))
    assert (await boss.delete("/admin/models/prices", {"model": "own-model", **reason})).status == 404

    listed = (await boss.get("/admin/models", search="model")).json
    shown = {each["model"]: (each["pricing"], each["input_usd_per_mtok"]) for each in listed["offers"]}
    assert shown == {"own-model": ("priced", 1.0), "free-model": ("set", 5.0)}
    assert listed["prices_set"] == {"free-model": {"input_usd_per_mtok": 5.0, "output_usd_per_mtok": 5.0}}
    assert listed["total"] == 2


async def test_what_is_set_holds_from_the_start_of_another_worker(desk: Desk, boss: Caller):
    await boss.put("/admin/models/prices", {"model": "own-model", "prices": {"markup": 3}, "reason": "a test"})

    async with PricedDesk(desk.stores) as other:
        assert price_of(other, "own-model") == (1_000_000_000, 2_000_000_000, 3000)


@pytest.mark.parametrize(
    ("prices", "status"),
    [
        ({}, 422),
        # Half of the price would be given away.
        ({"input_cached_usd_per_mtok": 1}, 422),
        ({"input_usd_per_mtok": -1}, 422),
        ({"input_usd_per_mtok": 1e-12, "output_usd_per_mtok": 1}, 422),
        ({"markup": 1.23456}, 422),
        ({"markup": 0}, 422),
        ({"input_usd_per_mtoken": 1}, 422),
    ],
)
async def test_what_can_not_be_meant_is_refused(desk: Desk, boss: Caller, prices: dict[str, object], status: int):
    answer = await boss.put("/admin/models/prices", {"model": "own-model", "prices": prices, "reason": "a test"})

    assert answer.status == status, answer
    assert await desk.parts.database.fetch_value("select count(*) from model_prices") == 0


async def test_a_refresh_puts_a_new_table_in_place(desk: Desk, boss: Caller):
    before = desk.parts.deps.offers

    assert (await boss.post("/admin/refresh-models")).status == 200

    async with asyncio.timeout(PATIENCE_S):
        while desk.parts.deps.offers is before:  # noqa: ASYNC110  another task puts it there
            await asyncio.sleep(0.01)


def price_of(desk: Desk, model: str) -> tuple[int, int, int] | None:
    price = desk.parts.deps.offers.find(model)[0].price
    return None if price is None else (price.input_mtok_nanos, price.output_mtok_nanos, price.markup_permille)


async def offered(desk: Desk, model: str, price: tuple[int, int, int]) -> None:
    """Wait until this worker has heard of it."""
    async with asyncio.timeout(PATIENCE_S):
        while price_of(desk, model) != price:  # noqa: ASYNC110  another task puts it there
            await asyncio.sleep(0.01)
