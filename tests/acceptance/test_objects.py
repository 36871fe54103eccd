"""Files, batches and stored responses with the official SDK: everything works for the owner, nothing for anybody else."""

import asyncio

import msgspec
import openai
import pytest

from gateway import __version__
from gateway.books import poller_of
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry as Metrics
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit
from gateway.kernel.key_store import create_key
from gateway.kernel.ledger import Ledger
from gateway.kernel.settler import Settler
from gateway.kernel.unsettled import Unsettled, find_known
from gateway.registry import Registry
from gateway.secret import Secret
from gateway.settings import Model, Objects, OwnKeys, Provider, Settings, Upstream
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from tests.gateways import PATIENCE_S, PEPPER, PROVIDER_KEY, RunningGateway
from tests.keepers import Keeper
from tests.upstreams import ScriptedUpstream

PRICES = {"m": Model(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)}
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","max_tokens":10,"messages":[]}}\n'
USAGE = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500}
#: The same, answer by answer.
OUTPUT = (
    b'{"custom_id":"a","response":{"status_code":200,"body":{"usage":{"prompt_tokens":600,"completion_tokens":300,'
    b'"total_tokens":900}}}}\n'
    b'{"custom_id":"b","response":{"status_code":200,"body":{"usage":{"prompt_tokens":400,"completion_tokens":200,'
    b'"total_tokens":600}}}}\n'
    b'{"custom_id":"c","response":null,"error":{"message":"no"}}'
)
#: At half the price.
BATCH_NANOS = (1000 * 1000 + 500 * 2000) // 2
#: 10 tokens in and 5 out, as the keeper reports of a response.
RESPONSE_NANOS = 10 * 1000 + 5 * 2000


class Town:
    """Two accounts, a provider with two keys, and the books in our hands."""

    def __init__(self, gateway: RunningGateway, keeper: Keeper, database: Database, redis: Redis) -> None:
        self.gateway = gateway
        self.keeper = keeper
        self.database = database
        self.redis = redis
        self.ledger = Ledger(redis)
        self.unsettled = Unsettled(self.ledger, find_known(database), clock=SystemClock())
        telemetry = Telemetry(Metrics(incarnation="test"), version=__version__)
        self.settler = Settler(database, redis, clock=SystemClock(), telemetry=telemetry)
        self.accounts: list[int] = []

    async def open(self, *, usd_nanos: int = 10**9) -> openai.AsyncOpenAI:
        """A client of a new account."""
        account = await self.database.fetch_value("insert into accounts (name) values ('a') returning id")
        if usd_nanos:
            await credit(
                self.database, account, type="bonus", amount_nanos=usd_nanos, idempotency_key=f"open {account}"
            )
        key = await create_key(self.database, name=f"key {account}", pepper=PEPPER.encode(), account_id=account)
        self.accounts.append(account)
        return self.gateway.openai(api_key=key.text)

    async def spent(self, account: int) -> list[int]:
        """What was charged, by the books."""
        while (await self.settler.settle_once()).more:
            pass
        rows = await self.database.fetch(
            "select -amount_nanos as nanos from entries where account_id = $1 and type = 'api_usage' order by seq",
            account,
        )
        return [row["nanos"] for row in rows]

    async def written(self, object_id: str) -> None:
        """Wait until PostgreSQL has heard of an object."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.database.fetch_value("select exists (select from objects where id = $1)", object_id):  # noqa: ASYNC110  written by another process
                await asyncio.sleep(0.02)

    async def delivered(self, object_id: str) -> None:
        """Wait until PostgreSQL has heard of what was delivered of an object."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.database.fetch_value(  # noqa: ASYNC110  written by another process
                "select delivered_output_tokens > 0 from objects where id = $1", object_id
            ):
                await asyncio.sleep(0.02)

    async def held(self, account: int) -> int:
        balance = await self.ledger.peek_balance(account)
        return 0 if balance is None else balance.held_nanos


