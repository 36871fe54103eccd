"""Callers who leave, and callers who read slowly."""

import asyncio
import socket

import msgspec
import pytest
import redis.asyncio

from tests.acceptance.answers import (
    ASK,
    ASK_STREAM,
    ASK_STREAM_USAGE,
    CHAT,
    MESSAGES,
    USAGE,
    chat_stream,
    delta,
    sse,
    stream_head,
)
from tests.gateways import ServedGateway, connect
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Until, answer, chunk, events, play

#: How soon a provider is let go once nobody wants its answer.
GONE_S = 1.0
WHERE = {
    "before the head": (),
    "before the first byte": (stream_head(),),
    "in the middle": (stream_head(), chunk(sse(delta("One ")))),
}


class Watched:
    """A script that plays some steps and then waits for the gateway to let go of it."""

    def __init__(self, *steps: bytes) -> None:
        self._steps = steps
        self.played = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, peer) -> None:
        self.left.clear()
        await peer.receive()
        for step in self._steps:
            await peer.send(step)
        self.played.set()
        await peer.gone()
        self.left.set()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("polite", [True, False], ids=["fin", "rst"])
async def test_a_caller_who_leaves_a_stream_ends_it_for_the_provider(stage, server, where, polite):
    """Case 81."""
    script = Watched(*WHERE[where])
    gateway, _ = await stage.gateway(script, server=server)

    for attempt in range(2):
        script.played.clear()
        connection = await gateway.connect()
        await connection.send(gateway.request(ASK_STREAM))
        await asyncio.wait_for(script.played.wait(), 10)
        if where == "in the middle":
            assert await connection.reader.readuntil(sse(delta("One ")))
        if polite:
            connection.writer.close()
        else:
            connection.abort()
        try:
            await asyncio.wait_for(script.left.wait(), GONE_S)
            break
        except TimeoutError:
            # Once more, in case it was the machine that was slow.
            assert attempt == 0

    record = (await gateway.records(attempt + 1))[-1]
    assert record.error_type == "caller_gone"
    assert record.status == 499
    assert record.aborted_by == ("" if where == "before the head" else "caller")


@pytest.mark.parametrize("begun", [False, True], ids=["no_head", "half_body"])
async def test_a_caller_who_leaves_a_plain_answer_ends_it_for_the_provider(stage, server, begun):
    """Case 82."""
    script = Watched(*([answer(CHAT)[:-20]] if begun else []))
    gateway, _ = await stage.gateway(script, server=server)

    for attempt in range(2):
        script.played.clear()
        connection = await gateway.connect()
        await connection.send(gateway.request(ASK))
        await asyncio.wait_for(script.played.wait(), 10)
        connection.abort()
        try:
            await asyncio.wait_for(script.left.wait(), GONE_S)
            break
        except TimeoutError:
            assert attempt == 0

    assert (await gateway.records(attempt + 1))[-1].error_type == "caller_gone"


async def test_the_official_client_breaking_out_of_its_loop(stage, server):
    """Case 81."""
    script = Watched(stream_head(), chunk(sse(*[delta(f"{number} ") for number in range(20)])))
    gateway, _ = await stage.gateway(script, server=server)

    async with await gateway.openai().chat.completions.create(model="gpt-x", messages=MESSAGES, stream=True) as parts:
        async for _ in parts:
            break

    await asyncio.wait_for(script.left.wait(), 10 * GONE_S)
    [record] = await gateway.records(1)
    assert record.aborted_by == "caller"
    assert record.usage_source == "partial"
    assert record.output_tokens > 0


