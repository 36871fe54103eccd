"""The end of a direct response: what it waits for, and that nothing is cut or mixed up by its waiting. And which
requests are understood.
"""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable

import pytest
import uvicorn

from gateway.downstream import DIRECT
from gateway.gate import Judged
from gateway.infra.redis.connection import Connection
from gateway.server.cycle import DirectCycle
from gateway.server.protocol import HEAD_BYTES_MAX, PIPELINED_MAX, DirectProtocol, sweep
from gateway.server.websocket import WebSocketProtocol

REQUEST = b"POST /%b HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    """A transport that writes down what is done with it, in a list that several can share."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self._name = name
        self._log = log
        self._closing = False
        #: Nothing more is written.
        self.ended = False
        self.protocol: asyncio.BaseProtocol | None = None
        #: Written, and not taken by the kernel.
        self.waiting_bytes = 0
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def write(self, data: bytes) -> None:
        assert not self.ended
        self._log.append((self._name, bytes(data)))

    def close(self) -> None:
        if not self._closing:
            self._closing = self.ended = True
            self._log.append((self._name, b"closed"))

    def write_eof(self) -> None:
        assert not self.ended
        self.ended = True
        self._log.append((self._name, b"ended"))

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name, default=None):
        return default


class Caller:
    """One connection of a caller; `respond` is called with each request's direct cycle and its path."""

    def __init__(
        self,
        log: list[tuple[str, bytes]],
        respond: Callable[[DirectCycle, str], object],
        *,
        state: uvicorn.server.ServerState | None = None,
        connections_max: int | None = None,
        gate: object = None,
    ) -> None:
        async def app(scope, receive, send) -> None:
            answer = respond(scope["extensions"][DIRECT], scope["path"])
            if asyncio.iscoroutine(answer):
                await answer

        app.gate = gate  # type: ignore[attr-defined]
        config = uvicorn.Config(
            app,
            interface="asgi3",
            proxy_headers=False,
            http=DirectProtocol,
            log_config=None,
            lifespan="off",
            server_header=False,
            limit_concurrency=connections_max,
        )
        config.load()
        self.wire = Wire("caller", log)
        self.protocol = DirectProtocol(config, state or uvicorn.server.ServerState(), {})
        self.wire.protocol = self.protocol
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


async def test_who_reads_nothing_for_too_long_is_cut_off(log):
    state = uvicorn.server.ServerState()
    caller = Caller(log, lambda cycle, _: cycle.start(200, [], chunked=True), state=state)
    caller.ask(b"")

    def cut_at(now_s: float, waiting_bytes: int) -> bool:
        caller.wire.waiting_bytes = waiting_bytes
        sweep(state, now_s=now_s, keep_alive_s=10_000, write_timeout_s=300)
        return ("caller", b"closed") in log

    # All is read; then something waits, and a little of it is taken just in time.
    assert not any(cut_at(now_s, 0) for now_s in (0, 400))
    assert not any((cut_at(401, 1000), cut_at(700, 1000), cut_at(701, 999)))
    # More that is written is no sign of life.
    assert not any((cut_at(900, 5000), cut_at(1000, 5000)))
    assert cut_at(1002, 5000)


async def test_a_conversation_with_one_who_reads_nothing_is_cut_off_too(log):
    async def app(scope, receive, send) -> None:
        pytest.fail("nothing is asked")

    config = uvicorn.Config(app, http=DirectProtocol, ws=WebSocketProtocol, log_config=None, lifespan="off")
    config.load()
    state, wire = uvicorn.server.ServerState(), Wire("caller", log)
    WebSocketProtocol(config=config, server_state=state, app_state={}).connection_made(wire)

    wire.waiting_bytes = 1000
    for now_s in (0, 300):
        sweep(state, now_s=now_s, keep_alive_s=1, write_timeout_s=300)
    assert log == []
    sweep(state, now_s=301, keep_alive_s=1, write_timeout_s=300)

    assert log == [("caller", b"closed")]


