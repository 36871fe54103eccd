"""The client against a real server: what is sent, what comes back, which connection serves next."""

import asyncio

import pytest

from gateway.api import Origin
from gateway.errors import (
    BadRequest,
    CallerGone,
    UpstreamDisconnected,
    UpstreamMalformed,
    UpstreamUnreachable,
)
from gateway.settings import Upstream
from gateway.upstream import UpstreamClient
from tests.gateway.upstream.bodies import PATIENT, Record, fetch, piped, request, until
from tests.upstreams import (
    CLOSE,
    HANG,
    RECEIVE,
    REPEAT,
    RESET,
    Peer,
    ScriptedUpstream,
    Until,
    answer,
    chunk,
    chunked,
    events,
    play,
)


def ordinary(response: bytes = answer(b'{"ok":true}')) -> ScriptedUpstream:
    return ScriptedUpstream(play(RECEIVE, response, REPEAT))


async def test_request_arrives_as_it_was_given(client: UpstreamClient) -> None:
    async with ordinary() as upstream:
        sent = request(
            upstream.origin, b"/v1/x?a=b%20c", headers=[(b"X-Odd-Case", b"v1"), (b"x-two", b"a"), (b"x-two", b"b")]
        )
        status, body = await fetch(client, sent)

        assert (status, body) == (200, b'{"ok":true}')
        (received,) = upstream.requests
        assert received.head == (
            b"POST /v1/x?a=b%%20c HTTP/1.1\r\n"
            b"host: 127.0.0.1:%d\r\n"
            b"content-length: 2\r\n"
            b"X-Odd-Case: v1\r\nx-two: a\r\nx-two: b" % upstream.port
        )
        assert received.body == b"{}"


@pytest.mark.parametrize("size_bytes", [0, 1, 16 * 1024, 16 * 1024 + 1, 3_000_000])
async def test_bodies_of_any_size_arrive_whole(client: UpstreamClient, size_bytes: int) -> None:
    async with ordinary() as upstream:
        await fetch(client, request(upstream.origin, body=b"z" * size_bytes))

        assert upstream.requests[0].body == b"z" * size_bytes
        assert upstream.requests[0].header(b"content-length") == b"%d" % size_bytes


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"HEAD", b"OPTIONS"])
async def test_a_method_without_content_announces_none(client: UpstreamClient, method: bytes) -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b""), REPEAT)) as upstream:
        await fetch(client, request(upstream.origin, method=method, body=b"", headers=[]))

        assert upstream.requests[0].head == b"%b /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d" % (
            method,
            upstream.port,
        )


async def test_head_has_lower_case_names_and_values_as_sent(client: UpstreamClient) -> None:
    fields = [(b"X-Request-ID", b"Req_1"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"X-Empty", b"")]
    async with ordinary(answer(b"{}", status=429, headers=fields)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        assert response.head.status == 429
        assert response.head.headers[:4] == [
            (b"x-request-id", b"Req_1"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-empty", b""),
        ]
        assert response.head.header(b"content-length") == b"2"


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (answer(b"hello"), b"hello"),
        (answer(b""), b""),
        (chunked(b"hel", b"lo"), b"hello"),
        (chunked(), b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    ],
)
@pytest.mark.parametrize("each", [None, 1])
async def test_a_whole_answer_leaves_its_connection_for_the_next(
    client: UpstreamClient, response: bytes, body: bytes, each: int | None
) -> None:
    async with ScriptedUpstream(play(RECEIVE, response, REPEAT, each=each)) as upstream:
        for number in range(3):
            answered = await client.send(request(upstream.origin), timeouts=PATIENT)
            record = await piped(answered)

            assert record.body == body
            assert (record.ends, record.errors) == (1, [])
            assert answered.complete
            assert answered.reused is (number > 0)

        assert upstream.connections == 1
        assert client.stats.idle == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        # More than was asked for: the answer is good, the connection is not.
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello!",
        chunked(b"hello") + b"HTTP/1.1",
    ],
)
async def test_a_connection_that_may_not_serve_again_does_not(client: UpstreamClient, response: bytes) -> None:
    async with ScriptedUpstream(play(RECEIVE, response, CLOSE)) as upstream:
        for _ in range(2):
            assert await fetch(client, request(upstream.origin)) == (200, b"hello")

        assert upstream.connections == 2
        assert client.stats.retried == 0