async def test_usage_seen_before_the_caller_left_is_kept(stage):
    """Case 111: the report had come by; only the mark was missing."""
    script = Watched(stream_head(), chunk(sse(delta("One "), delta(finish="stop"), USAGE)))
    gateway, _ = await stage.gateway(script)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK_STREAM_USAGE))
    await connection.reader.readuntil(USAGE)
    connection.abort()

    [record] = await gateway.records(1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (20, 9, "reported")


async def test_callers_who_leave_leave_nothing_behind(stage, server):
    """Case 81: no task, no connection, no request that is still counted as running, after a thousand of them."""
    script = Watched(stream_head(), chunk(sse(delta("One "))))
    gateway, upstream = await stage.gateway(script, server=server)
    await gateway.ask(method=b"GET", path=b"/v1/models")
    before = len(asyncio.all_tasks())
    rounds = 40 if server == "direct" else 4

    async def come_and_go() -> None:
        for _ in range(rounds):
            connection = await connect(gateway.port)
            await connection.send(gateway.request(ASK_STREAM))
            await connection.reader.readuntil(sse(delta("One ")))
            connection.abort()

    await asyncio.gather(*(come_and_go() for _ in range(25)))
    await asyncio.wait_for(upstream.all_closed(), 30)

    records = await gateway.records(25 * rounds + 1)
    assert {record.status for record in records[1:]} == {499}
    async with asyncio.timeout(30):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110  tasks end after their connections
            await asyncio.sleep(0.01)
    assert "\ngateway_in_flight 0\n" in await gateway.metrics()


async def test_leaving_during_the_settlement_cancels_nothing(stage, server, caplog):
    """The answer broke off and is being settled when the caller goes: nobody's failure, and nothing is lost."""
    fail = asyncio.Event()
    gateway, _ = await stage.gateway(
        play(RECEIVE, stream_head(), chunk(sse(delta("One "))), Until(fail), CLOSE), server=server
    )
    connection = await gateway.connect()
    await connection.send(gateway.request(ASK_STREAM))
    await connection.reader.readuntil(sse(delta("One ")))

    async with redis.asyncio.Redis.from_url(gateway.stores.redis_url) as valkey:
        await valkey.execute_command("CLIENT", "PAUSE", 300, "WRITE")
        fail.set()
        await asyncio.sleep(0.1)
        connection.abort()
        await asyncio.sleep(0.05)
        await valkey.execute_command("CLIENT", "UNPAUSE")

    [record] = await gateway.records(1)
    assert record.error_type == "provider_disconnected"
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]


async def test_a_reader_who_comes_back_gets_everything(stage, server):
    """Case 83: a pause in reading pauses the provider, and no byte is lost."""
    blob = "x" * 4000
    data = chat_stream(*[blob] * 2000, usage=False)
    sent = asyncio.Event()

    async def script(peer) -> None:
        await peer.receive()
        await peer.send(events(*data))
        sent.set()
        await peer.gone()

    gateway, _ = await stage.gateway(script, server=server)
    connection = await gateway.connect()
    # A reader of its own, with a small window.
    connection.reader._limit = 1024

    await connection.send(gateway.request(ASK_STREAM))
    await connection.receive_head()
    await asyncio.sleep(0.3)
    received = b"".join([piece async for piece in connection.pieces()])

    assert received == sse(*data)
    await asyncio.wait_for(sent.wait(), 10)


