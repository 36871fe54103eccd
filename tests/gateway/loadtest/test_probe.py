import pytest

from gateway.infra.clock import SystemClock
from gateway.loadtest.origin import Origin, Unreachable
from gateway.loadtest.probe import Answer, probe
from tests.gateway.loadtest.provider import provider
from tests.upstreams import HANG, RECEIVE, ScriptedUpstream, answer, play

CLOCK = SystemClock()


async def probed(port: int, *, body: bytes = b"{}", timeout_s: float = 10.0) -> Answer:
    origin = Origin(f"http://127.0.0.1:{port}/v1/chat/completions")
    return await probe(origin, origin.render(body), clock=CLOCK, timeout_s=timeout_s)


async def test_one_answer_is_read_whole() -> None:
    async with provider() as port:
        found = await probed(port, body=b'{"model":"bench-burst-5"}')

    assert (found.status, found.streamed, found.events) == (200, True, 5)
    assert found.beginning.startswith(b"data: ")


async def test_only_the_beginning_of_a_long_answer_is_kept() -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"x" * 1_000_000))) as server:
        found = await probed(server.origin.port)

    assert found.beginning == b"x" * 2000
    assert not found.streamed


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "closed before the answer was whole"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "not HTTP/1.1"),
        (HANG, "no whole answer within 0.05 s"),
    ],
)
async def test_why_there_was_no_answer(step: bytes, why: str) -> None:
    async with ScriptedUpstream(play(RECEIVE, step)) as server:
        with pytest.raises(Unreachable, match=why):
            await probed(server.origin.port, timeout_s=10.0 if isinstance(step, bytes) else 0.05)