@pytest.fixture
async def town(database, redis_url):
    keeper = Keeper()
    redis = Redis(redis_url, timeout_s=PATIENCE_S)
    await redis.connect()
    async with (
        Database(database, pool_size=2, timeout_s=PATIENCE_S) as opened,
        ScriptedUpstream(keeper.serve) as upstream,
        RunningGateway(
            Stores(database, redis_url),
            providers={
                "local": Provider(
                    adapter="openai",
                    base_url=f"{upstream.url}/v1",
                    api_key=Secret(PROVIDER_KEY),
                    api_keys=(Secret(PROVIDER_KEY + "-2"),),
                )
            },
            models=PRICES,
            settings=Settings(own_keys=OwnKeys(masters={"k1": Secret("5a" * 32)})),
        ) as gateway,
    ):
        yield Town(gateway, keeper, opened, redis)
    await redis.close()


async def refused(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        await call
    return raised.value


async def batch_of(client: openai.AsyncOpenAI, lines: bytes = LINE):
    file = await client.files.create(file=("in.jsonl", lines), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


# -- files ---------------------------------------------------------------------------------------------------


async def test_a_file_lives_from_its_making_to_its_end(town):
    client = await town.open()

    file = await client.files.create(file=("notes.txt", b"\x00binary\xff"), purpose="assistants")
    found = await client.files.retrieve(file.id)
    content = await client.files.content(file.id)
    listed = [each.id async for each in client.files.list()]
    deleted = await client.files.delete(file.id)
    gone = await refused(client.files.retrieve(file.id))

    assert (file.filename, file.bytes, found) == ("notes.txt", 8, file)
    assert content.read() == b"\x00binary\xff"
    assert listed == [file.id]
    assert deleted.deleted
    assert gone.status_code == 404
    assert [each.id async for each in client.files.list()] == []


async def test_everything_about_a_file_goes_to_the_key_that_made_it(town):
    one, other = await town.open(), await town.open()

    for client in (one, other):
        file = await client.files.create(file=("a", b"a"), purpose="assistants")
        town.keeper.asked.clear()
        made_with = None
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            await call(file.id)
        keys = {authorization for _, _, authorization in town.keeper.asked}
        assert len(keys) == 1
        made_with = keys.pop()
        assert made_with.startswith(f"Bearer {PROVIDER_KEY}")


async def test_nobody_sees_touches_or_lists_what_is_not_theirs(town):
    owner, thief = await town.open(), await town.open()
    file = await owner.files.create(file=("a", b"secret"), purpose="batch")
    batch = await batch_of(owner)
    response = await owner.responses.create(model="m", input="hi")
    conversation = await owner.conversations.create()
    asked = len(town.keeper.asked)

    refusals = [
        await refused(call)
        for call in (
            thief.files.retrieve(file.id),
            thief.files.content(file.id),
            thief.files.delete(file.id),
            thief.batches.retrieve(batch.id),
            thief.batches.cancel(batch.id),
            thief.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"),
            thief.responses.retrieve(response.id),
            thief.responses.delete(response.id),
            thief.responses.cancel(response.id),
            thief.responses.input_items.list(response.id),
            thief.responses.create(model="m", input="and?", previous_response_id=response.id),
            thief.responses.create(model="m", input="and?", conversation=conversation.id),
            thief.responses.create(model="m", input="and?", conversation={"id": conversation.id}),
            thief.responses.create(
                model="m", input=[{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
            ),
            thief.conversations.retrieve(conversation.id),
            thief.conversations.items.list(conversation.id),
            thief.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": file.id}}]}],
            ),
        )
    ]
    unknown = await refused(thief.files.retrieve("file-nobodys"))

    assert {each.status_code for each in refusals} == {404}
    assert {each.body["code"] for each in refusals} == {"object_not_found"}
    assert unknown.body["message"].replace("file-nobodys", file.id) == refusals[0].body["message"]
    assert [each.id async for each in thief.files.list()] == []
    assert [each.id async for each in thief.batches.list()] == []
    assert len(town.keeper.asked) == asked, "the provider was asked on behalf of a stranger"
    assert {each.id async for each in owner.files.list()} >= {file.id}
    assert [each.id async for each in owner.batches.list()] == [batch.id]


async def test_ids_are_known_after_a_restart_and_without_redis(town):
    client = await town.open()
    file = await client.files.create(file=("a", b"a"), purpose="assistants")
    response = await client.responses.create(model="m", input="hi")
    await town.written(response.id)
    await town.redis.execute("DEL", b"gateway:object:" + file.id.encode())

    again = RunningGateway(town.gateway.stores, providers=town.gateway.settings.providers, models=PRICES)
    async with again as gateway:
        other = gateway.openai(api_key=client.api_key)
        assert (await other.files.retrieve(file.id)).id == file.id
        assert (await other.responses.retrieve(response.id)).id == response.id


async def test_lists_have_pages_and_an_order(town):
    client = await town.open()
    ids = [(await client.files.create(file=(f"{n}", b"a"), purpose="batch")).id for n in range(5)]
    other = (await client.files.create(file=("x", b"a"), purpose="assistants")).id

    newest = [each.id async for each in client.files.list(limit=2, purpose="batch")]
    oldest = [each.id async for each in client.files.list(limit=2, order="asc")]
    page = await client.files.list(limit=2)

    assert newest == ids[::-1]
    assert oldest == [*ids, other]
    assert page.has_more
    assert (await refused(client.files.list(order="sideways"))).status_code == 400


# -- files in parts ------------------------------------------------------------------------------------------


async def test_a_file_is_put_together_from_its_parts(town):
    client = await town.open()
    parts = [b"\x00one" * 1000, b"two\xff", b""]

    upload = await client.uploads.create(
        bytes=sum(map(len, parts)), filename="in.jsonl", mime_type="text/jsonl", purpose="batch"
    )
    sent = [await client.uploads.parts.create(upload.id, data=("part", part)) for part in parts]
    done = await client.uploads.complete(upload.id, part_ids=[each.id for each in (sent[1], sent[0], sent[2])])
    content = await client.files.content(done.file.id)

    assert [each.upload_id for each in sent] == [upload.id] * 3
    assert done.status == "completed"
    assert content.read() == parts[1] + parts[0] + parts[2]
    assert [each.id async for each in client.files.list()] == [done.file.id]
    keys = {authorization for _, _, authorization in town.keeper.asked}
    assert len(keys) == 1, "its parts and its file live under one key"


async def test_the_sdks_own_upload_in_chunks_gives_a_file_for_a_batch(town):
    client = await town.open()

    done = await client.uploads.upload_file_chunked(
        file=LINE * 3,
        filename="in.jsonl",
        bytes=len(LINE) * 3,
        mime_type="text/jsonl",
        purpose="batch",
        part_size=100,
    )
    batch = await client.batches.create(
        input_file_id=done.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    assert town.keeper.contents[done.file.id] == LINE * 3
    assert batch.input_file_id == done.file.id
    assert await town.held(town.accounts[0]) > 0


async def test_nobody_adds_to_ends_or_has_what_another_uploads(town):
    owner, thief = await town.open(), await town.open()
    upload = await owner.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="assistants")
    part = await owner.uploads.parts.create(upload.id, data=b"a")
    asked = len(town.keeper.asked)

    refusals = [
        await refused(call)
        for call in (
            thief.uploads.parts.create(upload.id, data=b"b"),
            thief.uploads.complete(upload.id, part_ids=[part.id]),
            thief.uploads.cancel(upload.id),
        )
    ]
    untouched = len(town.keeper.asked) == asked
    done = await owner.uploads.complete(upload.id, part_ids=[part.id])
    stolen = await refused(thief.files.content(done.file.id))

    assert {each.status_code for each in (*refusals, stolen)} == {404}
    assert untouched, "the provider was asked on behalf of a stranger"
    assert (await owner.files.content(done.file.id)).read() == b"a"


async def test_an_upload_can_be_given_up(town):
    client = await town.open()
    upload = await client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="assistants")

    cancelled = await client.uploads.cancel(upload.id)

    assert (cancelled.id, cancelled.status) == (upload.id, "cancelled")
    assert [each.id async for each in client.files.list()] == []


# -- endpoints that are not understood -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"GET", b"/v1/fine_tuning/jobs"),
        (b"GET", b"/v1/assistants"),
        (b"GET", b"/v1/evals"),
        (b"POST", b"/v1/threads"),
        (b"GET", b"/v1/vector_stores"),
        (b"GET", b"/v1/containers"),
        (b"GET", b"/v1/files/a/b/c"),
        (b"GET", b"/v1/files/%2e%2e%2forganization"),
        (b"GET", b"/v1/files/a%2Fcontent%3Fx"),
        (b"GET", b"/v1/responses"),
        (b"GET", b"/v1/videos"),
    ],
)
async def test_what_is_not_understood_is_refused(town, method, path):
    answered = await town.gateway.ask(b"", method=method, path=path)

    assert answered.status in (403, 404, 405)
    assert answered.error["code"] in ("endpoint_not_open", "unknown_url", "object_not_found", "method_not_supported")
    assert town.keeper.asked == []


