"""Conversations over a WebSocket: the official SDK and raw clients in front, a provider that speaks realtime behind."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway import __version__
from gateway.infra.clock import SystemClock
from gateway.infra.embedded import Stores
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database
from gateway.infra.redis import Redis
from gateway.kernel.journal import credit, find_account
from gateway.kernel.ledger import Ledger
from gateway.kernel.settler import Settler
from gateway.secret import Secret
from gateway.settings import Model, Provider, Realtime, Settings
from gateway.telemetry import Telemetry
from gateway.upstream.websocket import PING_S
from tests.gateways import PATIENCE_S, PROVIDER_KEY, SERVERS, RunningGateway

#: In, out: a dollar and two for a million tokens; audio ten times that.
PRICES = {
    "speaker": Model(
        input_usd_per_mtok=1.0,
        output_usd_per_mtok=2.0,
        input_audio_usd_per_mtok=10.0,
        output_audio_usd_per_mtok=20.0,
        upstream={"local": "gpt-realtime"},
    ),
    "writer": Model(input_usd_per_mtok=5.0, output_usd_per_mtok=5.0),
}
USAGE = {
    "total_tokens": 150,
    "input_tokens": 100,
    "output_tokens": 50,
    "input_token_details": {"text_tokens": 20, "audio_tokens": 80, "cached_tokens": 0},
    "output_token_details": {"text_tokens": 10, "audio_tokens": 40},
}
ANSWER_NANOS = 20 * 1000 + 80 * 10_000 + 10 * 2000 + 40 * 20_000


class Speaker:
    """A provider. It answers each `response.create`, echoes binary messages, and does what `say` names."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: list[list[tuple[str, str]]] = []
        self.heard: list[str | bytes] = []
        self.closed: list[tuple[int, str]] = []
        self.left = asyncio.Event()
        self.url = ""
        self.go_on = asyncio.Event()
        self.go_on.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Speaker"]:
        async with serve(
            self._speak, "127.0.0.1", 0, max_size=2**24, subprotocols=["realtime"], select_subprotocol=self._choose
        ) as server:
            self.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            yield self

    @staticmethod
    def _choose(_: ServerConnection, offered):
        return "realtime" if "realtime" in offered else None

    async def _speak(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.paths.append(connection.request.path)
        self.headers.append(list(connection.request.headers.raw_items()))
        await self._say(
            connection, "session.created", session={"model": "gpt-realtime", "object": "realtime.session"}
        )
        try:
            async for message in connection:
                self.heard.append(message)
                if isinstance(message, bytes):
                    await connection.send(message)
                else:
                    await self._answer(connection, msgspec.json.decode(message))
        except ConnectionClosed:
            pass
        finally:
            with contextlib.suppress(ConnectionClosed):
                await connection.wait_closed()
            self.closed.append((connection.close_code or 0, connection.close_reason or ""))
            self.left.set()

    async def _answer(self, connection: ServerConnection, event) -> None:
        match event["type"]:
            case "response.create":
                await self._say(connection, "response.created", response={"id": "resp_1", "status": "in_progress"})
                delta = base64.b64encode(bytes(48_000)).decode()
                await self._say(connection, "response.output_audio.delta", delta=delta, response_id="resp_1")
                await self.go_on.wait()
                response = {"id": "resp_1", "object": "realtime.response", "status": "completed", "usage": USAGE}
                await self._say(connection, "response.done", response=response)
            case "input_audio_buffer.commit":
                kind = "conversation.item.input_audio_transcription.completed"
                usage = {"type": "tokens", "input_tokens": 10, "output_tokens": 10, "total_tokens": 20}
                await self._say(connection, kind, item_id="i", content_index=0, transcript="hi", usage=usage)
            case "session.update":
                await self._say(connection, "session.updated", session=event["session"])
            case "close":
                await connection.close(event["code"], event["reason"])
            case "vanish":
                connection.transport.abort()
            case _:
                await connection.send(msgspec.json.encode(event).decode())

    @staticmethod
    async def _say(connection: ServerConnection, kind: str, **members) -> None:
        event = {"type": kind, "event_id": "event_x", **members}
        with contextlib.suppress(ConnectionClosed):
            await connection.send(msgspec.json.encode(event).decode())


class Hall:
    """A gateway in front of a speaker, an account with money, and the books."""

    def __init__(self, gateway: RunningGateway, speaker: Speaker, database: Database, redis: Redis, account: int):
        self.gateway = gateway
        self.speaker = speaker
        self.database = database
        self.ledger = Ledger(redis)
        telemetry = Telemetry(Registry(incarnation="test"), version=__version__)
        self.settler = Settler(database, redis, clock=SystemClock(), telemetry=telemetry)
        self.account = account

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.gateway.port}/v1/realtime?model=speaker"

    def connect(self, url: str = "", *, key: str | None = None, **options):
        text = self.gateway.key if key is None else key
        headers = {"authorization": f"Bearer {text}"} if text else {}
        return connect(url or self.url, additional_headers=headers, max_size=2**24, proxy=None, **options)

    async def spent(self) -> list[int]:
        while (await self.settler.settle_once()).more:
            pass
        rows = await self.database.fetch(
            "select -amount_nanos as nanos from entries where account_id = $1 and type = 'api_usage' order by seq",
            self.account,
        )
        return [row["nanos"] for row in rows]

    async def released(self) -> None:
        """Wait until nothing is held."""
        async with asyncio.timeout(PATIENCE_S):
            while (balance := await self.ledger.peek_balance(self.account)) is None or balance.in_flight:  # noqa: ASYNC110  Redis tells nobody
                await asyncio.sleep(0.02)
        assert balance.held_nanos == 0


