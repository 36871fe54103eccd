"""Everything that can go wrong at a provider, with another one to go to and without: what the caller sees, how many
calls are made, and what the metrics say.

A fault is played for every connection. `alone` is what a caller without another provider sees, for a plain answer and
for a stream; `reason` is what the metrics call it. Where another provider could answer, the caller sees that answer,
unless the first byte was sent before things went wrong, or the fault is the caller's own.
"""

import asyncio
import re
import socket
import zlib
from dataclasses import dataclass, field

import pytest

from gateway.settings import Holdback, Routing, Settings, Timeouts
from tests.acceptance.answers import (
    ASK,
    ASK_STREAM_USAGE,
    CHAT,
    chat_stream,
    delta,
    error,
    sse,
    stream,
    stream_head,
)
from tests.upstreams import CLOSE, HANG, RECEIVE, REPEAT, RESET, Pause, Script, answer, chunk, play

TIMEOUTS = Timeouts(connect_s=2.0, first_byte_s=0.5, idle_s=0.5, total_s=30.0)
STREAM = sse(*chat_stream("Hel", "lo."))
HTML = [(b"content-type", b"text/html")]
OK = 200


def same(*parts: bytes) -> Script:
    return play(RECEIVE, *parts, REPEAT)


def refusal(status: int, **members: str) -> bytes:
    return answer(error(f"Status {status}.", **members), status=status)


@dataclass
class Fault:
    name: str
    #: What the provider does; None for one that is not there.
    script: Script | None
    #: Status and code of the answer where nobody else could help: plain, and streamed.
    alone: tuple[int, str | None] = (502, None)
    alone_stream: tuple[int, str | None] | None = None
    reason: str = ""
    #: False where the fault is not one that another provider could mend.
    mended: bool = True
    mended_stream: bool | None = None
    #: The provider's body, where it is what the caller sees.
    body: bytes | None = None
    tls: bool = False
    #: Requests the provider sees for each that is asked (0: it never gets to read one).
    calls: int = 1
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alone_stream = self.alone_stream or self.alone
        self.mended_stream = self.mended if self.mended_stream is None else self.mended_stream


def passed_on(status: int, reason: str, *, mended: bool, **members: str) -> Fault:
    body = error(f"Status {status}.", **members)
    return Fault(
        f"status_{status}",
        same(answer(body, status=status)),
        alone=(status, members.get("code")),
        reason=reason,
        mended=mended,
        body=body,
    )


HUNDRED = b"".join(chunk(sse(delta(f"{number} "))) for number in range(100))