async def test_a_request_leaves_nothing_to_the_collector_of_cycles(log):
    cycles: list[weakref.ref[DirectCycle]] = []

    def respond(cycle: DirectCycle, path: str) -> None:
        cycles.append(weakref.ref(cycle))
        finish(cycle, b"")

    gc.disable()
    try:
        caller = Caller(log, respond)
        for _ in range(3):
            caller.ask(b"")
            await turns()
        # The connection keeps the newest.
        assert [cycle() is None for cycle in cycles] == [True, True, False]
    finally:
        gc.enable()


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


JAVA = (
    b"POST /java HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 5\r\nHost: gateway\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n\r\nhello"
)


@pytest.mark.parametrize("size", [1, 7, len(JAVA), 10_000])
async def test_a_wish_for_another_protocol_is_left_unheard(log, size):
    """The request is answered with its body, and so are those before and after it on the same connection."""
    seen: list[tuple[str, bytes, list[bytes]]] = []

    async def respond(cycle: DirectCycle, path: str) -> None:
        body, more = b"", True
        while more:
            message = await cycle.receive()
            body, more = body + message["body"], message["more_body"]
        seen.append((path, body, [name for name, _ in cycle.scope["headers"]]))
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    sent = JAVA + REQUEST % b"next" + JAVA
    for start in range(0, len(sent), size):
        caller.protocol.data_received(sent[start : start + size])
        await turns(2)
    await turns()

    assert [(path, body) for path, body, _ in seen] == [("/java", b"hello"), ("/next", b"{}"), ("/java", b"hello")]
    assert seen[0][2] == [b"connection", b"content-length", b"host", b"http2-settings"]
    assert b"".join(data for _, data in log).count(b"200 OK") == 3


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n", b"405"),
        (b"POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx", b"400"),
        (b"GET / HTTP/1.1\r\nhost: g\r\nHost: g\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\nhost: g\r\nhost: h\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"POST / HTTP/1.0\r\nhost: g\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"GET /" + b"%41" * 3000 + b" HTTP/1.1\r\nhost: g\r\n\r\n", b"414"),
        (b"GET / HTTP/2.0\r\nhost: g\r\n\r\n", b"505"),
        (b"GET /\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nhost: g\r\nx: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n", b"431"),
    ],
)
async def test_what_is_no_request_is_refused_with_a_request_id(log, request_, status):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"))

    caller.protocol.data_received(request_)

    (_, answer), ended = log
    head, _, body = answer.partition(b"\r\n\r\n")
    assert ended == ("caller", b"ended")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"x-request-id: " + json.loads(body)["error"]["request_id"].encode() in head


async def test_http_1_0_needs_no_host(log):
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()))

    caller.protocol.data_received(b"GET /old HTTP/1.0\r\n\r\n")
    await turns()

    assert b"/old" in log[0][1]