async def test_head_request_takes_no_body_and_keeps_the_connection(client: UpstreamClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    async with ScriptedUpstream(play(RECEIVE, head, RECEIVE, answer(b"full"))) as upstream:
        assert await fetch(client, request(upstream.origin, method=b"HEAD", body=b"")) == (200, b"")
        assert await fetch(client, request(upstream.origin)) == (200, b"full")

        assert upstream.connections == 1


async def test_body_after_a_head_request_is_not_taken_for_the_next_answer(client: UpstreamClient) -> None:
    wrong = answer(b"body of HEAD")
    async with ScriptedUpstream(play(RECEIVE, wrong, HANG), play(RECEIVE, answer(b"full"))) as upstream:
        assert await fetch(client, request(upstream.origin, method=b"HEAD", body=b"")) == (200, b"")
        assert await fetch(client, request(upstream.origin)) == (200, b"full")

        assert upstream.connections == 2


@pytest.mark.parametrize("each", [None, 1])
async def test_informational_answers_are_passed_over(client: UpstreamClient, each: int | None) -> None:
    early = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 199 Whatever\r\nx-early: 1\r\n\r\n"
    )
    async with ScriptedUpstream(play(RECEIVE, early + answer(b"late"), REPEAT, each=each)) as upstream:
        for _ in range(2):
            response = await client.send(request(upstream.origin), timeouts=PATIENT)
            assert response.head.status == 200
            assert [name for name, _ in response.head.headers] == [b"content-type", b"content-length"]
            assert await response.read(100) == b"late"

        assert upstream.connections == 1


async def test_trailers_are_kept_apart_from_headers(client: UpstreamClient) -> None:
    async with ordinary(chunked(b"a", b"b", trailers=[(b"X-Cost", b"12"), (b"x-two", b"")])) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        assert await response.read(100) == b"ab"

        assert response.trailers == [(b"x-cost", b"12"), (b"x-two", b"")]
        assert response.head.header(b"x-cost") is None


async def test_a_stream_is_handed_on_as_it_comes(client: UpstreamClient) -> None:
    go_on = asyncio.Event()
    head, _, tail = events(b"one", b"two").partition(chunk(b"data: two\n\n"))
    async with ScriptedUpstream(play(RECEIVE, head, Until(go_on), chunk(b"data: two\n\n") + tail)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Record()
        response.pipe(record)
        await record.fed.wait()
        assert record.body == b"data: one\n\n"

        go_on.set()
        await record.over.wait()
        assert record.body == b"data: one\n\ndata: two\n\n"
        assert record.ends == 1


async def test_chunks_of_one_read_come_joined(client: UpstreamClient) -> None:
    async with ordinary(chunked(*(b"%d," % number for number in range(100)))) as upstream:
        record = await piped(await client.send(request(upstream.origin), timeouts=PATIENT))

        assert record.body == b"".join(b"%d," % number for number in range(100))
        assert len(record.chunks) == 1


async def test_body_can_be_iterated(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, chunked(b"abc", b"def"), REPEAT, each=2)) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        assert b"".join([piece async for piece in response]) == b"abcdef"
        assert response.complete


async def test_read_refuses_or_cuts_what_is_too_long(client: UpstreamClient) -> None:
    async with ordinary(answer(b"0123456789")) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        assert await response.read(10) == b"0123456789"

        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        with pytest.raises(UpstreamMalformed):
            await response.read(9)

        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        assert await response.read(4, truncate=True) == b"0123"


