"""Work that nobody asks about is charged all the same, once: the poller against a provider's wire and real books."""

import asyncio

import msgspec
import pytest

from gateway.books import poller_of
from gateway.poller import DENIALS_MAX
from gateway.registry import Registry
from gateway.settings import Model, Settings, Upstream
from gateway.upstream.client import UpstreamClient
from tests.acceptance.test_objects import BATCH_NANOS, LINE, OUTPUT, USAGE, batch_of, town

__all__ = ["town"]  # a fixture


class Polling:
    """A poller for which everything that is pending is due."""

    def __init__(self, town, client: UpstreamClient, settings: Settings | None = None) -> None:
        self._town = town
        settings = settings or town.gateway.settings
        self._poller = poller_of(
            settings,
            Registry.load(settings),
            client,
            town.database,
            town.redis,
            unsettled=town.unsettled,
        )

    async def poll(self) -> int:
        await self._town.database.execute("update objects set poll_at = now() where charge_state = 'pending'")
        return await self._poller.poll_once()

    async def state(self, object_id: str) -> str:
        return await self._town.database.fetch_value("select charge_state from objects where id = $1", object_id)


@pytest.fixture
async def polling(town):
    client = UpstreamClient(Upstream())
    yield Polling(town, client)
    await client.close()


async def test_a_batch_that_nobody_asks_for_is_charged_once(town, polling):
    client = await town.open()
    batch = await batch_of(client)
    account = town.accounts[0]

    running = [await polling.poll() for _ in range(3)]
    before = await town.spent(account)
    town.keeper.finish(batch.id, usage=USAGE)
    after = [await polling.poll() for _ in range(3)]

    assert running == [1, 1, 1]
    assert before == []
    assert after == [1, 0, 0]
    assert await town.spent(account) == [BATCH_NANOS]
    assert await town.held(account) == 0


async def test_a_charge_that_redis_loses_before_the_books_have_it_is_made_again(town, polling):
    """Nobody would ask again: PostgreSQL says that it is charged."""
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, usage=USAGE)

    await polling.poll()
    # As after a crash that took the last second with it.
    await town.redis.execute("FLUSHALL")
    town.unsettled.hear(None)
    await town.unsettled.check()

    assert await polling.state(batch.id) == "settled"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_pollers_and_callers_at_once_charge_once(town, polling):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, usage=USAGE)
    other = UpstreamClient(Upstream())
    second = Polling(town, other)

    await asyncio.gather(polling.poll(), second.poll(), *(client.batches.retrieve(batch.id) for _ in range(8)))
    await other.close()

    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_a_charge_whose_note_was_lost_is_made_again_to_no_effect(town, polling):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, usage=USAGE)
    await polling.poll()
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]

    # As after a crash between the charge and the commit, once at once and once after Redis has forgotten the request.
    for forgets in (False, True):
        await town.database.execute("update objects set charge_state = 'pending' where id = $1", batch.id)
        if forgets:
            charge = await town.database.fetch_row(
                "select charge_id, account_id from objects where id = $1", batch.id
            )
            partition = charge["account_id"] % 64
            await town.redis.execute("DEL", f"{{p{partition}}}:h:{charge['charge_id']}")
        await polling.poll()

        assert await polling.state(batch.id) == "settled"
        assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


@pytest.mark.parametrize(
    "models", [{"m": Model(input_usd_per_mtok=9.0, output_usd_per_mtok=9.0)}, {"m": Model(free=True)}, {}]
)
async def test_the_price_of_the_order_holds(town, polling, models):
    client = await town.open()
    batch = await batch_of(client)
    answered = await client.responses.create(model="m", input="long", background=True)
    town.keeper.finish(batch.id, usage=USAGE)
    town.keeper.finish(answered.id, usage=USAGE)
    other = UpstreamClient(Upstream())

    await Polling(town, other, msgspec.structs.replace(town.gateway.settings, models=models)).poll()
    await other.close()

    assert sorted(await town.spent(town.accounts[0])) == [BATCH_NANOS, 2 * BATCH_NANOS]


async def test_a_batch_without_a_sum_is_read_line_by_line(town, polling):
    client = await town.open()
    batch = await batch_of(client, LINE * 3)
    town.keeper.finish(batch.id)
    town.keeper.contents[town.keeper.objects[batch.id]["output_file_id"]] = OUTPUT

    await polling.poll()

    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_a_batch_that_failed_costs_nothing(town, polling):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, status="failed")

    await polling.poll()

    assert await polling.state(batch.id) == "void"
    assert await town.spent(town.accounts[0]) == []
    assert await town.held(town.accounts[0]) == 0


async def test_a_batch_that_its_provider_denies_is_given_up(town, polling, caplog):
    client = await town.open()
    batch = await batch_of(client)
    del town.keeper.objects[batch.id]

    for _ in range(DENIALS_MAX):
        await polling.poll()

    assert await polling.state(batch.id) == "lost"
    assert await town.held(town.accounts[0]) == 0
    assert "will never be known" in caplog.text


