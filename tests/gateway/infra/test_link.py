import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Overloaded
from gateway.infra.link import FRAME_BYTES_MAX, METRICS, Frames, Kind, Link


def encode(kind: int, payload: bytes) -> bytes:
    return struct.pack(">IB", len(payload), kind) + payload


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(min_value=1, max_value=30), min_size=1),
)
def test_any_split_of_the_stream_gives_the_same_frames(frames: list[tuple[Kind, bytes]], sizes: list[int]) -> None:
    stream = b"".join(encode(*frame) for frame in frames)
    reader = Frames()
    seen: list[tuple[Kind, bytes]] = []
    position = index = 0
    while position < len(stream):
        size = sizes[index % len(sizes)]
        seen += reader.feed(stream[position : position + size])
        position, index = position + size, index + 1

    assert seen == frames


@pytest.mark.parametrize("stream", [encode(99, b""), struct.pack(">IB", FRAME_BYTES_MAX + 1, 1)])
def test_frame_that_nobody_sends_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"a frame of|is not a valid Kind"):
        list(Frames().feed(stream))


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[tuple[Link, socket.socket, Path]]:
    """A worker's link, the supervisor's end of it, and where the control socket is to be."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="gw-link-") as directory, ours, theirs:
        control = Path(directory) / "control.sock"
        link = Link(theirs, control, name="worker-0.0")
        await link.open()
        ours.setblocking(False)
        yield link, ours, control
        link.close()


async def read(channel: socket.socket, count: int) -> list[tuple[Kind, bytes]]:
    reader, frames = Frames(), []
    async with asyncio.timeout(30):
        while len(frames) < count:
            frames += reader.feed(await asyncio.get_running_loop().sock_recv(channel, 1 << 20))
    return frames


async def test_ready_and_snapshots_arrive(ends: tuple[Link, socket.socket, Path]) -> None:
    link, ours, _ = ends

    link.report_ready()
    assert link.push(b"counts")

    assert await read(ours, 2) == [(Kind.READY, b""), (Kind.SNAPSHOT, b"counts")]


async def test_snapshot_is_skipped_while_the_last_one_is_on_its_way(ends: tuple[Link, socket.socket, Path]) -> None:
    link, ours, _ = ends
    large = bytes(8 * 1024 * 1024)

    assert link.push(large)
    assert not link.push(b"next")

    assert await read(ours, 1) == [(Kind.SNAPSHOT, large)]
    assert link.push(b"next")
    assert await read(ours, 1) == [(Kind.SNAPSHOT, b"next")]


async def test_failure_is_told_without_the_loop(ends: tuple[Link, socket.socket, Path]) -> None:
    link, ours, _ = ends
    link.close()

    link.report_failure("no such file")

    assert await read(ours, 1) == [(Kind.FAILED, b"no such file")]


def test_failure_that_nobody_hears_is_no_other_failure() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        Link(theirs, Path("none"), name="worker-0.0").report_failure("no such file")


async def test_question_is_answered_until_the_end(ends: tuple[Link, socket.socket, Path]) -> None:
    link, _, control = ends

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == METRICS
        for part in (b"one ", b"two"):
            writer.write(part)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, str(control))
    async with server:
        assert await link.ask(METRICS) == b"one two"


async def test_question_without_a_supervisor_is_an_overload(ends: tuple[Link, socket.socket, Path]) -> None:
    link, _, _ = ends

    with pytest.raises(Overloaded):
        await link.ask(METRICS)


async def test_a_question_that_is_turned_away_is_an_overload(ends: tuple[Link, socket.socket, Path]) -> None:
    """The supervisor hangs up where it has too many to answer: no metrics at all would read as no traffic."""
    link, _, control = ends

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, str(control))
    async with server:
        with pytest.raises(Overloaded):
            await link.ask(METRICS)