async def test_http_1_0_gets_no_answer_before_the_answer(log):
    """RFC 9110, section 10.1.1: it would take the 100 for the whole of it."""

    async def respond(cycle: DirectCycle, path: str) -> None:
        assert cycle.take_body() is None
        message = await cycle.receive()
        finish(cycle, message["body"])

    caller = Caller(log, respond)
    caller.protocol.data_received(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    await turns()
    caller.protocol.data_received(b"{}")
    await turns()

    assert [data[:12] for _, data in log] == [b"HTTP/1.1 200", b"closed"]
    assert log[0][1].endswith(b"{}")


NO_HTTP = [
    pytest.param(b"\0no request\r\n\r\n", id="not HTTP"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no host"),
    pytest.param(b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody", id="no host, but a body"),
    pytest.param(
        b"POST / HTTP/1.1\r\nhost: g\r\nx: %b\r\ncontent-length: 4\r\n\r\nbody" % (b"a" * HEAD_BYTES_MAX),
        id="too large",
    ),
]


@pytest.mark.parametrize("bad", NO_HTTP)
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_refusal_is_never_written_among_another_answer(log, bad, pieces):
    """Nor taken for the answer to the request before: that one ends as it would have, and the connection with it."""
    going = asyncio.Event()
    seen: list[tuple[str, bytes | None]] = []

    async def respond(cycle: DirectCycle, path: str) -> None:
        seen.append((path, cycle.take_body()))
        cycle.start(200, [], chunked=True)
        cycle.write(b"one")
        await going.wait()
        cycle.end(b"two")

    caller = Caller(log, respond)
    caller.ask(b"1")
    await turns()
    step = -(-len(bad) // pieces)
    for start in range(0, len(bad), step):
        caller.protocol.data_received(bad[start : start + step])
    caller.ask(b"never")
    await turns()
    assert len(log) == 1
    going.set()
    await turns()

    assert seen == [("/1", b"{}")]
    assert [data for _, data in log[1:]] == [b"3\r\ntwo\r\n0\r\n\r\n", b"closed"]


@pytest.mark.parametrize("bad", NO_HTTP)
async def test_answers_before_a_refusal_are_all_given(log, bad):
    seen: list[bytes | None] = []

    def respond(cycle: DirectCycle, path: str) -> None:
        seen.append(cycle.take_body())
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    caller.protocol.data_received(REQUEST % b"1" + REQUEST % b"2" + bad)
    await turns(20)

    assert seen == [b"{}", b"{}"]
    assert [data.partition(b"\r\n\r\n")[2] for _, data in log[:-1]] == [b"/1", b"/2"]
    assert log[-1] == ("caller", b"closed")


@pytest.mark.parametrize("bad", NO_HTTP)
async def test_a_refusal_after_an_answer_is_said(log, bad):
    """An answer that came before its request's body did is over all the same."""
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()))
    caller.protocol.data_received((REQUEST % b"early")[:-2])
    await turns()
    caller.protocol.data_received(b"{}")

    caller.protocol.data_received(bad)

    assert [data[:12] for _, data in log] == [b"HTTP/1.1 200", b"HTTP/1.1 4" + log[1][1][10:12], b"ended"]


BROKEN = b"POST /broken HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "written"), [(b"", [b"HTTP/1.1 400", b"ended"]), (b"half", [b"HTTP/1.1 200", b"closed"])]
)
async def test_a_broken_body_is_refused_while_nothing_was_said_and_cut_off_after(log, said, written):
    async def respond(cycle: DirectCycle, path: str) -> None:
        if said:
            cycle.start(200, [], chunked=True)
            cycle.write(said)
        await asyncio.get_running_loop().create_future()

    caller = Caller(log, respond)
    caller.protocol.data_received(BROKEN)
    await turns()
    caller.protocol.data_received(b"zz\r\n")
    await turns()

    assert [data[:12] for _, data in log] == written
    for cycle_task in list(caller.protocol.tasks):
        cycle_task.cancel()
    await turns()


async def test_a_broken_body_behind_an_answer_that_is_complete_only_closes(log):
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()))
    caller.protocol.data_received(BROKEN)
    await turns()

    caller.protocol.data_received(b"zz\r\n")

    assert [data[:12] for _, data in log] == [b"HTTP/1.1 200", b"closed"]


class Door:
    """A gate whose verdict on the next requests the test says: whose they are, and whether they are turned away."""

    def __init__(self) -> None:
        self.crowded = True
        self.key = "a"
        self.shut = True
        self.retry_after_s = 0.05
        self.asked: list[int] = []

    def is_crowded(self, running: int) -> bool:
        return self.crowded

    def judge(self, request, *, running: int, refusals: int) -> Judged | None:
        self.asked.append(refusals)
        if not self.key:
            return None
        if not self.shut:
            return Judged(self.key)
        return Judged(self.key, 503, b"content-length: 4\r\n", b"full", self.retry_after_s)


@pytest.fixture
def door() -> Door:
    return Door()


def turned_away(log: list[tuple[str, bytes]]) -> int:
    return sum(data.startswith(b"HTTP/1.1 503") and data.endswith(b"\r\n\r\nfull") for _, data in log)


async def test_who_is_turned_away_never_becomes_a_request(log, door):
    """Its body is read over, in however many pieces, and what comes behind it is a request again."""
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()), gate=door)

    request = REQUEST % b"1"
    caller.protocol.data_received(request[:-1])
    assert turned_away(log) == 1
    assert b"connection" not in log[0][1]
    caller.protocol.data_received(request[-1:])
    door.shut = False
    caller.ask(b"2")
    await turns()

    assert [data.partition(b"\r\n\r\n")[2] for _, data in log] == [b"full", b"/2"]