async def test_an_operator_may_open_more_and_owners_stay_owners(town):
    settings = Settings(objects=Objects(relay=("/fine_tuning",)))
    owner, thief = await town.open(), await town.open()
    file = await owner.files.create(file=("a", b"a"), purpose="fine-tune")
    running = RunningGateway(
        town.gateway.stores, providers=town.gateway.settings.providers, models=PRICES, settings=settings
    )
    async with running as gateway:
        mine = await gateway.openai(api_key=owner.api_key).get("/fine_tuning", cast_to=object)
        stolen = await refused(
            gateway.openai(api_key=thief.api_key).post(
                "/fine_tuning", body={"training_file": file.id, "file_id": file.id}, cast_to=object
            )
        )
        in_path = await refused(gateway.openai(api_key=thief.api_key).get(f"/fine_tuning/{file.id}", cast_to=object))

    assert mine["object"] == "list"
    assert stolen.status_code == in_path.status_code == 404


# -- batches -------------------------------------------------------------------------------------------------


async def test_a_batch_is_charged_once_however_often_it_is_asked_for(town):
    """Case 18."""
    client = await town.open()
    batch = await batch_of(client, LINE * 3)
    held = await town.held(town.accounts[0])
    before = await town.spent(town.accounts[0])
    town.keeper.finish(batch.id, usage=USAGE)

    polled = [await client.batches.retrieve(batch.id) for _ in range(20)]
    output = await client.files.content(polled[-1].output_file_id)

    assert held > 0
    assert before == []
    assert {each.status for each in polled} == {"completed"}
    assert output.read() == b"{}"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]
    assert await town.held(town.accounts[0]) == 0
    row = await town.database.fetch_row("select * from usage_records where cost_nanos > 0")
    assert (row["input_tokens"], row["output_tokens"], row["model"], row["route"]) == (1000, 500, "m", "/v1/batches")


