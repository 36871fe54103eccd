"""Cancelled anywhere, the client leaves no socket open, no room taken, and no connection half read in a pool."""

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from gateway.api import Origin
from gateway.settings import Upstream
from gateway.upstream import UpstreamClient
from tests.gateway.upstream.bodies import PATIENT, Record, fetch, request, until
from tests.upstreams import HANG, RECEIVE, REPEAT, Peer, ScriptedUpstream, answer, play

HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"


async def cancel(task: "asyncio.Future[object]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def assert_empty(client: UpstreamClient) -> None:
    assert (client.stats.active, client.stats.idle, client.stats.waiting) == (0, 0, 0)


async def test_while_connecting(client: UpstreamClient) -> None:
    # 192.0.2.0/24 is for documentation: packets to it get lost, or are refused at once where there is no route.
    sending = asyncio.ensure_future(client.send(request(Origin("http", "192.0.2.1", 80)), timeouts=PATIENT))
    await asyncio.sleep(0.05)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert_empty(client)


async def test_while_resolving(client: UpstreamClient) -> None:
    sending = asyncio.ensure_future(client.send(request(Origin("http", "localhost", 1)), timeouts=PATIENT))
    await asyncio.sleep(0)
    await cancel(sending)

    assert_empty(client)


async def test_in_the_tls_handshake(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(HANG)) as upstream:
        sending = asyncio.ensure_future(
            client.send(request(Origin("https", "127.0.0.1", upstream.port)), timeouts=PATIENT)
        )
        await upstream.connected(1)
        await cancel(sending)

        await upstream.all_closed()
        assert_empty(client)


async def test_in_the_proxy_handshake() -> None:
    async with ScriptedUpstream(play(HANG)) as proxy:
        client = UpstreamClient(Upstream(), proxies={"https_proxy": f"http://127.0.0.1:{proxy.port}"})
        sending = asyncio.ensure_future(client.send(request(Origin("https", "provider.test", 443)), timeouts=PATIENT))
        await proxy.connected(1)
        await cancel(sending)

        await proxy.all_closed()
        assert_empty(client)
        await client.close()


async def test_while_waiting_for_the_head(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, HANG)) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(1)
        await cancel(sending)

        await upstream.all_closed()
        assert_empty(client)


async def test_while_the_head_is_coming_in(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, b"HTTP/1.1 200 OK\r\nx-half", HANG)) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(1)
        await asyncio.sleep(0.01)
        await cancel(sending)

        await upstream.all_closed()
        assert_empty(client)


@pytest.mark.parametrize("complete", [True, False])
async def test_between_the_head_arriving_and_send_returning(complete: bool) -> None:
    """The head is in, its future is resolved, but the caller is cancelled before it runs."""
    arrivals: list[asyncio.Future[None]] = []

    class Watching(UpstreamClient):
        def _start(self, *arguments, **named):
            response = super()._start(*arguments, **named)
            # Runs before the task that awaits the same future.
            response.arrived.add_done_callback(lambda _: sending.cancel())
            arrivals.append(response.arrived)
            return response

    client = Watching(Upstream())
    async with ScriptedUpstream(play(RECEIVE, answer(b"whole") if complete else HALF, HANG)) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        with pytest.raises(asyncio.CancelledError):
            await sending

        assert arrivals[0].done()
        if complete:
            # A whole answer that nobody wanted: its connection has already gone back, unharmed.
            assert (client.stats.active, client.stats.idle) == (0, 1)
        else:
            await upstream.all_closed()
            assert_empty(client)
    await client.close()


async def test_before_a_stale_connection_is_replaced(client: UpstreamClient) -> None:
    async def stale(peer: Peer) -> None:
        await peer.receive()
        await peer.send(answer(b"first"))
        await peer.receive()

    async with ScriptedUpstream(stale, play(RECEIVE, HANG)) as upstream:
        await fetch(client, request(upstream.origin))
        sending = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(3)
        await cancel(sending)

        await upstream.all_closed()
        assert_empty(client)


