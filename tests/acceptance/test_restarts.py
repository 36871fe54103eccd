"""Stopping, reloading and restarting while callers are served: none of them is cut off, and none hears of it."""

import asyncio
import signal
import socket

import pytest

from tests.acceptance.answers import ASK, ASK_STREAM, CHAT, LAST_CHUNK, chat_stream, sse, stream_head
from tests.gateways import PATIENCE_S, Answer, Connection, ServedGateway, connect
from tests.upstreams import RECEIVE, REPEAT, ScriptedUpstream, answer, chunk, play

STREAMS = 200
EVENTS = [sse(event) for event in chat_stream("Hello", " there")]


def config(upstream: ScriptedUpstream) -> str:
    return f"""
        [providers.local]
        adapter = "openai"
        base_url = "{upstream.url}/v1"
        api_key = "env:PROVIDER_KEY"
        [models."*"]
        free = true
    """


def request(gateway: ServedGateway, body: bytes) -> bytes:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return head % (gateway.key.encode(), len(body)) + body


class Streams:
    """A provider whose streams stop in the middle until the test says `finish`."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()

    async def __call__(self, peer) -> None:
        await peer.receive()
        await peer.send(stream_head() + chunk(EVENTS[0]))
        await self.finish.wait()
        for event in EVENTS[1:]:
            await peer.send(chunk(event))
        await peer.send(LAST_CHUNK)


async def begin(gateway: ServedGateway) -> Connection:
    """A stream whose first event is here."""
    connection = await connect(gateway.port)
    await connection.send(request(gateway, ASK_STREAM))
    head = await connection.receive_head()
    assert head.status == 200
    assert await anext(connection.pieces())
    return connection


async def rest_of(connection: Connection) -> bytes:
    pieces = [piece async for piece in connection.pieces()]
    connection.abort()
    return b"".join(pieces)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["stop", "reload"])
async def test_two_hundred_live_streams_lose_nothing(both_stores, number):
    provider = Streams()
    async with ScriptedUpstream(provider) as upstream:
        gateway = ServedGateway(both_stores, config(upstream), workers=2)
        async with gateway:
            connections = await asyncio.gather(*(begin(gateway) for _ in range(STREAMS)))
            gateway.signal(number)
            await gateway.logged(b"told to stop" if number == signal.SIGTERM else b"reloaded:")
            provider.finish.set()
            for rest in await asyncio.gather(*(rest_of(connection) for connection in connections)):
                assert rest.endswith(b"data: [DONE]\n\n")
            assert await gateway.stop() == 0


class Client:
    """Keeps one connection for all its requests, and opens another when it was told that this one ends."""

    def __init__(self, gateway: ServedGateway) -> None:
        self._gateway = gateway
        self._connection: Connection | None = None
        self.opened = 0

    async def ask(self) -> Answer:
        if self._connection is None:
            self._connection = await connect(self._gateway.port)
            self.opened += 1
        await self._connection.send(request(self._gateway, ASK))
        answered = await self._connection.receive()
        if answered.header(b"connection") == b"close":
            self.close()
        return answered

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


async def test_clients_that_keep_their_connections_hear_nothing_of_restarts(both_stores):
    """All workers are exchanged, three times, while twenty clients ask without a pause: no error of any kind."""
    upstream = ScriptedUpstream(play(RECEIVE, answer(CHAT), REPEAT))
    async with upstream, ServedGateway(both_stores, config(upstream), workers=2) as gateway:
        clients = [Client(gateway) for _ in range(20)]
        over = asyncio.Event()
        asked = 0

        async def ask_on(client: Client) -> None:
            nonlocal asked
            while not over.is_set():
                answered = await client.ask()
                assert (answered.status, answered.body) == (200, CHAT)
                asked += 1

        asking = [asyncio.ensure_future(ask_on(client)) for client in clients]
        for count in range(1, 4):
            gateway.signal(signal.SIGHUP)
            await gateway.logged(b"reloaded:", count=count)
            before = asked
            async with asyncio.timeout(PATIENCE_S):
                while asked < before + 100:
                    await asyncio.sleep(0.01)
                    for task in asking:
                        if task.done():
                            task.result()
        over.set()
        await asyncio.gather(*asking)
        # Each was sent to new workers each time, and no more often.
        assert max(client.opened for client in clients) <= 4
        assert sum(client.opened for client in clients) > 20
        for client in clients:
            client.close()


async def test_a_gateway_that_stops_says_so_on_the_connections_that_it_has(both_stores):
    """While a stream runs to its end, another request is refused in words, and its connection is closed."""
    provider = Streams()
    async with ScriptedUpstream(provider) as upstream, ServedGateway(both_stores, config(upstream)) as gateway:
        running = await begin(gateway)
        idle = await connect(gateway.port)
        await idle.send(b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n")
        assert (await idle.receive(method=b"GET")).status == 200
        gateway.signal(signal.SIGTERM)
        await gateway.logged(b"told to stop")
        # The workers hear of it a moment later.
        await asyncio.sleep(0.2)
        await idle.send(request(gateway, ASK))
        refused = await idle.receive()
        assert refused.status == 503
        assert refused.error["code"] == "server_is_overloaded"
        assert refused.header(b"connection") == b"close"
        assert refused.header(b"retry-after") in (b"1", b"2")
        await idle.closed()
        idle.abort()
        with socket.socket() as newcomer:
            assert newcomer.connect_ex(("127.0.0.1", gateway.port)) != 0
        provider.finish.set()
        assert (await rest_of(running)).endswith(b"data: [DONE]\n\n")
        assert await gateway.stop() == 0


async def test_what_outlasts_the_grace_time_is_told_so(both_stores):
    """A stream ends in an error event, what has no answer yet in a 503: neither in a connection that breaks."""
    streams, waiting = Streams(), asyncio.Event()

    async def script(peer) -> None:
        if not waiting.is_set():
            waiting.set()
            await streams(peer)
        else:
            await peer.receive()
            await asyncio.Event().wait()

    async with (
        ScriptedUpstream(script) as upstream,
        ServedGateway(both_stores, f"[server]\ngrace_s = 0.5\n{config(upstream)}") as gateway,
    ):
        stream = await begin(gateway)
        plain = await connect(gateway.port)
        await plain.send(request(gateway, ASK))
        while len(upstream.requests) < 2:  # noqa: ASYNC110  the provider is asked in its own time
            await asyncio.sleep(0.01)
        gateway.signal(signal.SIGTERM)

        rest = await rest_of(stream)
        refused = await plain.receive()
        plain.abort()
        assert await gateway.stop() == 0

    assert b'"message":"This gateway is stopping' in rest
    assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
    assert b"Traceback" not in gateway.log
    assert gateway.access_log.count(b'"error_type":"gateway_overloaded"') == 2
    assert gateway.access_log.count(b'"aborted_by":"gateway"') == 1