async def test_cutting_an_endless_body_closes_its_connection(client: UpstreamClient) -> None:
    async def endless(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 500 Oops\r\n\r\n")
        while True:
            await peer.send(b"x" * 1000)

    async with ScriptedUpstream(endless) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        assert await response.read(64 * 1024, truncate=True) == b"x" * 64 * 1024
        await upstream.all_closed()


# -- what breaks off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [CLOSE, RESET])
@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
async def test_a_body_cut_short_is_never_an_end(client: UpstreamClient, response: bytes, ending: object) -> None:
    sent = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.receive()
        await peer.send(response)
        await sent.wait()  # an RST would overtake what was not read yet
        await (peer.close() if ending is CLOSE else peer.reset())

    async with ScriptedUpstream(cut) as upstream:
        answered = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Record()
        answered.pipe(record)
        await record.fed.wait()
        sent.set()
        await record.over.wait()

        assert record.body == b"half"
        assert [type(error) for error in record.errors] == [UpstreamDisconnected]
        assert not answered.complete
        assert client.stats.active == client.stats.idle == 0


async def test_a_reset_is_not_the_end_of_a_body_without_length(client: UpstreamClient) -> None:
    fed = asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await fed.wait()
        await peer.reset()

    async with ScriptedUpstream(cut) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Record()
        response.pipe(record)
        await record.fed.wait()
        fed.set()
        await record.over.wait()

        assert [type(error) for error in record.errors] == [UpstreamDisconnected]


@pytest.mark.parametrize("how", ["read", "iterate", "truncate"])
async def test_pulling_a_broken_body_raises_after_its_bytes(client: UpstreamClient, how: str) -> None:
    async with ScriptedUpstream(
        play(RECEIVE, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", CLOSE)
    ) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        if how == "read":
            with pytest.raises(UpstreamDisconnected):
                await response.read(100)
        elif how == "truncate":
            assert await response.read(100, truncate=True) == b"half"
            assert not response.complete
        else:
            pieces = aiter(response)
            assert await anext(pieces) == b"half"
            with pytest.raises(UpstreamDisconnected):
                await anext(pieces)


@pytest.mark.parametrize("ending", [CLOSE, RESET])
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 O", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_fresh_connection_that_ends_before_the_head_is_not_retried(
    client: UpstreamClient, first: bytes, ending: object
) -> None:
    step = CLOSE if ending is CLOSE else RESET
    async with ScriptedUpstream(play(RECEIVE, first, step)) as upstream:
        with pytest.raises(UpstreamDisconnected) as caught:
            await fetch(client, request(upstream.origin))

        assert caught.value.detail
        assert upstream.connections == 1


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x00",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 66_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
        b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 4_000,
    ],
)
@pytest.mark.parametrize("each", [None, 7])
async def test_what_is_not_http_is_malformed(client: UpstreamClient, response: bytes, each: int | None) -> None:
    each = each if len(response) < 1000 else None
    async with ScriptedUpstream(play(RECEIVE, response, HANG, each=each)) as upstream:
        with pytest.raises(UpstreamMalformed) as caught:
            await fetch(client, request(upstream.origin))

        assert caught.value.detail
        await upstream.all_closed()
        assert client.stats.active == client.stats.idle == 0