async def test_a_crowd_is_asked_for_at_each_request_and_the_door_only_in_one(log, door):
    door.crowded = False
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()), gate=door)

    caller.ask(b"1")
    await turns()

    assert (door.asked, turned_away(log)) == ([], 0)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_who_wants_the_connection_closed_gets_that_too(log, door, version):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"), gate=door)

    caller.protocol.data_received(b"GET / HTTP/%b\r\nhost: gateway\r\nconnection: close\r\n\r\n" % version)
    caller.ask(b"never")
    await turns()

    assert turned_away(log) == 1
    assert b"\r\nconnection: close\r\n" in log[0][1]
    assert log[1:] == [("caller", b"closed")]


@pytest.mark.parametrize("why", ["an answer is under way", "it waits to be told to go on", "nobody can tell"])
async def test_what_can_not_be_turned_away_at_the_door_goes_in(log, door, why):
    going = asyncio.Event()

    async def respond(cycle: DirectCycle, path: str) -> None:
        await going.wait()
        finish(cycle, path.encode())

    caller = Caller(log, respond, gate=door)
    request = REQUEST % b"1"
    if why == "an answer is under way":
        door.crowded = False
        caller.ask(b"0")
        door.crowded = True
    elif why == "nobody can tell":
        door.key = ""
    else:
        request = request.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n")
    caller.protocol.data_received(request)
    going.set()
    await turns(20)

    assert turned_away(log) == 0
    assert any(data.endswith(b"/1") for _, data in log)


async def test_who_comes_back_too_soon_is_not_read_for_longer_and_longer(log, door):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"), gate=door)
    caller.ask(b"1")
    assert caller.wire.reading
    caller.ask(b"2")
    assert not caller.wire.reading

    async with asyncio.timeout(10):
        while not caller.wire.reading:  # noqa: ASYNC110 - the transport has no event
            await asyncio.sleep(0.01)
    caller.ask(b"3")
    assert not caller.wire.reading
    assert door.asked == [0, 0, 1]
    caller.protocol.connection_lost(None)
    assert turned_away(log) == 3


async def test_a_connection_of_several_keys_is_always_read(log, door):
    """A proxy's: one who comes too soon must not hold up the others."""
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()), gate=door)
    for key in ("a", "b", "b", "b"):
        door.key = key
        caller.ask(b"1")

    assert turned_away(log) == 4
    assert caller.wire.reading


async def test_who_is_let_in_again_has_a_clean_slate(log, door):
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()), gate=door)
    door.retry_after_s = 60.0
    caller.ask(b"1")
    door.shut = False
    caller.ask(b"2")
    await turns()
    door.shut = True
    caller.ask(b"3")

    assert door.asked == [0, 0, 0]


async def test_a_worker_that_leaves_reads_who_was_not_read(log, door):
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()), gate=door)
    door.retry_after_s = 60.0
    caller.ask(b"1", b"2")
    assert not caller.wire.reading

    door.crowded = False
    caller.protocol.leave(idle_s=60.0)
    assert caller.wire.reading
    caller.ask(b"3")
    await turns()

    assert b"connection: close" in log[-2][1]
    assert log[-2][1].endswith(b"/3")


async def test_a_broken_body_behind_a_refusal_at_the_door_only_closes(log, door):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"), gate=door)

    caller.protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")

    assert turned_away(log) == 1
    assert log[1:] == [("caller", b"ended")]


async def test_one_connection_more_than_there_may_be_is_told_so_and_closed(log):
    state = uvicorn.server.ServerState()
    others = [
        Caller([], lambda cycle, path: finish(cycle, path.encode()), state=state, connections_max=2) for _ in range(2)
    ]
    Caller(log, lambda *_: pytest.fail("nobody is asked"), state=state, connections_max=2)

    (_, answer), closed = log
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["error"]["code"] == "server_is_overloaded"
    assert closed == ("caller", b"closed")

    others[0].protocol.connection_lost(None)
    once_more: list[tuple[str, bytes]] = []
    Caller(once_more, lambda cycle, path: finish(cycle, path.encode()), state=state, connections_max=3).ask(b"here")
    await turns()
    assert b"/here" in b"".join(data for _, data in once_more)