@pytest.mark.parametrize("how", ["read", "iterate"])
async def test_while_pulling_the_body(client: UpstreamClient, how: str) -> None:
    async with ScriptedUpstream(play(RECEIVE, HALF, HANG)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        async def pull() -> None:
            try:
                if how == "read":
                    await response.read(100)
                else:
                    async for _ in response:
                        pass
            finally:
                response.close()

        pulling = asyncio.ensure_future(pull())
        await asyncio.sleep(0.01)
        await cancel(pulling)

        await upstream.all_closed()
        assert_empty(client)


async def test_closing_a_piped_response_is_silent_and_may_be_repeated(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, HALF, HANG)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Record()
        response.pipe(record)
        await record.fed.wait()
        response.close()
        response.close()

        await upstream.all_closed()
        assert_empty(client)
        assert not record.over.is_set()


@pytest.mark.parametrize("held", [True, False])
async def test_a_sink_may_close_from_inside_its_data(client: UpstreamClient, held: bool) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(HALF if held else HALF.partition(b"half")[0])
        await go_on.wait()
        await peer.send(b"whole" if held else b"halfwhole")
        await peer.gone()

    class Closing(Record):
        def data(self, chunk: bytes) -> None:
            super().data(chunk)
            response.close()

    async with ScriptedUpstream(script) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        if held:
            await asyncio.sleep(0.02)
        sink = Closing()
        response.pipe(sink)
        go_on.set()
        await upstream.all_closed()

        assert not sink.over.is_set()
        assert len(sink.chunks) == 1
        assert_empty(client)


async def test_closing_the_whole_answer_spares_the_connection(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"whole"), REPEAT)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        await response.read(100)
        other = asyncio.ensure_future(fetch(client, request(upstream.origin)))
        await asyncio.sleep(0)
        response.close()  # the connection is the other's now

        assert await other == (200, b"whole")
        assert upstream.connections == 1


async def test_while_a_body_is_sent(client: UpstreamClient) -> None:
    ended = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"abc"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with ScriptedUpstream(play(RECEIVE, HANG)) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin, body=body()), timeouts=PATIENT))
        await upstream.connected(1)
        await asyncio.sleep(0.01)
        await cancel(sending)

        await ended.wait()
        await upstream.all_closed()
        assert_empty(client)


async def test_while_a_body_waits_for_a_slow_provider(client: UpstreamClient) -> None:
    asked = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 65536

    async def deaf(peer: Peer) -> None:
        await peer.receive_head()
        peer.writer.transport.pause_reading()
        await release.wait()
        peer.writer.transport.resume_reading()
        await peer.gone()

    release = asyncio.Event()
    async with ScriptedUpstream(deaf) as upstream:
        sending = asyncio.ensure_future(client.send(request(upstream.origin, body=body()), timeouts=PATIENT))
        await upstream.connected(1)
        seen = -1
        while seen != asked:
            seen = asked
            await asyncio.sleep(0.05)
        await cancel(sending)
        release.set()

        await upstream.all_closed()
        assert_empty(client)


async def test_in_line_for_a_connection() -> None:
    client = UpstreamClient(Upstream(connections_max=1))
    async with ScriptedUpstream(play(RECEIVE, HANG)) as upstream:
        first = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(1)
        second = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await until(lambda: client.stats.waiting == 1)
        await cancel(second)
        assert client.stats.waiting == 0
        await cancel(first)

        await upstream.all_closed()
        assert_empty(client)
    await client.close()


async def test_many_at_random_moments_leave_nothing_behind() -> None:
    """Requests of all kinds, cancelled after 0 to 39 turns of the loop, over a pool that is too small for them."""
    client = UpstreamClient(Upstream(connections_max=3))
    slow = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"piece"
            await asyncio.sleep(0)

    async with ScriptedUpstream(play(RECEIVE, slow, REPEAT, each=9)) as upstream:
        for number in range(120):
            payload = body() if number % 3 == 0 else b"{}"
            asked = [
                asyncio.ensure_future(fetch(client, request(upstream.origin, body=payload if not index else b"{}")))
                for index in range(4)
            ]
            for _ in range(number % 40):
                await asyncio.sleep(0)
            for task in asked[: number % 4 + 1]:
                task.cancel()
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert all(
                isinstance(result, asyncio.CancelledError) or result == (200, b"hello") for result in results
            ), results
            assert client.stats.active == client.stats.waiting == 0

        assert await fetch(client, request(upstream.origin)) == (200, b"hello")
        await client.close()
        await upstream.all_closed()


async def test_cancelling_over_tls_closes_the_socket() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    with authority.cert_pem.tempfile() as ca_file:
        client = UpstreamClient(Upstream(ca_file=ca_file))
        async with ScriptedUpstream(play(RECEIVE, HALF, HANG), tls=server) as upstream:
            response = await client.send(request(Origin("https", "localhost", upstream.port)), timeouts=PATIENT)
            reading = asyncio.ensure_future(response.read(100))
            await asyncio.sleep(0.01)
            await cancel(reading)
            response.close()

            await upstream.all_closed()
            assert_empty(client)
        await client.close()