@pytest.mark.parametrize(
    "body",
    [
        b"4\r\nhalf\r\nxyz\r\n",
        b"4\r\nhalfwhole\r\n",
        b"4\r\nhalf\r\n0\r\nbad trailer\r\n\r\n",
        b"4\r\nhalf\r\n0\r\nx: " + b"t" * 1_000_000,
        b"4\r\nhalf\r\n1;" + b"e" * 1_000_000,
        b"4\r\nhalf\r\nfffffffffffffffff\r\n",
    ],
)
async def test_a_malformed_body_fails_after_its_good_part(client: UpstreamClient, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with ScriptedUpstream(play(RECEIVE, head + body, HANG)) as upstream:
        record = await piped(await client.send(request(upstream.origin), timeouts=PATIENT))

        assert record.body == b"half"
        assert [type(error) for error in record.errors] == [UpstreamMalformed]


async def test_a_head_of_just_under_the_bound_is_taken(client: UpstreamClient) -> None:
    value = b"v" * (64 * 1024 - 100)
    async with ordinary(answer(b"x" * 200_000, headers=[(b"x", value)])) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)

        assert response.head.header(b"x") == value
        assert await response.read(2**20) == b"x" * 200_000


async def test_redirects_are_answers_like_others(client: UpstreamClient) -> None:
    async with ordinary(answer(b"", status=307, headers=[(b"location", b"http://127.0.0.1:1/")])) as upstream:
        assert await fetch(client, request(upstream.origin)) == (307, b"")
        assert upstream.connections == 1


# -- stale connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [CLOSE, RESET])
async def test_a_connection_closed_under_the_request_is_replaced_once(client: UpstreamClient, ending: object) -> None:
    step = CLOSE if ending is CLOSE else RESET
    async with ScriptedUpstream(
        play(RECEIVE, answer(b"first"), RECEIVE, step), play(RECEIVE, answer(b"second"), REPEAT)
    ) as upstream:
        assert await fetch(client, request(upstream.origin)) == (200, b"first")
        response = await client.send(request(upstream.origin, body=b'{"n":2}'), timeouts=PATIENT)

        assert await response.read(100) == b"second"
        assert not response.reused
        assert [received.body for received in upstream.requests] == [b"{}", b'{"n":2}', b'{"n":2}']
        assert client.stats.retried == 1


async def test_a_second_failure_is_final(client: UpstreamClient) -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"first"), RECEIVE, CLOSE), play(RECEIVE, CLOSE)) as upstream:
        await fetch(client, request(upstream.origin))
        with pytest.raises(UpstreamDisconnected):
            await fetch(client, request(upstream.origin))

        assert len(upstream.requests) == 3


@pytest.mark.parametrize(
    "first", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"]
)
async def test_one_byte_of_an_answer_rules_a_retry_out(client: UpstreamClient, first: bytes) -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"first"), RECEIVE, first, CLOSE)) as upstream:
        await fetch(client, request(upstream.origin))
        with pytest.raises(UpstreamDisconnected):
            await fetch(client, request(upstream.origin))

        assert len(upstream.requests) == 2


async def test_a_body_in_pieces_is_never_sent_twice(client: UpstreamClient) -> None:
    async def body():
        yield b"once"

    async with ScriptedUpstream(play(RECEIVE, answer(b"first"), HANG), play(RECEIVE, CLOSE)) as upstream:
        await fetch(client, request(upstream.origin))
        with pytest.raises(UpstreamDisconnected):
            await fetch(client, request(upstream.origin, body=body()))

        assert len(upstream.requests) == 2


async def test_a_body_in_pieces_takes_no_connection_that_may_be_closing(client: UpstreamClient) -> None:
    async def body():
        yield b"once"

    async with ScriptedUpstream(
        play(RECEIVE, answer(b"1"), RECEIVE, RESET), play(RECEIVE, answer(b"2"), HANG)
    ) as upstream:
        await fetch(client, request(upstream.origin))

        status, _ = await fetch(client, request(upstream.origin, body=body()))

        assert status == 200
        assert upstream.connections == 2


async def test_a_connection_closed_while_idle_is_noticed(client: UpstreamClient) -> None:
    close = asyncio.Event()
    async with ScriptedUpstream(
        play(RECEIVE, answer(b"1"), Until(close)), play(RECEIVE, answer(b"2"), REPEAT)
    ) as upstream:
        await fetch(client, request(upstream.origin))
        assert client.stats.idle == 1

        close.set()
        await upstream.all_closed()
        await until(lambda: not client.stats.idle)

        assert await fetch(client, request(upstream.origin)) == (200, b"2")
        assert client.stats.retried == 0