@pytest.mark.parametrize("cut", [1, 20, 50])
async def test_a_body_is_not_counted_as_the_next_request_s_head(log, cut):
    body = b"a" * (2 * HEAD_BYTES_MAX)
    first = b"POST /first HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    second = REQUEST % b"second"
    caller = Caller(log, lambda cycle, path: finish(cycle, path.encode()))

    caller.protocol.data_received(first[:100])
    caller.protocol.data_received(first[100:] + second[:cut])
    caller.protocol.data_received(second[cut:])
    await turns()

    answers = b"".join(data for _, data in log)
    assert answers.count(b"200 OK") == 2
    assert b"/second" in answers


CHUNKED = b"POST /chunked HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize("size", [1, 10, 10_000])
async def test_trailers_are_no_headers(log, size):
    seen: list[tuple[list[bytes], bytes]] = []

    async def respond(cycle: DirectCycle, path: str) -> None:
        body, more = b"", True
        while more:
            message = await cycle.receive()
            body, more = body + message["body"], message["more_body"]
        seen.append(([name for name, _ in cycle.scope["headers"]], body))
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    sent = (CHUNKED + b"0\r\nhost: other\r\nauthorization: x\r\n\r\n") * 2
    for start in range(0, len(sent), size):
        caller.protocol.data_received(sent[start : start + size])
        await turns(2)
    await turns()

    assert seen == [([b"host", b"transfer-encoding"], b"{}")] * 2


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("size", [1000, 2 * HEAD_BYTES_MAX])
@pytest.mark.parametrize(
    ("begun", "more"),
    [(b"0\r\n", b"x: %b\r\n"), (b"0\r\nx: ", b"%b"), (b"1;x=", b"%b"), (b"0;x=", b"%b")],
    ids=["trailers", "a trailer", "beside a size", "beside the last size"],
)
async def test_what_is_no_body_has_an_end_behind_one_too(log, begun, more, size, answered):
    """Nobody reads it, but it would be kept: without an account, who was refused could fill the memory with it."""

    async def respond(cycle: DirectCycle, path: str) -> None:
        while not answered and (await cycle.receive()).get("more_body"):
            pass
        if not cycle.disconnected:
            finish(cycle, b"401")

    caller = Caller(log, respond)
    caller.protocol.data_received(CHUNKED)
    await turns()
    caller.protocol.data_received(begun)

    sent = 0
    while not caller.wire.ended and sent < 4 * HEAD_BYTES_MAX:
        caller.protocol.data_received(more % (b"a" * size))
        sent += size

    assert sent <= HEAD_BYTES_MAX + size
    assert len(caller.protocol.headers) == 2
    assert [data[:12] for _, data in log] == (
        [b"HTTP/1.1 200", b"closed"] if answered else [b"HTTP/1.1 431", b"ended"]
    )
    caller.protocol.connection_lost(None)
    for task in list(caller.protocol.tasks):
        task.cancel()
    await turns()


async def test_a_body_in_many_small_chunks_is_taken(log):
    caller = Caller(log, lambda *_: asyncio.Event().wait())
    caller.protocol.data_received(CHUNKED)
    for _ in range(20):
        caller.protocol.data_received(b"1;x=%b\r\na\r\n" % (b"y" * 8000))

    assert not caller.wire.is_closing()
    for task in list(caller.protocol.tasks):
        task.cancel()
    await turns()


@pytest.mark.parametrize("size", [1000, 5000, 2 * HEAD_BYTES_MAX])
async def test_a_head_without_end_is_refused(log, size):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"))
    caller.protocol.data_received(b"GET / HTTP/1.1\r\nx: ")

    sent = 0
    while not caller.wire.ended and sent < 4 * HEAD_BYTES_MAX:
        caller.protocol.data_received(b"a" * size)
        sent += size

    assert sent <= HEAD_BYTES_MAX + size
    assert log[0][1].startswith(b"HTTP/1.1 431")


