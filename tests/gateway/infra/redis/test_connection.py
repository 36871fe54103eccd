"""A connection against a server that says what the test wants, byte by byte."""

import asyncio
import contextlib

import hiredis
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StoreUnavailable
from gateway.infra.redis import CommandRefused, Redis
from gateway.infra.redis.connection import Connection
from tests.valkey_cluster import valkey

REPLIES = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20) | st.none(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


def encoded(reply: object) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n%s" % (len(reply), b"".join(map(encoded, reply)))
    raise AssertionError(reply)


class Wire(asyncio.Transport):
    """The transport: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def opened(**options) -> tuple[Connection, Wire]:
    connection, wire = Connection("test", timeout_s=60, **options), Wire()
    connection.connection_made(wire)
    return connection, wire


@given(replies=st.lists(REPLIES, min_size=1, max_size=8), data=st.data())
def test_replies_cut_anywhere_reach_who_asked(replies, data):
    async def run() -> None:
        connection, _ = opened()
        futures = [connection.ask("GET", b"x") for _ in replies]
        stream = b"".join(map(encoded, replies))
        at = 0
        while at < len(stream):
            size = data.draw(st.integers(1, len(stream) - at))
            connection.data_received(stream[at : at + size])
            at += size

        assert [future.result() for future in futures] == replies
        assert len(connection) == 0
        connection.give_up("done")

    asyncio.run(run())


async def test_commands_leave_joined_at_the_end_of_the_turn():
    connection, wire = opened()

    connection.ask("GET", b"a").cancel()
    connection.tell("SET", b"b", 1)
    assert wire.written == []
    await asyncio.sleep(0)

    assert wire.written == [hiredis.pack_command(("GET", b"a")) + hiredis.pack_command(("SET", b"b", 1))]
    connection.data_received(b"$1\r\nx\r\n+OK\r\n")
    assert len(connection) == 0
    connection.give_up("done")


async def test_nothing_is_written_while_the_transport_is_full():
    connection, wire = opened()
    connection.pause_writing()
    future = connection.ask("PING")
    await asyncio.sleep(0)
    assert wire.written == []

    connection.resume_writing()

    assert wire.written == [hiredis.pack_command(("PING",))]
    connection.data_received(b"+PONG\r\n")
    assert await future == b"PONG"
    connection.give_up("done")


@pytest.mark.parametrize("said", [b"?what\r\n", b"+PONG\r\n+MORE\r\n", b"*-9\r\n"])
async def test_nonsense_ends_the_connection_and_every_wait(said):
    connection, wire = opened()
    futures = [connection.ask("PING")]
    if b"MORE" not in said:
        futures.append(connection.ask("PING"))

    connection.data_received(said)
    connection.data_received(b"+LATE\r\n")

    assert wire.aborted
    assert connection.lost.done()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(outcomes[-1], StoreUnavailable) or outcomes == [b"PONG"]
    with pytest.raises(StoreUnavailable):
        connection.ask("PING")


async def test_each_who_waits_gets_an_error_of_its_own():
    connection, _ = opened()
    futures = [connection.ask("PING") for _ in range(3)]
    futures[1].cancel()

    connection.connection_lost(ConnectionResetError("reset"))
    connection.give_up("again")

    assert futures[0].exception() is not futures[2].exception()
    assert futures[1].cancelled()
    assert connection.lost.result() == "lost: reset"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("WRONGTYPE of key", CommandRefused),
        ("ERR whatever", CommandRefused),
        ("OOM command not allowed", StoreUnavailable),
        ("LOADING dataset", StoreUnavailable),
        ("READONLY replica", StoreUnavailable),
        ("NOAUTH", StoreUnavailable),
        ("BUSY script", StoreUnavailable),
        ("CLUSTERDOWN hash slot not served", StoreUnavailable),
    ],
)
async def test_a_refusal_blames_the_command_or_the_server(said, error):
    connection, _ = opened()
    future = connection.ask("GET", b"x")

    connection.data_received(f"-{said}\r\n".encode())

    with pytest.raises(error) as caught:
        await future
    assert said in caught.value.detail
    assert said not in caught.value.message
    connection.give_up("done")


async def test_the_bound_on_waiting_commands_holds_and_frees():
    connection, _ = opened(pending_max=2)
    first, second = connection.ask("PING"), connection.ask("PING")
    with pytest.raises(StoreUnavailable):
        connection.ask("PING")

    connection.data_received(b"+PONG\r\n")
    third = connection.ask("PING")
    connection.data_received(b"+PONG\r\n+PONG\r\n")

    assert await asyncio.gather(first, second, third) == [b"PONG"] * 3
    connection.give_up("done")


async def test_tls_is_spoken_and_certificates_are_checked(tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    trusted, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(trusted)
    stranger.cert_pem.write_to_path(other)
    context = trustme_context(authority)
    with valkey() as server:

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, to = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(copy(reader, to), copy(back, writer))

        proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
        port = proxy.sockets[0].getsockname()[1]

        client = Redis(f"rediss://localhost:{port}?ssl_ca_certs={trusted}", timeout_s=5)
        await client.connect()
        assert await client.execute("PING") == b"PONG"
        await client.close()

        for refused in (f"rediss://localhost:{port}?ssl_ca_certs={other}", f"rediss://localhost:{port}"):
            client = Redis(refused, timeout_s=5)
            with pytest.raises(StoreUnavailable) as caught:
                await client.connect()
            assert "certificate" in caught.value.detail.lower()
            await client.close()
        proxy.close()
        await proxy.wait_closed()


def trustme_context(authority: trustme.CA):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