@contextlib.asynccontextmanager
async def opened(database, redis_url, *, nanos: int = 10**10, server="direct", realtime: Realtime | None = None):
    speaker = Speaker()
    redis = Redis(redis_url, timeout_s=PATIENCE_S)
    await redis.connect()
    async with (
        Database(database, pool_size=2, timeout_s=PATIENCE_S) as books,
        speaker.running(),
        RunningGateway(
            Stores(database, redis_url),
            providers={
                "local": Provider(
                    adapter="openai",
                    base_url=f"{speaker.url}/v1",
                    api_key=Secret(PROVIDER_KEY),
                    models=("speaker", "writer"),
                )
            },
            models=PRICES,
            server=server,
            settings=Settings(realtime=realtime or Realtime()),
        ) as gateway,
    ):
        account = await find_account(books, gateway.key_id)
        await credit(books, account, type="bonus", amount_nanos=nanos, idempotency_key=f"open {gateway.key_id}")
        yield Hall(gateway, speaker, books, redis, account)
    await redis.close()


@pytest.fixture
async def hall(database, redis_url):
    async with opened(database, redis_url) as hall:
        yield hall


async def next_of(connection, kind: str):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            event = msgspec.json.decode(await connection.recv())
            if event["type"] == kind:
                return event


async def closed(connection) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    return connection.close_code, connection.close_reason


@pytest.mark.parametrize("server", SERVERS)
async def test_the_sdk_converses_and_pays_for_each_answer(database, redis_url, server):
    """Case 19."""
    async with opened(database, redis_url, server=server) as hall:
        client = hall.gateway.openai()
        async with client.realtime.connect(model="speaker") as connection:
            kinds = []
            for _ in range(2):
                await connection.response.create()
                async for event in connection:
                    kinds.append(event.type)
                    if event.type == "response.done":
                        break
        await hall.released()

        assert kinds[0] == "session.created"
        assert kinds.count("response.done") == 2
        assert await hall.spent() == [ANSWER_NANOS] * 2
        (path,) = hall.speaker.paths
        assert path == "/v1/realtime?model=gpt-realtime"
        headers = dict(hall.speaker.headers[0])
        assert headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        record = (await hall.gateway.records(1))[0]
        assert (record.status, record.route, record.cost_nanos) == (101, "/v1/realtime", 2 * ANSWER_NANOS)
        rows = await hall.database.fetch("select tags, dialect, input_audio_tokens from usage_records")
        assert {row["dialect"] for row in rows} == {"openai.realtime"}
        assert {row["input_audio_tokens"] for row in rows} == {80}


async def test_a_browsers_key_is_among_its_subprotocols_and_goes_no_further(hall):
    """Case 19."""
    offered = ["realtime", f"openai-insecure-api-key.{hall.gateway.key}", "openai-beta.realtime-v1"]

    async with hall.connect(key="", subprotocols=offered) as connection:
        await next_of(connection, "session.created")
        assert connection.subprotocol == "realtime"

    said = str(hall.speaker.headers) + str(hall.speaker.paths)
    assert hall.gateway.key not in said
    assert "insecure" not in said
    assert "openai-beta.realtime-v1" in said


