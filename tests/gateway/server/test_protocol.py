"""The end of a direct response: what it waits for, and that nothing is cut or mixed up by its waiting."""

import asyncio
from collections.abc import Callable

import pytest
import uvicorn

from gateway.downstream import DIRECT
from gateway.infra.redis.connection import Connection
from gateway.server.protocol import DirectCycle, DirectProtocol

REQUEST = b"POST /%b HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    """A transport that writes down what is done with it, in a list that several can share."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self._name = name
        self._log = log
        self._closing = False

    def write(self, data: bytes) -> None:
        assert not self._closing
        self._log.append((self._name, bytes(data)))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._log.append((self._name, b"closed"))

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name, default=None):
        return default


class Caller:
    """One connection of a caller; `respond` is called with each request's direct cycle and its path."""

    def __init__(self, log: list[tuple[str, bytes]], respond: Callable[[DirectCycle, str], object]) -> None:
        async def app(scope, receive, send) -> None:
            answer = respond(scope["extensions"][DIRECT], scope["path"])
            if asyncio.iscoroutine(answer):
                await answer

        config = uvicorn.Config(app, http=DirectProtocol, log_config=None, lifespan="off", server_header=False)
        config.load()
        self.wire = Wire("caller", log)
        self.protocol = DirectProtocol(config, uvicorn.server.ServerState(), {})
        self.protocol.connection_made(self.wire)

    def ask(self, *paths: bytes) -> None:
        self.protocol.data_received(b"".join(REQUEST % path for path in paths))


@pytest.fixture
def log() -> list[tuple[str, bytes]]:
    return []


def finish(cycle: DirectCycle, body: bytes) -> None:
    cycle.start(200, [(b"content-length", b"%d" % len(body))], chunked=False)
    cycle.end(body)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_charge_is_on_its_way_before_the_last_bytes(log, chunked):
    """A kill between the two writes must not give an answer away."""
    redis = Connection("redis", timeout_s=5)
    redis.connection_made(Wire("redis", log))

    def respond(cycle: DirectCycle, path: str) -> None:
        cycle.start(200, [] if chunked else [(b"content-length", b"5")], chunked=chunked)
        cycle.write(b"wh")
        redis.tell("SETTLE")
        cycle.end(b"ole")

    Caller(log, respond).ask(b"")
    await turns()

    assert [name for name, _ in log] == ["caller", "redis", "caller"]
    assert b"SETTLE" in log[1][1]
    assert b"ole" in log[2][1]
    redis.give_up("the test is over")


async def test_pipelined_requests_are_answered_in_order(log):
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()))

    caller.ask(b"1", b"2", b"3")
    await turns(20)

    bodies = [data.partition(b"\r\n\r\n")[2] for _, data in log]
    assert bodies == [b"/1", b"/2", b"/3"]
    assert caller.protocol.idle_since_s > 0


async def test_a_request_that_comes_while_an_answer_ends_is_not_idle(log):
    going = asyncio.Event()

    async def respond(cycle: DirectCycle, path: str) -> None:
        if path == "/2":
            await going.wait()
        else:
            # Between the end of this one and its last bytes.
            asyncio.get_running_loop().call_soon(caller.ask, b"2")
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    caller.ask(b"1")
    await turns(10)

    assert len(log) == 1
    assert caller.protocol.idle_since_s == 0
    going.set()
    await turns(10)
    assert [data.partition(b"\r\n\r\n")[2] for _, data in log] == [b"/1", b"/2"]


async def test_stopping_does_not_cut_an_answer_that_is_ending(log):
    def respond(cycle: DirectCycle, path: str) -> None:
        finish(cycle, b"whole")
        caller.protocol.shutdown()

    caller = Caller(log, respond)
    caller.ask(b"")
    await turns()

    assert [data[-5:] for _, data in log] == [b"whole", b"losed"]


async def test_a_caller_who_leaves_while_the_answer_ends_gets_nothing(log):
    def respond(cycle: DirectCycle, path: str) -> None:
        finish(cycle, b"whole")
        caller.protocol.connection_lost(None)

    caller = Caller(log, respond)
    caller.ask(b"")
    await turns()

    assert b"whole" not in b"".join(data for _, data in log)