CONFIG = """
[server]
grace_s = 1
[providers.local]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:PROVIDER_KEY"
[models."*"]
free = true
[overload]
lag_s = 0  # a slow machine must not refuse any of a thousand readers
"""
WINDOW_BYTES = 16 * 1024
BURST = chunk(sse(*[delta("x" * 1000)] * 50))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "readers", [pytest.param(100, id="100"), pytest.param(1000, id="1000", marks=pytest.mark.slow)]
)
async def test_readers_who_do_not_read_cost_little_memory(stage, readers):
    """Case 83: a provider that would send without end is stopped by its full socket; little is held for each."""
    sent_bytes = 0

    async def script(peer) -> None:
        nonlocal sent_bytes
        await peer.receive()
        # What waits should wait in the gateway, not in the kernel.
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WINDOW_BYTES)
        peer.writer.transport.set_write_buffer_limits(high=0)
        await peer.send(stream_head())
        for _ in range(4000):  # 250 MB, for each
            await peer.send(BURST)
            sent_bytes += len(BURST)

    upstream = await stage.upstream(script)
    async with ServedGateway(stage.stores, CONFIG.format(url=upstream.url)) as gateway:
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (gateway.key.encode(), len(ASK_STREAM), ASK_STREAM)
        )
        connections = [await connect(gateway.port, window_bytes=WINDOW_BYTES) for _ in range(readers)]
        try:
            # The first request brings in what every worker needs once.
            await connections[0].send(request)
            await connections[0].reader.readuntil(b"data: ")
            before_bytes = gateway.resident_bytes()
            for connection in connections:
                connection.writer.transport.pause_reading()
                if connection is not connections[0]:
                    await connection.send(request)
            async with asyncio.timeout(120):
                seen_bytes = -1
                # Until nobody moves: every socket on the way is full.
                while len(upstream.requests) < readers or sent_bytes != seen_bytes:
                    seen_bytes = sent_bytes
                    await asyncio.sleep(0.5)
            grown_bytes = gateway.resident_bytes() - before_bytes
        finally:
            for connection in connections:
                connection.abort()
        await asyncio.wait_for(upstream.all_closed(), 30)

    assert grown_bytes < 150 * 1024 * 1024
    # The rest is in the kernel's buffers.
    assert sent_bytes < readers * 16 * 1024 * 1024
    assert b"Traceback" not in gateway.log


async def test_who_reads_nothing_is_cut_off_and_the_provider_let_go(stage):
    async def script(peer) -> None:
        await peer.receive()
        await peer.send(stream_head())
        while True:
            await peer.send(BURST)

    upstream = await stage.upstream(script)
    config = CONFIG.format(url=upstream.url).replace("grace_s = 1", "grace_s = 1\nwrite_timeout_s = 1")
    async with ServedGateway(stage.stores, config) as gateway:
        connection = await connect(gateway.port, window_bytes=WINDOW_BYTES)
        connection.writer.transport.pause_reading()
        try:
            await connection.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (gateway.key.encode(), len(ASK_STREAM), ASK_STREAM)
            )
            async with asyncio.timeout(60):
                while not upstream.requests:  # noqa: ASYNC110  there is no event for it
                    await asyncio.sleep(0.05)
                # The caller is there still, and does nothing.
                await upstream.all_closed()
        finally:
            connection.abort()
    assert b"has read nothing for 1 s" in gateway.log


async def test_a_stream_is_passed_on_as_it_comes(stage, server):
    """Each event reaches the caller while the provider waits for the caller to have seen it."""
    turns = [asyncio.Event() for _ in range(5)]
    words = [sse(delta(f"{number}")) for number in range(5)]
    steps = [step for word, turn in zip(words, turns, strict=True) for step in (chunk(word), Until(turn))]
    end = sse(delta(finish="stop"), b"[DONE]")
    gateway, _ = await stage.gateway(play(RECEIVE, stream_head(), *steps, chunk(end), b"0\r\n\r\n"), server=server)
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK_STREAM))
    await connection.receive_head()
    seen = b""
    async for piece in connection.pieces():
        seen += piece
        for number, turn in enumerate(turns):
            if seen == b"".join(words[: number + 1]):
                turn.set()

    assert seen == b"".join(words) + end


async def test_two_requests_on_one_connection_after_a_stream(stage, server):
    """A connection serves on after a stream has ended on it."""
    gateway, _ = await stage.gateway(
        play(RECEIVE, events(*chat_stream("One")), RECEIVE, answer(CHAT), REPEAT), server=server
    )
    connection = await gateway.connect()

    for body in (ASK_STREAM, ASK, ASK_STREAM, ASK):
        await connection.send(gateway.request(body))
        answered = await connection.receive()
        assert answered.status == 200
        assert answered.whole
    assert msgspec.json.decode(answered.body)["id"] == "chatcmpl-1"