@pytest.mark.parametrize(
    "path",
    ["/openai/realtime?deployment=speaker&api-version=2025-04-01-preview", "/openai/v1/realtime?model=speaker"],
)
async def test_azures_spelling_leads_there_too(hall, path):
    url = f"ws://127.0.0.1:{hall.gateway.port}{path}"

    async with connect(url, additional_headers={"api-key": hall.gateway.key}, proxy=None) as connection:
        await next_of(connection, "session.created")

    assert hall.speaker.paths == ["/v1/realtime?model=gpt-realtime"]
    assert "api-key" not in dict(hall.speaker.headers[0])


async def test_large_messages_pass_whole_both_ways(hall):
    """Case 19."""
    text = msgspec.json.encode({"type": "echo", "audio": "A" * 2**20}).decode()
    binary = bytes(range(256)) * 4096

    async with hall.connect() as connection:
        await next_of(connection, "session.created")
        await connection.send(text)
        assert await connection.recv() == text
        await connection.send(binary)
        assert await connection.recv() == binary

    assert hall.speaker.heard == [text, binary]


@pytest.mark.parametrize("code", [1000, 4000])
async def test_codes_pass_from_provider_to_caller(hall, code):
    async with hall.connect() as connection:
        await connection.send(msgspec.json.encode({"type": "close", "code": code, "reason": "enough"}).decode())

        assert await closed(connection) == (code, "enough")


@pytest.mark.parametrize("code", [1000, 4000])
async def test_codes_pass_from_caller_to_provider(hall, code):
    async with hall.connect() as connection:
        await next_of(connection, "session.created")
        await connection.close(code, "bye")
    await asyncio.wait_for(hall.speaker.left.wait(), PATIENCE_S)

    assert hall.speaker.closed == [(code, "bye")]


async def test_a_provider_that_vanishes_is_1011(hall):
    async with hall.connect() as connection:
        await connection.send('{"type":"vanish"}')

        assert (await closed(connection))[0] == 1011
    await hall.released()


async def test_a_caller_who_leaves_pays_for_what_was_heard(hall):
    hall.speaker.go_on.clear()
    connection = await hall.connect()
    await connection.send('{"type":"response.create"}')
    await next_of(connection, "response.output_audio.delta")
    connection.transport.abort()
    await hall.released()
    hall.speaker.go_on.set()
    await asyncio.wait_for(hall.speaker.left.wait(), PATIENCE_S)

    (nanos,) = await hall.spent()
    # A second of audio is 20 tokens, of which the estimate may miss the frame around it.
    assert 18 * 20_000 <= nanos <= 20 * 20_000
    row = await hall.database.fetch_row("select usage_source, outcome from usage_records where cost_nanos > 0")
    assert tuple(row) == ("partial", "caller_gone")


async def test_what_is_written_down_has_a_price_of_its_own(hall):
    session = {"model": "gpt-realtime", "audio": {"input": {"transcription": {"model": "writer"}}}}

    async with hall.connect() as connection:
        await connection.send(msgspec.json.encode({"type": "session.update", "session": session}).decode())
        await connection.send('{"type":"input_audio_buffer.commit"}')
        await next_of(connection, "conversation.item.input_audio_transcription.completed")
    await hall.released()

    assert await hall.spent() == [20 * 5000]


async def test_a_session_can_not_go_over_to_what_may_not_be_called(hall):
    async with hall.connect() as connection:
        await connection.send('{"type":"session.update","session":{"model":"gpt-unknown"}}')
        error = await next_of(connection, "error")

        assert error["error"]["code"] == "model_not_priced"
        assert (await closed(connection))[0] == 1008


async def test_when_the_money_is_used_up_the_conversation_ends(database, redis_url):
    realtime = Realtime(input_tokens=100, output_tokens=50)
    # Held for each: 100 in at the dearest kind, 50 out.
    hold = 100 * 10_000 + 50 * 20_000
    async with opened(database, redis_url, nanos=hold + 2 * ANSWER_NANOS - 1, realtime=realtime) as hall:
        async with hall.connect() as connection:
            for _ in range(2):
                await connection.send('{"type":"response.create"}')
                await next_of(connection, "response.done")
            error = await next_of(connection, "error")

            assert error["error"]["code"] == "insufficient_credit"
            assert await closed(connection) == (1008, "insufficient_credit")
        await hall.released()

        assert await hall.spent() == [ANSWER_NANOS] * 2
        with pytest.raises(InvalidStatus) as refused:
            await hall.connect()
        assert refused.value.response.status_code == 402


