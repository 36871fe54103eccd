"""Proxies: which origin goes through which, what a proxy is sent, and what it may answer."""

import asyncio
import base64
import ssl
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import Origin
from gateway.errors import ConfigError, UpstreamUnreachable
from gateway.settings import Upstream
from gateway.upstream import UpstreamClient
from gateway.upstream.proxy import ANSWER_BYTES_MAX, Proxies, Proxy, Tunnel
from tests.gateway.upstream.bodies import PATIENT, fetch, request
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Peer, ScriptedUpstream, answer, play

PROXY = "http://proxy.test:3128"


def chosen(environment: dict[str, str], url: str) -> Proxy | None:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return Proxies(environment).choose(Origin(scheme, host, int(port)))


def test_each_scheme_has_its_variable() -> None:
    environment = {"HTTPS_PROXY": "http://secure.test:1", "HTTP_PROXY": "http://plain.test:2"}

    assert chosen(environment, "https://a.test:443") == Proxy("secure.test", 1)
    assert chosen(environment, "http://a.test:80") == Proxy("plain.test", 2)
    assert chosen({"HTTPS_PROXY": PROXY}, "http://a.test:80") is None
    assert chosen({}, "https://a.test:443") is None


def test_small_letters_win() -> None:
    assert chosen({"HTTPS_PROXY": "http://big:1", "https_proxy": "http://small:2"}, "https://a:1") == Proxy(
        "small", 2
    )
    assert chosen({"HTTPS_PROXY": "http://big:1", "https_proxy": ""}, "https://a:1") == Proxy("big", 1)


def test_a_proxy_may_be_named_without_scheme_and_port_and_with_credentials() -> None:
    assert chosen({"https_proxy": "proxy.test:3128"}, "https://a:1") == Proxy("proxy.test", 3128)
    assert chosen({"https_proxy": "http://proxy.test"}, "https://a:1") == Proxy("proxy.test", 80)
    assert chosen({"https_proxy": "http://[::1]:3128/"}, "https://a:1") == Proxy("::1", 3128)
    with_credentials = chosen({"https_proxy": "http://us%40er:p%3Ass@proxy.test:1"}, "https://a:1")
    assert with_credentials is not None
    assert with_credentials.authorization == b"Basic " + base64.b64encode(b"us@er:p:ss")
    assert "ss" not in repr(with_credentials).replace("with credentials", "")


@pytest.mark.parametrize(
    "value", ["https://secret.test:1", "socks5://secret.test:1", "http://?secret", "http://secret:port"]
)
def test_a_proxy_that_is_not_supported_stops_the_start(value: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        UpstreamClient(Upstream(), proxies={"HTTPS_PROXY": value})

    assert "secret" not in str(caught.value)


def test_the_environment_is_not_read_where_the_settings_say_so() -> None:
    UpstreamClient(Upstream(proxy_from_environment=False), proxies={"HTTPS_PROXY": "socks5://proxy.test:1"})


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "https://api.test:443", False),
        ("*", "https://api.test:443", True),
        ("api.test", "https://api.test:443", True),
        ("api.test", "https://API.Test:443", True),
        ("api.test", "https://api.test.:443", True),
        ("api.test", "https://eu.api.test:443", True),
        (".api.test", "https://eu.api.test:443", True),
        (".api.test", "https://api.test:443", True),
        ("api.test", "https://notapi.test:443", False),
        ("other, api.test", "https://api.test:443", True),
        ("other api.test", "https://api.test:443", True),
        ("api.test:443", "https://api.test:443", True),
        ("api.test:8443", "https://api.test:443", False),
        ("10.0.0.0/8", "https://10.1.2.3:443", True),
        ("10.0.0.0/8", "https://11.1.2.3:443", False),
        ("10.0.0.0/8", "https://10.test:443", False),
        ("192.0.2.7", "https://192.0.2.7:443", True),
        ("192.0.2.7:443", "https://192.0.2.7:443", True),
        ("192.0.2.7:1", "https://192.0.2.7:443", False),
        ("2001:db8::/32", "https://2001:db8::1:443", True),
        ("[2001:db8::1]:443", "https://2001:db8::1:443", True),
        ("2001:db8::/32", "https://10.1.2.3:443", False),
        ("", "https://localhost:443", True),
        ("", "https://model.localhost:443", True),
        ("", "https://127.0.0.2:443", True),
        ("", "https://::1:443", True),
    ],
)
def test_exemptions(no_proxy: str, url: str, direct: bool) -> None:
    assert (chosen({"https_proxy": PROXY, "no_proxy": no_proxy}, url) is None) is direct