async def test_many_who_see_a_batch_end_at_once_charge_it_once(town):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id, usage=USAGE)

    await asyncio.gather(*(client.batches.retrieve(batch.id) for _ in range(20)))

    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_a_batch_that_can_not_be_paid_is_never_made(town):
    poor = await town.open(usd_nanos=1000)
    asked = len(town.keeper.asked)

    error = await refused(batch_of(poor, LINE * 10))

    assert error.status_code == 402
    assert ("POST", "/batches") not in [(method, path) for method, path, _ in town.keeper.asked[asked:]]
    assert await town.held(town.accounts[0]) == 0


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (LINE.replace(b'"m"', b'"unpriced"'), 404),
        (LINE + LINE.replace(b'"m"', b'"n"'), 400),
        (LINE.replace(b'"model":"m",', b""), 400),
        (b"not json\n", 400),
        (b"\n\n", 400),
    ],
)
async def test_a_batch_is_read_before_it_is_ordered(database, redis_url, lines, status):
    keeper = Keeper()
    async with (
        ScriptedUpstream(keeper.serve) as upstream,
        RunningGateway(
            Stores(database, redis_url),
            providers={
                "local": Provider(
                    adapter="openai", base_url=f"{upstream.url}/v1", api_key=Secret("k"), models=("m", "n")
                )
            },
            models=PRICES,
        ) as gateway,
    ):
        error = await refused(batch_of(gateway.openai(), lines))

    assert error.status_code == status
    assert ("POST", "/batches") not in [(method, path) for method, path, _ in keeper.asked]