async def test_nothing_is_read_while_a_request_waits_behind_another(log):
    """Without an account, one connection could fill the memory with requests, and keep the worker busy reading them."""
    going: dict[str, asyncio.Event] = {path: asyncio.Event() for path in ("/1", "/2", "/3")}

    async def respond(cycle: DirectCycle, path: str) -> None:
        await going[path].wait()
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    caller.ask(b"1", b"2", b"3")
    reading = [caller.wire.reading]
    for event in going.values():
        event.set()
        await turns()
        reading.append(caller.wire.reading)

    assert [data[-2:] for _, data in log] == [b"/1", b"/2", b"/3"]
    # While the last of them is under way, the next one may come.
    assert reading == [False, False, True, True]


async def test_who_does_not_wait_for_answers_loses_the_connection_behind_them(log):
    going = asyncio.Event()

    async def respond(cycle: DirectCycle, path: str) -> None:
        await going.wait()
        finish(cycle, path.encode())

    caller = Caller(log, respond)
    caller.ask(*(b"%d" % number for number in range(10 * PIPELINED_MAX)))
    assert len(caller.protocol.pipeline) == PIPELINED_MAX
    going.set()
    await turns(10 * PIPELINED_MAX)

    answers = [data for _, data in log]
    assert [data.rpartition(b"/")[2] for data in answers[:-1]] == [b"%d" % n for n in range(PIPELINED_MAX + 1)]
    assert b"connection: close" in answers[-2]
    assert answers[-1] == b"closed"


@pytest.mark.parametrize("how", ["direct", "send"])
async def test_who_still_sends_is_not_cut_off_from_the_answer(log, how):
    """A reset would take it away: proxies that close after each request would make a 502 of every refusal."""
    told: list[str] = []

    def respond(cycle: DirectCycle, path: str) -> object:
        if how == "direct":
            return finish(cycle, b"413")
        return answer(cycle)

    async def answer(cycle: DirectCycle) -> None:
        await cycle.send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"3")]})
        await cycle.send({"type": "http.response.body", "body": b"413"})
        told.append((await cycle.receive())["type"])

    state = uvicorn.server.ServerState()
    caller = Caller(log, respond, state=state)
    caller.protocol.data_received(
        b"POST / HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-length: 100\r\n\r\nbegun"
    )
    await turns()
    assert b"".join(data for _, data in log).endswith(b"413ended")
    assert b"connection: close" in log[0][1]

    # Nothing of what comes is looked at, and it comes for a while only.
    caller.protocol.data_received(b"\0" * 95 + REQUEST % b"never")
    await turns()
    now_s = asyncio.get_running_loop().time()
    sweep(state, now_s=now_s + 4, keep_alive_s=75, write_timeout_s=300)
    assert not caller.wire.is_closing()
    sweep(state, now_s=now_s + 6, keep_alive_s=75, write_timeout_s=300)
    assert caller.wire.is_closing()
    assert told == ["http.disconnect"] * (how == "send")


async def test_a_connection_that_only_lingers_does_not_hold_up_the_end(log):
    caller = Caller(log, lambda *_: pytest.fail("nobody is asked"))
    caller.protocol.data_received(b"no request\r\n\r\n")
    assert log[-1] == ("caller", b"ended")

    caller.protocol.leave(idle_s=10)

    assert log[-1] == ("caller", b"closed")


@pytest.mark.parametrize("sized", [False, True])
async def test_http_1_0_gets_no_chunks(log, sized):
    """RFC 9112, section 6.1. Its answer ends with the connection, or says how long it is."""

    async def respond(cycle: DirectCycle, path: str) -> None:
        headers = [(b"content-length", b"6")] if sized else []
        await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
        await cycle.send({"type": "http.response.body", "body": b"one", "more_body": True})
        await cycle.send({"type": "http.response.body", "body": b"two"})

    Caller(log, respond).protocol.data_received(b"GET / HTTP/1.0\r\n\r\n")
    await turns()

    head, *body, end = [data for _, data in log]
    assert b"transfer-encoding" not in head
    assert (b"".join(body), end) == (b"onetwo", b"closed")
