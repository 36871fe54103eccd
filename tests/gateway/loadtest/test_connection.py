"""The connection against byte scripts, cut everywhere."""

import asyncio
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.loadtest.connection import Connection, End


class Clock:
    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 7.0


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True

    abort = close


class Notes:
    def __init__(self) -> None:
        self.body = b""
        self.events = 0
        self.ends: list[End] = []
        self.idle_lost = 0

    def on_body(self, connection: Connection, piece: bytes, events: int, now_s: float) -> None:
        assert now_s == 7.0
        self.body += piece
        self.events += events

    def on_end(self, connection: Connection, end: End, now_s: float) -> None:
        self.ends.append(end)

    def on_idle_lost(self, connection: Connection) -> None:
        self.idle_lost += 1


def connected() -> tuple[Connection, Notes, Transport]:
    notes, transport = Notes(), Transport()
    connection = Connection(notes, Clock())
    connection.connection_made(transport)
    return connection, notes, transport


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: a\n\n\r\n5\r\ndata:\r\n4\r\n b\n\n\r\n0\r\n\r\n"
)
WITH_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@given(cuts=st.lists(st.integers(0, len(CHUNKED)), max_size=6))
def test_chunks_cut_anywhere_make_the_same_body_and_events(cuts: list[int]) -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    edges = [0, *sorted(cuts), len(CHUNKED)]
    for start, end in pairwise(edges):
        if start < end:
            connection.data_received(CHUNKED[start:end])

    assert notes.body == b"data: a\n\ndata: b\n\n"
    assert notes.events == 2
    assert notes.ends == [End.COMPLETE]
    assert connection.open


def test_chunks_of_one_read_are_reported_as_one_piece() -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    connection.data_received(CHUNKED)

    assert connection.tail == b"data: a\n\ndata: b\n\n"
    assert notes.events == 2


def test_a_kept_connection_serves_one_exchange_after_another() -> None:
    connection, notes, transport = connected()

    for _ in range(3):
        connection.send(b"request")
        connection.data_received(WITH_LENGTH)

    assert notes.ends == [End.COMPLETE] * 3
    assert notes.body == b"{}{}{}"
    assert transport.sent == b"request" * 3
    assert connection.status == 200


def test_an_interim_answer_is_not_the_answer() -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n" + WITH_LENGTH)

    assert notes.ends == [End.COMPLETE]
    assert connection.status == 200


def test_connection_close_is_obeyed() -> None:
    connection, notes, transport = connected()
    connection.send(b"request")

    connection.data_received(b"HTTP/1.1 429 No\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx")

    assert notes.ends == [End.COMPLETE]
    assert transport.closed
    assert not connection.open
    connection.connection_lost(None)
    assert notes.idle_lost == 0


def test_a_body_without_length_ends_with_the_connection() -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    connection.data_received(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: a\n\n")
    connection.connection_lost(None)

    assert notes.ends == [End.COMPLETE]
    assert notes.events == 1


@pytest.mark.parametrize("received", [b"", b"HTTP/1.1 200", CHUNKED[:-5], WITH_LENGTH[:-1]])
def test_a_connection_that_closes_early_is_reported_as_such(received: bytes) -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    if received:
        connection.data_received(received)
    connection.connection_lost(None)

    assert notes.ends == [End.CLOSED]


def test_a_reset_ends_no_body_well() -> None:
    connection, notes, _ = connected()
    connection.send(b"request")

    connection.data_received(b"HTTP/1.0 200 OK\r\n\r\npart")
    connection.connection_lost(ConnectionResetError())

    assert notes.ends == [End.CLOSED]


def test_what_is_not_http_is_reported_and_hung_up_on() -> None:
    connection, notes, transport = connected()
    connection.send(b"request")

    connection.data_received(b"220 mail.example ESMTP\r\n")
    connection.connection_lost(None)

    assert notes.ends == [End.GARBLED]
    assert transport.closed


def test_a_lost_idle_connection_is_told_once() -> None:
    connection, notes, _ = connected()
    connection.send(b"request")
    connection.data_received(WITH_LENGTH)

    connection.connection_lost(None)

    assert notes.idle_lost == 1
    assert not connection.open


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    connection, notes, transport = connected()

    connection.data_received(WITH_LENGTH)
    connection.connection_lost(None)

    assert transport.closed
    assert (notes.idle_lost, notes.ends) == (1, [])


def test_a_fault_in_the_listener_is_not_blamed_on_the_server() -> None:
    class Faulty(Notes):
        def on_end(self, connection: Connection, end: End, now_s: float) -> None:
            raise LookupError("ours")

    connection = Connection(Faulty(), Clock())
    connection.connection_made(cast("asyncio.BaseTransport", Transport()))
    connection.send(b"request")

    with pytest.raises(Exception) as raised:  # noqa: PT011  httptools wraps it
        connection.data_received(WITH_LENGTH)

    assert isinstance(raised.value.__context__, LookupError)