async def test_a_batch_takes_no_slot_for_as_long_as_it_runs(town):
    client = await town.open()
    await batch_of(client)

    balance = await town.ledger.peek_balance(town.accounts[0])

    assert balance is not None
    assert balance.in_flight == 0
    assert balance.held_nanos > 0


async def test_deleting_the_answers_of_a_batch_does_not_save_its_price(town):
    """A provider that does not sum up: the answers are all that says what was used."""
    client = await town.open()
    batch = await batch_of(client, LINE * 3)
    town.keeper.finish(batch.id)
    done = await client.batches.retrieve(batch.id)
    town.keeper.contents[done.output_file_id] = OUTPUT
    before = await town.spent(town.accounts[0])

    deleted = await client.files.delete(done.output_file_id)

    assert before == []
    assert deleted.deleted
    assert done.output_file_id not in town.keeper.objects
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]
    assert await town.held(town.accounts[0]) == 0
    # What is charged is in nobody's way any more, and is not charged again.
    assert (await client.batches.retrieve(batch.id)).status == "completed"
    assert (await client.files.delete(done.input_file_id)).deleted
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


@pytest.mark.parametrize("content", [b"{}", b"no json"])
async def test_answers_that_can_not_be_summed_up_yet_are_not_deleted(town, content):
    client = await town.open()
    batch = await batch_of(client)
    town.keeper.finish(batch.id)
    done = await client.batches.retrieve(batch.id)
    town.keeper.contents[done.output_file_id] = content

    early = await refused(client.with_options(max_retries=0).files.delete(done.output_file_id))
    kept = done.output_file_id in town.keeper.objects
    town.keeper.finish(batch.id, usage=USAGE)
    town.keeper.objects[batch.id]["output_file_id"] = done.output_file_id
    await client.files.delete(done.output_file_id)

    assert (early.status_code, early.body["code"]) == (409, "still_running")
    assert kept
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


async def test_a_cancelled_batch_is_charged_for_what_was_done(town):
    client = await town.open()
    batch = await batch_of(client)

    cancelled = await client.batches.cancel(batch.id)
    town.keeper.objects[batch.id]["usage"] = USAGE
    await client.batches.retrieve(batch.id)

    assert cancelled.status == "cancelled"
    assert await town.spent(town.accounts[0]) == [BATCH_NANOS]


# -- stored responses ----------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_where_it_was(town):
    client = await town.open()
    town.keeper.asked.clear()

    first = await client.responses.create(model="m", input="one")
    second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
    found = await client.responses.retrieve(second.id)
    await client.responses.delete(first.id)

    assert found.id == second.id
    assert len({authorization for _, _, authorization in town.keeper.asked}) == 1
    assert await town.spent(town.accounts[0]) == [RESPONSE_NANOS] * 2


async def test_what_a_caller_asks_not_to_store_is_not_remembered(town):
    client = await town.open()

    response = await client.responses.create(model="m", input="one", store=False)

    assert (await refused(client.responses.retrieve(response.id))).status_code == 404


async def test_the_id_of_a_stream_is_known_while_it_runs(town):
    client = await town.open()
    town.keeper.go_on.clear()

    stream = await client.responses.create(model="m", input="one", stream=True)
    created = await anext(aiter(stream))
    found = await client.responses.retrieve(created.response.id)
    town.keeper.go_on.set()
    rest = [event.type async for event in stream]

    assert found.id == created.response.id
    assert rest == ["response.completed"]