async def test_bytes_while_idle_close_the_connection(client: UpstreamClient) -> None:
    push = asyncio.Event()
    parting = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    async with ScriptedUpstream(
        play(RECEIVE, answer(b"1"), Until(push), parting, HANG), play(RECEIVE, answer(b"2"), REPEAT)
    ) as upstream:
        await fetch(client, request(upstream.origin))
        push.set()
        await upstream.all_closed()

        assert client.stats.idle == 0
        assert await fetch(client, request(upstream.origin)) == (200, b"2")


# -- bodies in pieces -----------------------------------------------------------------------------------------------


async def test_pieces_are_chunked_unless_a_length_is_given(client: UpstreamClient) -> None:
    async def body():
        yield b"abc"
        yield b""
        yield b"defgh"

    async with ordinary() as upstream:
        await fetch(client, request(upstream.origin, body=body()))
        await fetch(client, request(upstream.origin, body=body(), content_length=8))

        assert [received.body for received in upstream.requests] == [b"abcdefgh", b"abcdefgh"]
        assert [received.header(b"transfer-encoding") for received in upstream.requests] == [b"chunked", None]
        assert upstream.requests[1].header(b"content-length") == b"8"


@pytest.mark.parametrize("announced", [2, 5])
async def test_a_body_of_another_length_than_announced_is_not_passed_off(
    client: UpstreamClient, announced: int
) -> None:
    async def body():
        yield b"abc"

    async with ordinary() as upstream:
        with pytest.raises(UpstreamDisconnected) as caught:
            await fetch(client, request(upstream.origin, body=body(), content_length=announced))

        assert "announced" in (caught.value.detail or "")
        await upstream.all_closed()
        assert client.stats.active == 0


async def test_what_the_body_raises_comes_out_of_send(client: UpstreamClient) -> None:
    async def body():
        yield b"abc"
        raise CallerGone

    async with ordinary() as upstream:
        with pytest.raises(CallerGone):
            await fetch(client, request(upstream.origin, body=body()))

        await upstream.all_closed()
        assert client.stats.active == 0


async def test_a_bug_in_the_body_is_logged_and_fails_the_request(
    client: UpstreamClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def body():
        yield b"abc"
        raise ValueError("a bug in a body")

    async with ordinary() as upstream:
        with pytest.raises(UpstreamDisconnected) as caught:
            await fetch(client, request(upstream.origin, body=body()))

        assert (caught.value.detail or "").startswith("request body:")
        await upstream.all_closed()
        await until(lambda: bool(caplog.records))
        assert "a bug in a body" in caplog.text


async def test_an_answer_before_the_body_was_sent_ends_the_sending(client: UpstreamClient) -> None:
    closed = asyncio.Event()

    async def body():
        try:
            yield b"abc"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def refuse(peer: Peer) -> None:
        await peer.receive_head()
        await peer.send(answer(b"too large", status=413))
        await peer.gone()

    async with ScriptedUpstream(refuse) as upstream:
        assert await fetch(client, request(upstream.origin, body=body())) == (413, b"too large")

        await closed.wait()
        await upstream.all_closed()
        assert client.stats.active == client.stats.idle == 0


async def test_an_answer_may_run_while_the_body_is_still_sent(client: UpstreamClient) -> None:
    go_on = asyncio.Event()

    async def body():
        yield b"one"
        await go_on.wait()
        yield b"two"

    async def echo(peer: Peer) -> None:
        await peer.receive_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"early"))
        go_on.set()
        await peer.reader.readuntil(b"0\r\n\r\n")
        await peer.send(chunk(b"late") + b"0\r\n\r\n")
        await peer.gone()

    async with ScriptedUpstream(echo) as upstream:
        assert await fetch(client, request(upstream.origin, body=body())) == (200, b"earlylate")
        assert client.stats.idle == 1


