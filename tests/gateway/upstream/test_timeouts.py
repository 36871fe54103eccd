"""Each phase has its limit, and says which it was. Limits in here are short, waits for them long."""

import asyncio

import pytest

from gateway.api import Origin
from gateway.errors import UpstreamSaturated, UpstreamTimeout
from gateway.settings import Timeouts, Upstream
from gateway.upstream import UpstreamClient
from gateway.upstream.deadlines import Deadlines
from tests.gateway.upstream.bodies import PATIENT, Record, fetch, piped, request, until
from tests.upstreams import HANG, RECEIVE, REPEAT, Peer, ScriptedUpstream, answer, play

SHORT_S = 0.2


def limits(**short: float) -> Timeouts:
    patient = {"connect_s": 60.0, "first_byte_s": 60.0, "idle_s": 60.0, "total_s": 60.0}
    return Timeouts(**(patient | short))


async def test_connecting_takes_at_most_connect_s(client: UpstreamClient) -> None:
    # TLS against a server that says nothing hangs in the handshake, which is part of connecting.
    async with ScriptedUpstream(play(HANG)) as upstream:
        origin = Origin("https", "127.0.0.1", upstream.port)
        with pytest.raises(UpstreamTimeout) as caught:
            await client.send(request(origin), timeouts=limits(connect_s=SHORT_S))

        assert (caught.value.detail or "").startswith("connect:")
        await upstream.all_closed()
        assert client.stats.active == 0


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_the_head_is_due_after_first_byte_s(client: UpstreamClient, first: bytes) -> None:
    async with ScriptedUpstream(play(RECEIVE, first, HANG)) as upstream:
        with pytest.raises(UpstreamTimeout) as caught:
            await client.send(request(upstream.origin), timeouts=limits(first_byte_s=SHORT_S))

        assert (caught.value.detail or "").startswith("first byte:")
        await upstream.all_closed()


async def test_a_silent_body_fails_after_idle_s(client: UpstreamClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    async with ScriptedUpstream(play(RECEIVE, head, HANG)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=limits(idle_s=SHORT_S))
        record = await piped(response)

        assert record.body == b"half"
        assert [type(error) for error in record.errors] == [UpstreamTimeout]
        assert (record.errors[0].detail or "").startswith("idle:")
        await upstream.all_closed()


async def test_idle_s_begins_anew_with_every_read(client: UpstreamClient) -> None:
    async def drip(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
        for _ in range(12):
            await asyncio.sleep(0.1)
            await peer.send(b".")

    async with ScriptedUpstream(drip) as upstream:
        # 1.2 s in all, never more than a fraction of 0.9 s in silence.
        assert await fetch(client, request(upstream.origin), limits(idle_s=0.9)) == (200, b"." * 12)


async def test_total_s_ends_even_a_lively_body(client: UpstreamClient) -> None:
    async def endless(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.send(b".")
            await asyncio.sleep(0.01)

    async with ScriptedUpstream(endless) as upstream:
        response = await client.send(request(upstream.origin), timeouts=limits(total_s=2 * SHORT_S))
        record = await piped(response)

        assert (record.errors[0].detail or "").startswith("total:")
        await upstream.all_closed()


async def test_the_takers_own_pause_is_not_the_providers_silence(client: UpstreamClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    async with ScriptedUpstream(play(RECEIVE, head, HANG)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=limits(idle_s=SHORT_S))
        record = Record()
        response.pipe(record)
        response.pause()
        await asyncio.sleep(4 * SHORT_S)
        assert not record.over.is_set()

        response.resume()
        await record.over.wait()
        assert (record.errors[0].detail or "").startswith("idle:")


async def test_a_body_the_provider_does_not_take_fails_after_idle_s(client: UpstreamClient) -> None:
    async def endless():
        while True:
            yield b"x" * 65536

    async def deaf(peer: Peer) -> None:
        await peer.receive_head()
        peer.writer.transport.pause_reading()
        await asyncio.sleep(60)

    async with ScriptedUpstream(deaf) as upstream:
        with pytest.raises(UpstreamTimeout) as caught:
            await client.send(request(upstream.origin, body=endless()), timeouts=limits(idle_s=SHORT_S))

        assert (caught.value.detail or "").startswith("send:")


async def test_a_caller_who_sends_slowly_is_not_the_providers_silence(client: UpstreamClient) -> None:
    async def slow():
        yield b"a"
        await asyncio.sleep(4 * SHORT_S)
        yield b"b"

    async with ScriptedUpstream(play(RECEIVE, answer(b"ok"))) as upstream:
        sent = request(upstream.origin, body=slow())
        assert await fetch(client, sent, limits(idle_s=SHORT_S, first_byte_s=60)) == (200, b"ok")


async def test_waiting_in_line_counts_as_connecting() -> None:
    client = UpstreamClient(Upstream(connections_max=1))
    async with ScriptedUpstream(play(RECEIVE, HANG)) as upstream:
        first = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(1)
        with pytest.raises(UpstreamSaturated):
            await client.send(request(upstream.origin), timeouts=limits(connect_s=SHORT_S))

        assert client.stats.waiting == 0
        first.cancel()
        await upstream.all_closed()
    await client.close()


async def test_idle_connections_are_closed_when_they_are_old() -> None:
    client = UpstreamClient(Upstream(keep_alive_s=SHORT_S))
    async with ScriptedUpstream(play(RECEIVE, answer(b"ok"), REPEAT)) as upstream:
        await fetch(client, request(upstream.origin))
        assert client.stats.idle == 1

        await upstream.all_closed()
        await until(lambda: client.stats.origins == 0)
    await client.close()


async def test_an_old_connection_is_not_used_even_before_it_is_swept() -> None:
    client = UpstreamClient(Upstream(keep_alive_s=0.05))
    async with ScriptedUpstream(play(RECEIVE, answer(b"ok"), REPEAT)) as upstream:
        await fetch(client, request(upstream.origin))
        await asyncio.sleep(0.1)
        await fetch(client, request(upstream.origin))

        assert upstream.connections == 2
    await client.close()


# -- the timer itself -----------------------------------------------------------------------------------------------


class Counted:
    def __init__(self, deadlines: Deadlines, until_s: float) -> None:
        self.deadlines = deadlines
        self.until_s = until_s
        self.checks: list[float] = []
        self.over = asyncio.Event()

    def check(self, now_s: float) -> None:
        self.checks.append(now_s)
        if now_s >= self.until_s:
            self.deadlines.watched.discard(self)
            self.over.set()


async def test_the_timer_runs_while_somebody_is_watched_and_then_stops() -> None:
    loop = asyncio.get_running_loop()
    rests: list[float] = []

    def rest(now_s: float) -> bool:
        rests.append(now_s)
        stopped.set()
        return False

    stopped = asyncio.Event()
    deadlines = Deadlines(rest)
    entry = Counted(deadlines, loop.time() + 0.25)
    deadlines.watch(entry)
    await entry.over.wait()
    await stopped.wait()

    assert len(entry.checks) >= 2
    assert len(rests) == 1
    again = Counted(deadlines, 0.0)
    deadlines.watch(again)
    await again.over.wait()
    deadlines.close()


async def test_a_timeout_never_comes_early(client: UpstreamClient) -> None:
    loop = asyncio.get_running_loop()
    async with ScriptedUpstream(play(RECEIVE, HANG)) as upstream:
        started_s = loop.time()
        with pytest.raises(UpstreamTimeout):
            await client.send(request(upstream.origin), timeouts=limits(first_byte_s=0.3))

        assert loop.time() - started_s >= 0.3