@pytest.mark.parametrize("seen_by", ["get", "cancel"])
async def test_a_response_in_the_background_is_charged_when_it_is_done(town, seen_by):
    """Case 110."""
    client = await town.open()

    ordered = await client.responses.create(model="m", input="long", background=True)
    running = await client.responses.retrieve(ordered.id)
    before, held = await town.spent(town.accounts[0]), await town.held(town.accounts[0])
    town.keeper.finish(ordered.id, usage=USAGE)
    if seen_by == "cancel":
        await client.responses.cancel(ordered.id)
    for _ in range(20):
        await client.responses.retrieve(ordered.id)

    assert (ordered.status, running.status) == ("queued", "queued")
    assert before == []
    assert held > 0
    assert await town.spent(town.accounts[0]) == [1000 * 1000 + 500 * 2000]
    assert await town.held(town.accounts[0]) == 0


async def test_a_stream_in_the_background_that_its_caller_leaves_is_charged_later(town):
    client = await town.open()
    town.keeper.go_on.clear()

    stream = await client.responses.create(model="m", input="long", background=True, stream=True)
    created = await anext(aiter(stream))
    await stream.close()
    await town.written(created.response.id)
    before = await town.spent(town.accounts[0])
    town.keeper.go_on.set()
    town.keeper.finish(created.response.id, usage=USAGE)
    await client.responses.retrieve(created.response.id)

    assert before == []
    assert await town.spent(town.accounts[0]) == [1000 * 1000 + 500 * 2000]


@pytest.mark.parametrize("again", [False, True])
async def test_what_was_read_of_an_answer_in_the_background_is_charged_though_it_is_cancelled(town, again):
    """Read to the last word but one, and cancelled then: its provider reports no usage."""
    client = await town.open()
    town.keeper.words = ["word "] * 200
    town.keeper.go_on.clear()

    if again:
        ordered = await client.responses.create(model="m", input="long", background=True)
        stream = await client.responses.retrieve(ordered.id, stream=True)
    else:
        stream = await client.responses.create(model="m", input="long", background=True, stream=True)
    events = aiter(stream)
    created = await anext(events)
    heard = [await anext(events) for _ in town.keeper.words]
    # The stream stays open meanwhile.
    cancelled = await client.responses.cancel(created.response.id)
    early = await refused(client.with_options(max_retries=0).responses.delete(created.response.id))
    await stream.close()
    await town.delivered(created.response.id)
    client_http = UpstreamClient(Upstream())
    await town.database.execute("update objects set poll_at = now() where charge_state = 'pending'")
    registry = Registry.load(town.gateway.settings)
    poller = poller_of(
        town.gateway.settings, registry, client_http, town.database, town.redis, unsettled=town.unsettled
    )
    await poller.poll_once()
    await client_http.close()

    spent = await town.spent(town.accounts[0])
    assert len(heard) == 200
    assert cancelled.status == "cancelled"
    assert early.status_code == 409
    assert len(spent) == 1
    assert 50 * 2000 <= spent[0] <= 600 * 2000
    assert await town.held(town.accounts[0]) == 0


async def test_a_response_in_the_background_that_failed_costs_nothing(town):
    client = await town.open()
    ordered = await client.responses.create(model="m", input="long", background=True)

    town.keeper.finish(ordered.id, status="failed")
    await client.responses.retrieve(ordered.id)

    assert await town.spent(town.accounts[0]) == []
    assert await town.held(town.accounts[0]) == 0


async def test_the_answer_is_byte_for_byte_the_providers(town):
    client = await town.open()
    file = await client.files.create(file=("a", b"a"), purpose="assistants")

    raw = await client.files.with_raw_response.retrieve(file.id)

    assert raw.content == msgspec.json.encode(town.keeper.objects[file.id])


async def test_deleting_a_response_does_not_save_its_price(town):
    client = await town.open()
    ordered = await client.responses.create(model="m", input="long", background=True)

    early = await refused(client.responses.delete(ordered.id))
    town.keeper.finish(ordered.id, usage=USAGE)
    await client.responses.delete(ordered.id)

    assert early.status_code == 409
    assert await town.spent(town.accounts[0]) == [1000 * 1000 + 500 * 2000]
    assert ordered.id not in town.keeper.objects