@given(st.text(max_size=60))
def test_no_list_of_exemptions_stops_the_start(no_proxy: str) -> None:
    assert chosen({"https_proxy": PROXY, "no_proxy": no_proxy.replace("*", "")}, "https://zz.provider.test:443") in (
        None,
        Proxy("proxy.test", 3128),
    )


# -- the tunnel as bytes --------------------------------------------------------------------------------------------


def test_what_a_proxy_is_asked() -> None:
    assert Tunnel(Proxy("p", 1), Origin("https", "a.test", 443)).request == (
        b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n"
    )
    assert Tunnel(Proxy("p", 1, b"Basic eDp5"), Origin("https", "::1", 8443)).request == (
        b"CONNECT [::1]:8443 HTTP/1.1\r\nhost: [::1]:8443\r\nproxy-authorization: Basic eDp5\r\n\r\n"
    )


@pytest.mark.parametrize("each", [1, 7, 1000])
@pytest.mark.parametrize("answered", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200\r\nvia: x\r\n\r\n"])
def test_a_tunnel_opens_with_the_last_byte_of_a_good_answer(answered: bytes, each: int) -> None:
    tunnel = Tunnel(Proxy("p", 1), Origin("https", "a", 1))
    pieces = [answered[start : start + each] for start in range(0, len(answered), each)]

    assert [tunnel.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno", "502"),
        (b"SSH-2.0\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "before the tunnel"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * ANSWER_BYTES_MAX, "without end"),
        (b"", "closed"),
    ],
)
def test_a_proxy_that_does_not_open_a_tunnel(answered: bytes, reason: str) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        Tunnel(Proxy("p", 1), Origin("https", "a", 1)).feed(answered)

    assert reason in (caught.value.detail or "")


# -- real proxies ---------------------------------------------------------------------------------------------------


def tunnel_to(port: int) -> "type[None] | object":
    """A proxy's script: CONNECT to whatever name leads to `port` on this machine."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def script(peer: Peer) -> None:
        asked = await peer.receive_head()
        assert asked.method == b"CONNECT"
        peer.upstream.record(asked)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))
        except ConnectionError:
            pass
        finally:
            writer.close()

    return script


async def test_https_goes_through_a_tunnel(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("provider.test").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with (
        ScriptedUpstream(play(RECEIVE, answer(b"through"), REPEAT), tls=server) as upstream,
        ScriptedUpstream(tunnel_to(upstream.port)) as proxy,
    ):
        client = UpstreamClient(
            Upstream(ca_file=str(ca_file)), proxies={"HTTPS_PROXY": f"http://user:word@127.0.0.1:{proxy.port}"}
        )
        origin = Origin("https", "provider.test", 443)
        for _ in range(2):
            assert await fetch(client, request(origin)) == (200, b"through")

        (asked,) = proxy.requests
        assert asked.target == b"provider.test:443"
        assert asked.header(b"proxy-authorization") == b"Basic " + base64.b64encode(b"user:word")
        assert upstream.requests[0].header(b"host") == b"provider.test"
        assert upstream.requests[0].header(b"proxy-authorization") is None
        assert upstream.connections == 1
        await client.close()


async def test_http_is_sent_to_the_proxy_whole() -> None:
    async with ScriptedUpstream(play(RECEIVE, answer(b"relayed"), REPEAT)) as proxy:
        client = UpstreamClient(Upstream(), proxies={"http_proxy": f"http://user:word@127.0.0.1:{proxy.port}"})
        origin = Origin("http", "provider.test", 8000)
        for _ in range(2):
            assert await fetch(client, request(origin, b"/v1/x")) == (200, b"relayed")

        assert proxy.connections == 1
        assert proxy.requests[0].head == (
            b"POST http://provider.test:8000/v1/x HTTP/1.1\r\n"
            b"host: provider.test:8000\r\n"
            b"proxy-authorization: Basic dXNlcjp3b3Jk\r\n"
            b"content-length: 2\r\n"
            b"content-type: application/json"
        )
        await client.close()


@pytest.mark.parametrize(
    "script",
    [
        play(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", CLOSE),
        play(CLOSE),
        play(b"220 smtp\r\n\r\n", CLOSE),
    ],
)
async def test_a_proxy_that_refuses_makes_the_origin_unreachable(script: object) -> None:
    async with ScriptedUpstream(script) as proxy:
        client = UpstreamClient(Upstream(), proxies={"https_proxy": f"http://127.0.0.1:{proxy.port}"})
        with pytest.raises(UpstreamUnreachable) as caught:
            await client.send(request(Origin("https", "provider.test", 443)), timeouts=PATIENT)

        assert caught.value.detail
        await proxy.all_closed()
        assert client.stats.active == 0
        await client.close()