async def test_a_provider_that_denies_a_batch_once_is_not_believed(town, polling):
    """However often it was asked before."""
    client = await town.open()
    batch = await batch_of(client)
    for _ in range(DENIALS_MAX + 1):
        await polling.poll()

    town.keeper.failing[batch.id] = 404
    await polling.poll()
    del town.keeper.failing[batch.id]
    town.keeper.finish(batch.id, usage=USAGE)
    await polling.poll()

    assert await polling.state(batch.id) == "settled"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
async def test_numbers_that_come_later_than_the_status_are_waited_for(town, polling, status):
    """However often it was asked before."""
    client = await town.open()
    batch = await batch_of(client)
    for _ in range(DENIALS_MAX + 1):
        await polling.poll()

    town.keeper.finish(batch.id, status=status)
    await polling.poll()
    early = await polling.state(batch.id)
    town.keeper.objects[batch.id]["usage"] = USAGE
    await polling.poll()

    assert early == "pending"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


@pytest.mark.parametrize("status", ["completed", "cancelled", "expired", "failed"])
async def test_answers_that_can_not_be_read_now_are_not_given_away(town, polling, status):
    client = await town.open()
    batch = await batch_of(client, LINE * 3)
    town.keeper.finish(batch.id)
    output_id = town.keeper.objects[batch.id]["output_file_id"]
    town.keeper.objects[batch.id]["status"] = status
    town.keeper.contents[output_id] = OUTPUT
    town.keeper.failing[output_id] = 503

    for _ in range(DENIALS_MAX + 1):
        await polling.poll()
    early = await polling.state(batch.id)
    del town.keeper.failing[output_id]
    await polling.poll()

    assert early == "pending"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_a_batch_whose_answers_are_gone_is_given_up(town, polling, caplog):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id)
    del town.keeper.objects[town.keeper.objects[batch.id]["output_file_id"]]

    for _ in range(DENIALS_MAX):
        await polling.poll()

    assert await polling.state(batch.id) == "lost"
    assert await town.held(town.accounts[0]) == 0
    assert "will never be known" in caplog.text


async def test_a_response_in_the_background_that_nobody_asks_for_is_charged(town, polling):
    client = await town.open()
    ordered = await client.responses.create(model="m", input="long", background=True)
    deleted = await client.responses.create(model="m", input="long", background=True)
    town.keeper.finish(ordered.id, usage=USAGE)

    await polling.poll()

    assert await town.spent(town.accounts[0]) == [1000 * 1000 + 500 * 2000]
    assert await polling.state(deleted.id) == "pending"


async def test_redis_away_leaves_the_charge_for_later(town, polling):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, usage=USAGE)
    await town.redis.close()

    await polling.poll()

    assert await polling.state(batch.id) == "pending"


# -- an account's own key ------------------------------------------------------------------------------------------

OWN = "sk-own-of-the-account-4711"
#: 5 per cent, rounded up.
FEE_NANOS = -(-BATCH_NANOS * 50 // 1000)


async def own_batch(town) -> tuple[str, str]:
    """A batch that was ordered with a key of the account's own; their ids."""
    client = await town.open()
    made = await town.gateway.ask(
        msgspec.json.encode({"provider": "local", "api_key": OWN}),
        path=b"/user/provider-keys",
        key=client.api_key,
    )
    assert made.status == 200, made
    batch = await batch_of(client)
    assert {authorization for _, _, authorization in town.keeper.asked} == {f"Bearer {OWN}"}
    return batch.id, str(msgspec.json.decode(made.body)["id"])


async def test_a_batch_of_an_own_key_is_asked_for_with_it_and_costs_the_fee(town, polling):
    batch_id, key_id = await own_batch(town)
    town.keeper.finish(batch_id, usage=USAGE)

    await polling.poll()

    assert {authorization for _, _, authorization in town.keeper.asked} == {f"Bearer {OWN}"}
    assert await town.spent(town.accounts[0]) == [FEE_NANOS]
    record = await town.database.fetch_row(
        "select own_key_id::text, fee_permille from usage_records where cost_nanos > 0"
    )
    assert (record["own_key_id"], record["fee_permille"]) == (key_id, 50)
    assert await town.held(town.accounts[0]) == 0


async def test_a_batch_waits_while_the_own_key_is_off_and_is_let_go_once_it_is_deleted(town, polling):
    batch_id, key_id = await own_batch(town)
    town.keeper.finish(batch_id, usage=USAGE)
    asked = len(town.keeper.asked)

    await town.database.execute("update provider_keys set enabled = false where id = $1::text::uuid", key_id)
    await polling.poll()
    assert await polling.state(batch_id) == "pending"

    await town.database.execute("delete from provider_keys where id = $1::text::uuid", key_id)
    await polling.poll()

    assert await polling.state(batch_id) == "lost"
    assert len(town.keeper.asked) == asked, "somebody asked with another key"
    assert await town.held(town.accounts[0]) == 0
    assert await town.spent(town.accounts[0]) == []
