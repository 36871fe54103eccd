"""Heads as bytes: what is added, and that nothing can be smuggled in."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import Origin
from gateway.errors import BadRequest
from gateway.upstream.proxy import Proxy
from gateway.upstream.request import HeadEncoder
from tests.gateway.upstream.bodies import request

ORIGIN = Origin("https", "api.provider.test", 443)
encode = HeadEncoder(ORIGIN, None).encode


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("https", "a.test", 443), b"a.test"),
        (Origin("http", "a.test", 80), b"a.test"),
        (Origin("http", "a.test", 443), b"a.test:443"),
        (Origin("https", "::1", 8443), b"[::1]:8443"),
        (Origin("https", "bücher.test", 443), b"xn--bcher-kva.test"),
    ],
)
def test_host_is_what_stands_in_the_url(origin: Origin, host: bytes) -> None:
    assert b"\r\nhost: " + host + b"\r\n" in HeadEncoder(origin, None).encode(request(origin))


def test_a_tunnelled_origin_is_spoken_to_as_without_proxy() -> None:
    assert HeadEncoder(ORIGIN, Proxy("p", 1, b"Basic x")).encode(request(ORIGIN)) == encode(request(ORIGIN))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": b"/a b"},
        {"target": b"/a\r\nx: y"},
        {"target": b"/a\n"},
        {"target": b"/\x00"},
        {"method": b"GET / HTTP/1.1\r\n"},
        {"headers": [(b"x", b"a\r\ny: z")]},
        {"headers": [(b"x", b"a\ny: z")]},
        {"headers": [(b"x", b"a\r")]},
        {"headers": [(b"x\r\n\r\nGET", b"a")]},
        {"headers": [(b"x", b"a\x00")]},
        {"headers": [(b"x", b"a\r\n\r\nGET /")], "body": b""},
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_nothing_starts_a_new_line(wrong: dict[str, object], method: bytes) -> None:
    with pytest.raises(BadRequest):
        encode(request(ORIGIN, **{"method": method, **wrong}))


@given(
    headers=st.lists(
        st.tuples(st.text("abcxyz-", min_size=1, max_size=8).map(str.encode), st.binary(max_size=12)), max_size=5
    ),
    target=st.binary(max_size=12).map(lambda tail: b"/" + tail),
    method=st.sampled_from([b"GET", b"POST"]),
    body=st.sampled_from([b"", b"{}"]),
)
def test_what_is_encoded_is_one_request_with_these_headers(
    headers: list[tuple[bytes, bytes]], target: bytes, method: bytes, body: bytes
) -> None:
    try:
        head = encode(request(ORIGIN, target, method=method, headers=headers, body=body))
    except BadRequest:
        assert (
            any(byte in part for part in [target, *(value for _, value in headers)] for byte in (b"\r", b"\n", b"\0"))
            or b" " in target
        )
        return

    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert lines[0] == method + b" " + target + b" HTTP/1.1"
    assert lines[1] == b"host: api.provider.test"
    framing = 0 if method == b"GET" and not body else 1
    assert lines[2 : 2 + framing] == [b"content-length: %d" % len(body)] * framing
    assert lines[2 + framing : -2] == [name + b": " + value for name, value in headers]


@given(
    st.lists(
        st.tuples(
            st.text("abcxyz-", min_size=1, max_size=8).map("x".__add__).map(str.encode),
            st.text("abc 09;=", max_size=9).map(str.strip).map(str.encode),
        ),
        max_size=5,
    )
)
def test_h11_reads_what_is_encoded(headers: list[tuple[bytes, bytes]]) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(encode(request(ORIGIN, b"/v1/chat?x=y", headers=headers)) + b"{}")

    received = server.next_event()
    assert isinstance(received, h11.Request)
    assert (received.method, received.target) == (b"POST", b"/v1/chat?x=y")
    assert list(received.headers) == [(b"host", b"api.provider.test"), (b"content-length", b"2"), *headers]
    body = server.next_event()
    assert isinstance(body, h11.Data)
    assert body.data == b"{}"
    assert isinstance(server.next_event(), h11.EndOfMessage)