@pytest.mark.parametrize(
    ("url", "key", "status", "code"),
    [
        ("?model=speaker", "gw_live_wrong", 401, "invalid_api_key"),
        ("?model=speaker", "", 401, "invalid_api_key"),
        ("?model=nobodys", None, 404, "model_not_found"),
        ("", None, 400, "missing_required_parameter"),
        ("?intent=transcription", None, 400, "missing_required_parameter"),
        ("?call_id=rtc_1", None, 400, None),
    ],
)
async def test_what_is_wrong_is_said_before_anything_is_opened(hall, url, key, status, code):
    with pytest.raises(InvalidStatus) as refused:
        await hall.connect(f"ws://127.0.0.1:{hall.gateway.port}/v1/realtime{url}", key=key)

    response = refused.value.response
    error = msgspec.json.decode(response.body)["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert "x-gateway-request-id" in response.headers
    assert hall.speaker.paths == []


async def test_a_provider_that_refuses_is_passed_on(hall, database, redis_url):
    providers = {
        "local": Provider(
            adapter="openai", base_url="http://127.0.0.1:9/v1", api_key=Secret("k"), models=("speaker",)
        )
    }
    async with RunningGateway(
        Stores(database, redis_url), providers=providers, models={"speaker": Model(free=True)}
    ) as gateway:
        url = f"ws://127.0.0.1:{gateway.port}/v1/realtime?model=speaker"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers={"authorization": f"Bearer {gateway.key}"}, proxy=None)

    assert refused.value.response.status_code == 502


async def test_silence_and_length_have_an_end(database, redis_url):
    for realtime in (Realtime(idle_s=0.2), Realtime(total_s=0.3)):
        async with opened(database, redis_url, realtime=realtime) as hall, hall.connect() as connection:
            assert (await closed(connection))[0] == 1001
            await hall.released()


@pytest.mark.parametrize("verb", ["client_secrets", "sessions", "transcription_sessions", "calls"])
async def test_keys_that_pass_the_gateway_by_are_not_given_out(hall, verb):
    answered = await hall.gateway.ask(b"{}", path=b"/v1/realtime/" + verb.encode())

    assert answered.status == 403
    assert "gateway key" in answered.error["message"]


async def test_without_a_handshake_it_says_what_it_is(hall):
    answered = await hall.gateway.ask(method=b"GET", path=b"/v1/realtime?model=speaker")
    elsewhere = await hall.gateway.ask(
        b"{}", path=b"/v1/nowhere", headers=[(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    )

    assert (answered.status, answered.error["code"]) == (400, "websocket_required")
    assert elsewhere.status == 403


async def test_a_stopping_server_lets_the_answer_under_way_end(hall):
    hall.speaker.go_on.clear()
    async with hall.connect() as talking, hall.connect() as silent:
        await next_of(silent, "session.created")
        await talking.send('{"type":"response.create"}')
        await next_of(talking, "response.output_audio.delta")

        for connection in list(hall.gateway.server.server_state.connections):
            connection.shutdown()
        assert (await closed(silent))[0] == 1001
        hall.speaker.go_on.set()
        await next_of(talking, "response.done")
        assert (await closed(talking))[0] == 1001
    await hall.released()

    assert await hall.spent() == [ANSWER_NANOS]


async def test_a_caller_who_does_not_read_is_not_read_for(hall):
    """What waits for a slow caller is bounded: the provider is no longer read."""
    piece = b"x" * 2**20
    connection = await hall.connect(max_queue=1)
    await next_of(connection, "session.created")
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            while sent < 256:
                await connection.send(piece)
                sent += 1

    # Sockets and queues of both ends and of the gateway have room for some dozens of them.
    assert sent < 256, "256 MiB found room somewhere"
    # The provider can't be told either, for it does not read. It is let go all the same, long before a ping would fail.
    connection.transport.abort()
    async with asyncio.timeout(PING_S / 2):
        await hall.speaker.left.wait()