# -- no connection --------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_unreachable(client: UpstreamClient) -> None:
    async with ordinary() as upstream:
        origin = upstream.origin

    with pytest.raises(UpstreamUnreachable) as caught:
        await client.send(request(origin), timeouts=PATIENT)

    assert (caught.value.detail or "").startswith("connect:")
    assert client.stats.active == 0


@pytest.mark.parametrize("host", ["does-not-exist.invalid", "x" * 70 + ".invalid", "é" * 70, "a..b"])
async def test_a_name_without_address_is_unreachable(client: UpstreamClient, host: str) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        await client.send(request(Origin("http", host, 80)), timeouts=PATIENT)

    assert caught.value.detail
    assert client.stats.active == 0


async def test_every_address_of_a_name_is_tried(client: UpstreamClient) -> None:
    # localhost is ::1 and 127.0.0.1 on most machines, and the server listens on the second only.
    async with ordinary() as upstream:
        assert (await fetch(client, request(Origin("http", "localhost", upstream.port))))[0] == 200


async def test_an_unknown_scheme_is_refused(client: UpstreamClient) -> None:
    with pytest.raises(UpstreamUnreachable):
        await client.send(request(Origin("ftp", "127.0.0.1", 21)), timeouts=PATIENT)


async def test_a_request_that_would_split_is_not_sent(client: UpstreamClient) -> None:
    async with ordinary() as upstream:
        with pytest.raises(BadRequest):
            await client.send(request(upstream.origin, headers=[(b"x", b"a\r\nhost: other")]), timeouts=PATIENT)

        assert upstream.connections == 0
        assert client.stats.active == 0


# -- closing --------------------------------------------------------------------------------------------------------


async def test_closing_fails_what_is_under_way_and_leaves_no_socket() -> None:
    client = UpstreamClient(Upstream())
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    async with ScriptedUpstream(
        play(RECEIVE, head, HANG), play(RECEIVE, HANG), play(RECEIVE, answer(b"idle"), HANG)
    ) as upstream:
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        record = Record()
        response.pipe(record)
        waiting = asyncio.ensure_future(client.send(request(upstream.origin), timeouts=PATIENT))
        await upstream.received(2)
        await fetch(client, request(upstream.origin))
        assert repr(client) == "<UpstreamClient: 1 origins, 2 active, 1 idle, 0 waiting>"

        await client.close()

        assert [type(error) for error in record.errors] == [UpstreamDisconnected]
        with pytest.raises(UpstreamDisconnected):
            await waiting
        await upstream.all_closed()
        assert repr(client) == "<UpstreamClient: 0 origins, 0 active, 0 idle, 0 waiting>"
        with pytest.raises(UpstreamUnreachable):
            await client.send(request(upstream.origin), timeouts=PATIENT)


async def test_a_sink_that_raises_loses_its_connection_and_no_more(
    client: UpstreamClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Record):
        def data(self, chunk: bytes) -> None:
            raise ValueError("a bug in a sink")

    go_on = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
    async with ScriptedUpstream(
        play(RECEIVE, head, Until(go_on), b"half", HANG), play(RECEIVE, answer(b"fine"), REPEAT)
    ) as upstream:
        loop = asyncio.get_running_loop()
        reported: list[object] = []
        loop.set_exception_handler(lambda _, context: reported.append(context.get("exception")))
        response = await client.send(request(upstream.origin), timeouts=PATIENT)
        sink = Broken()
        response.pipe(sink)
        go_on.set()
        await sink.over.wait()

        assert [type(error) for error in sink.errors] == [UpstreamDisconnected]
        assert [type(error) for error in reported] == [ValueError]
        assert await fetch(client, request(upstream.origin)) == (200, b"fine")