FAULTS = [
    Fault("not_there", None, alone=(502, "upstream_unreachable"), reason="provider_unreachable", calls=0),
    Fault(
        "no_tls",
        play(b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE),
        alone=(502, "upstream_unreachable"),
        reason="provider_unreachable",
        tls=True,
        calls=0,
    ),
    Fault(
        "reset_before_the_head",
        play(RECEIVE, RESET),
        alone=(502, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "closed_before_the_head",
        play(RECEIVE, CLOSE),
        alone=(502, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "cut_inside_the_head",
        play(RECEIVE, b"HTTP/1.1 200 OK\r\ncontent-", CLOSE),
        alone=(502, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "reset_after_the_head",
        play(RECEIVE, stream_head(), Pause(0.05), RESET),
        alone=(200, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "reset_after_a_role",
        play(RECEIVE, stream_head() + chunk(sse(delta(role="assistant", content=""))), Pause(0.05), RESET),
        alone=(200, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "reset_after_the_first_event",
        play(RECEIVE, stream_head() + chunk(sse(delta("One "))), Pause(0.05), RESET),
        alone=(200, "upstream_connection_error"),
        reason="provider_disconnected",
        mended=False,
    ),
    Fault(
        "reset_after_the_hundredth_event",
        play(RECEIVE, stream_head() + HUNDRED, Pause(0.05), RESET),
        alone=(200, "upstream_connection_error"),
        reason="provider_disconnected",
        mended=False,
    ),
    Fault(
        "cut_inside_a_plain_body",
        play(
            RECEIVE,
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n" + CHAT[:40],
            CLOSE,
        ),
        alone=(502, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault(
        "cut_inside_a_chunk",
        play(
            RECEIVE,
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n40\r\n"
            + CHAT[:9],
            CLOSE,
        ),
        alone=(502, "upstream_connection_error"),
        reason="provider_disconnected",
    ),
    Fault("silence_before_the_head", play(RECEIVE, HANG), alone=(504, "upstream_timeout"), reason="provider_timeout"),
    Fault(
        "silence_after_the_head",
        play(RECEIVE, stream_head(), HANG),
        alone=(200, "upstream_timeout"),
        reason="provider_timeout",
    ),
    Fault(
        "silence_inside_a_plain_body",
        play(RECEIVE, b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{", HANG),
        alone=(504, "upstream_timeout"),
        reason="provider_timeout",
    ),
    Fault(
        "a_plain_body_by_drops",
        play(
            RECEIVE,
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n",
            *[step for _ in range(60) for step in (b" ", Pause(0.05))],
            HANG,
        ),
        alone=(504, "upstream_timeout"),
        reason="provider_timeout",
        settings={"timeouts": Timeouts(first_byte_s=5.0, idle_s=5.0, total_s=0.5)},
    ),
    Fault(
        "comments_and_no_token",
        play(
            RECEIVE, stream_head(), *[step for _ in range(20) for step in (chunk(b": wait\n\n"), Pause(0.05))], HANG
        ),
        alone=(200, "upstream_timeout"),
        reason="provider_timeout",
        settings={"timeouts": Timeouts(first_byte_s=5.0, idle_s=1.5, first_token_s=0.4)},
    ),
    Fault(
        "no_http",
        same(b"220 smtp.example ESMTP\r\n"),
        alone=(502, "upstream_protocol_error"),
        reason="provider_malformed",
    ),
    Fault(
        "a_head_that_never_ends",
        play(RECEIVE, b"HTTP/1.1 200 OK\r\n" + b"x-long: %b\r\n" % (b"y" * 1000) * 100, HANG),
        alone=(502, "upstream_protocol_error"),
        reason="provider_malformed",
    ),
    Fault(
        "elsewhere",
        same(answer(status=307, headers=[(b"location", b"http://elsewhere.example/")])),
        alone=(502, "upstream_redirect"),
        reason="provider_redirect",
    ),
    Fault(
        "a_page_of_html",
        same(answer(b"<html>502</html>", status=502, headers=HTML)),
        alone=(502, "upstream_error"),
        reason="provider_refused",
    ),
    Fault(
        "compressed_trouble",
        same(answer(zlib.compress(error("Oops."), wbits=31), status=500, headers=[(b"content-encoding", b"gzip")])),
        alone=(500, None),
        reason="provider_refused",
        body=error("Oops."),
    ),
    passed_on(400, "caller_refused", mended=False, code="unknown_parameter"),
    passed_on(404, "caller_refused", mended=True, code="model_not_found"),
    passed_on(413, "caller_refused", mended=False),
    passed_on(422, "caller_refused", mended=False),
    passed_on(408, "provider_refused", mended=True),
    passed_on(409, "provider_refused", mended=True),
    passed_on(429, "provider_throttled", mended=True, code="rate_limit_exceeded"),
    passed_on(500, "provider_refused", mended=True),
    passed_on(502, "provider_refused", mended=True),
    passed_on(503, "provider_refused", mended=True),
    passed_on(504, "provider_refused", mended=True),
    passed_on(529, "provider_refused", mended=True),
    *(
        Fault(f"status_{status}", same(refusal(status)), alone=(502, "upstream_auth"), reason="provider_credentials")
        for status in (401, 402, 403)
    ),
]


class Metrics:
    """Counters by name and labels."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, name: str, **labels: str) -> float:
        total = 0.0
        for line in self._text.splitlines():
            found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
            if found and all(f'{key}="{value}"' in found[1] for key, value in labels.items()):
                total += float(found[2])
        return total


@pytest.fixture
def closed_port() -> int:
    """A port of the loopback interface where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def faulty(stage, fault: Fault, closed_port: int, **more):
    """A gateway in front of a provider with this fault, and `more` providers after it."""
    if fault.script is None:
        upstream, url = None, f"http://127.0.0.1:{closed_port}/v1"
        provider = stage.provider(await stage.upstream(play(HANG)), base_url=url)
    else:
        upstream = await stage.upstream(fault.script)
        provider = stage.provider(upstream)
        if fault.tls:
            provider = stage.provider(upstream, base_url=f"https://127.0.0.1:{upstream.port}/v1")
    options = {"timeouts": TIMEOUTS} | fault.settings
    gateway, _ = await stage.gateway(play(HANG), providers={"bad": provider, **more}, **options)
    return gateway, upstream


def code_of(answered, *, streamed: bool) -> str | None:
    """The code in an error answer, or in the error event that ended a stream."""
    found = re.findall(rb'"code": ?(?:"([^"]*)"|null)', answered.body)
    assert found, answered
    return found[-1 if streamed else 0].decode() or None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_alone(stage, closed_port, fault):
    gateway, upstream = await faulty(stage, fault, closed_port)

    for ask, (status, code) in ((ASK, fault.alone), (ASK_STREAM_USAGE, fault.alone_stream)):
        answered = await gateway.ask(ask)

        assert answered.status == status, answered
        assert code_of(answered, streamed=status == OK) == code
        assert answered.header(b"x-gateway-attempts") == b"1"
        if fault.body is not None:
            assert answered.body == fault.body

    if upstream is not None and not fault.tls:
        assert len(upstream.requests) == 2 * fault.calls
    metrics = Metrics(await gateway.metrics())
    assert metrics.value("gateway_upstream_attempts_total", provider="bad", outcome=fault.reason) == 2
    assert metrics.value("gateway_fallbacks_total") == 0
    for record in await gateway.records(2):
        assert (record.error_type, record.attempts) == (fault.reason, 1)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_with_another_provider(stage, closed_port, fault):
    good = await stage.upstream(answers_both)
    gateway, upstream = await faulty(stage, fault, closed_port, good=stage.provider(good, priority=1))

    plain = await gateway.ask(ASK)
    streamed = await gateway.ask(ASK_STREAM_USAGE)

    for answered, mended, whole in ((plain, fault.mended, CHAT), (streamed, fault.mended_stream, STREAM)):
        if mended:
            assert (answered.status, answered.body, answered.whole) == (200, whole, True)
            assert answered.header(b"x-gateway-provider") == b"good"
        else:
            assert answered.header(b"x-gateway-provider") == b"bad"
            if fault.body is not None:
                assert (answered.status, answered.body) == (fault.alone[0], fault.body)
    mended = fault.mended + bool(fault.mended_stream)
    assert len(good.requests) == mended
    metrics = Metrics(await gateway.metrics())
    assert metrics.value("gateway_upstream_attempts_total", provider="good", outcome="ok") == mended
    failed = metrics.value("gateway_upstream_attempts_total", provider="bad", outcome=fault.reason)
    # A key that was refused or throttled is left alone: the second request does not ask there.
    expected = 1 if fault.reason in ("provider_credentials", "provider_throttled") else 2
    assert failed == expected
    assert metrics.value("gateway_fallbacks_total", reason=fault.reason) == min(mended, expected)
    if upstream is not None and not fault.tls:
        assert len(upstream.requests) == expected * fault.calls


async def answers_both(peer) -> None:
    """A stream to who asks for one, else a plain answer."""
    while True:
        request = await peer.receive()
        await peer.send(stream(STREAM) if b'"stream":true' in request.body else answer(CHAT))


# -- errors in answers with a good status ----------------------------------------------------------------------------

FAILED = error("Overloaded.", kind="overloaded_error")
MISTAKEN = error("Unknown parameter.", code="invalid_value")


def streams(*events: bytes) -> Script:
    return same(stream(sse(*events)))


@pytest.mark.parametrize(
    ("script", "mended"),
    [
        pytest.param(streams(FAILED), True, id="first_event"),
        pytest.param(streams(delta(role="assistant", content=""), FAILED), True, id="behind_a_role"),
        pytest.param(
            play(RECEIVE, stream_head(), chunk(b": wait\n\n"), Pause(0.05), chunk(sse(FAILED)), HANG), True, id="late"
        ),
        pytest.param(streams(delta("Hel"), FAILED), False, id="behind_a_word"),
        pytest.param(streams(MISTAKEN), False, id="the_callers"),
    ],
)
async def test_an_error_inside_a_stream(stage, server, script, mended):
    """It is another provider's turn where nothing was said yet; else it goes to the caller as it is."""
    good, bad = await stage.upstream(answers_both), await stage.upstream(script)
    providers = {"bad": stage.provider(bad), "good": stage.provider(good, priority=1)}
    gateway, _ = await stage.gateway(play(HANG), providers=providers, server=server)

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.status == 200
    if mended:
        assert answered.body == STREAM
        assert answered.header(b"x-gateway-attempts") == b"2"
    else:
        assert b'"error"' in answered.body
        assert answered.header(b"x-gateway-attempts") == b"1"
    assert len(good.requests) == mended
    (record, *_) = await gateway.records(1)
    assert (record.input_tokens > 0) is (answered.body == STREAM or b"Hel" in answered.body)


@pytest.mark.parametrize(("body", "mended"), [(FAILED, True), (MISTAKEN, False)])
async def test_an_error_as_a_plain_good_answer(stage, body, mended):
    good, bad = await stage.upstream(answers_both), await stage.upstream(same(answer(body)))
    providers = {"bad": stage.provider(bad), "good": stage.provider(good, priority=1)}
    gateway, _ = await stage.gateway(play(HANG), providers=providers)

    answered = await gateway.ask(ASK)

    assert (answered.status, answered.body) == (200, CHAT if mended else body)
    assert len(good.requests) == mended


async def test_without_another_provider_an_error_in_a_stream_is_relayed(stage):
    gateway, _ = await stage.gateway(streams(FAILED))

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.status == 200
    assert answered.body.startswith(sse(FAILED))


async def test_a_stream_is_held_back_for_a_bounded_time(stage):
    """A provider that thinks for long behind its head: the caller gets the head, and no other provider is asked."""
    release = asyncio.Event()

    async def thinks(peer) -> None:
        await peer.receive()
        await peer.send(stream_head())
        await release.wait()
        await peer.send(chunk(STREAM) + b"0\r\n\r\n")

    good, slow = await stage.upstream(answers_both), await stage.upstream(thinks)
    providers = {"slow": stage.provider(slow), "good": stage.provider(good, priority=1)}
    gateway, _ = await stage.gateway(play(HANG), providers=providers, settings=holding(0.2))
    connection = await gateway.connect()

    await connection.send(gateway.request(ASK_STREAM_USAGE))
    head = await connection.receive_head()
    release.set()
    pieces = [piece async for piece in connection.pieces()]

    assert head.header(b"x-gateway-provider") == b"slow"
    assert b"".join(pieces) == STREAM
    assert good.requests == []


def holding(wait_s: float):
    return Settings(routing=Routing(holdback=Holdback(wait_s=wait_s)))


async def test_a_stream_that_is_silent_is_kept_alive(stage):
    silent = play(RECEIVE, stream_head(), chunk(sse(delta("Hel"))), Pause(0.6), chunk(STREAM), b"0\r\n\r\n")
    gateway, _ = await stage.gateway(silent, settings=Settings(routing=Routing(comment_s=0.1)))

    answered = await gateway.ask(ASK_STREAM_USAGE)

    assert answered.whole
    assert answered.body.count(b": keep-alive\n\n") >= 1
    assert answered.body.replace(b": keep-alive\n\n", b"") == sse(delta("Hel")) + STREAM
