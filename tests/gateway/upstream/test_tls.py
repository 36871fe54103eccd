"""TLS to providers: who is trusted, what is offered, and that a broken one is never a whole answer."""

import ssl
from pathlib import Path

import pytest
import trustme

from gateway.api import Origin
from gateway.errors import ConfigError, UpstreamDisconnected, UpstreamUnreachable
from gateway.settings import Upstream
from gateway.upstream import UpstreamClient
from tests.gateway.upstream.bodies import PATIENT, fetch, piped, request
from tests.upstreams import CLOSE, RECEIVE, REPEAT, Peer, ScriptedUpstream, answer, chunked, play


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def server(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("localhost").configure_cert(context)
    return context


def secure(port: int, host: str = "localhost") -> Origin:
    return Origin("https", host, port)


async def test_exchanges_over_one_tls_connection(ca_file: str, server: ssl.SSLContext) -> None:
    spoken: list[str | None] = []
    named: list[str | None] = []
    server.sni_callback = lambda _sock, name, _context: named.append(name)

    async def script(peer: Peer) -> None:
        spoken.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await play(RECEIVE, chunked(b"hel", b"lo"), REPEAT)(peer)

    client = UpstreamClient(Upstream(ca_file=ca_file))
    async with ScriptedUpstream(script, tls=server) as upstream:
        for size_bytes in (2, 1_000_000, 2):
            sent = request(secure(upstream.port), body=b"x" * size_bytes)
            assert await fetch(client, sent) == (200, b"hello")

        assert upstream.connections == 1
        assert [len(received.body) for received in upstream.requests] == [2, 1_000_000, 2]
        assert upstream.requests[0].header(b"host") == b"localhost:%d" % upstream.port
        assert (spoken, named) == (["http/1.1"], ["localhost"])
        await client.close()


async def test_an_unknown_authority_is_not_trusted(server: ssl.SSLContext) -> None:
    client = UpstreamClient(Upstream())
    async with ScriptedUpstream(play(RECEIVE, answer(b"no")), tls=server) as upstream:
        with pytest.raises(UpstreamUnreachable) as caught:
            await client.send(request(secure(upstream.port)), timeouts=PATIENT)

        assert (caught.value.detail or "").startswith("tls:")
        assert upstream.requests == []
        assert client.stats.active == 0
    await client.close()


async def test_a_certificate_for_another_name_is_not_trusted(ca_file: str, server: ssl.SSLContext) -> None:
    client = UpstreamClient(Upstream(ca_file=ca_file))
    async with ScriptedUpstream(play(RECEIVE, answer(b"no")), tls=server) as upstream:
        with pytest.raises(UpstreamUnreachable) as caught:
            await client.send(request(secure(upstream.port, "127.0.0.1")), timeouts=PATIENT)

        assert (caught.value.detail or "").startswith("tls:")
        assert upstream.requests == []
    await client.close()


async def test_a_server_without_tls_is_unreachable(ca_file: str) -> None:
    client = UpstreamClient(Upstream(ca_file=ca_file))
    async with ScriptedUpstream(play(b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE)) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await client.send(request(secure(upstream.port)), timeouts=PATIENT)
    await client.close()


async def test_a_body_cut_short_over_tls_is_not_whole(ca_file: str, server: ssl.SSLContext) -> None:
    client = UpstreamClient(Upstream(ca_file=ca_file))
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    async with ScriptedUpstream(play(RECEIVE, half, CLOSE), tls=server) as upstream:
        record = await piped(await client.send(request(secure(upstream.port)), timeouts=PATIENT))

        assert record.body == b"half"
        assert [type(error) for error in record.errors] == [UpstreamDisconnected]
    await client.close()


async def test_a_body_without_length_over_tls_ends_with_its_connection(ca_file: str, server: ssl.SSLContext) -> None:
    client = UpstreamClient(Upstream(ca_file=ca_file))
    async with ScriptedUpstream(play(RECEIVE, b"HTTP/1.1 200 OK\r\n\r\nwhole", CLOSE), tls=server) as upstream:
        assert await fetch(client, request(secure(upstream.port))) == (200, b"whole")
    await client.close()


async def test_a_stale_tls_connection_is_replaced(ca_file: str, server: ssl.SSLContext) -> None:
    client = UpstreamClient(Upstream(ca_file=ca_file))
    async with ScriptedUpstream(
        play(RECEIVE, answer(b"1"), RECEIVE, CLOSE), play(RECEIVE, answer(b"2")), tls=server
    ) as upstream:
        assert await fetch(client, request(secure(upstream.port))) == (200, b"1")
        assert await fetch(client, request(secure(upstream.port))) == (200, b"2")
        assert client.stats.retried == 1
    await client.close()


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_an_unusable_ca_file_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match="ca_file"):
        UpstreamClient(Upstream(ca_file=str(path)))
