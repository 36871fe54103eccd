"""Uploads: read as far as needed, passed on or spooled, and never whole in memory."""

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.errors import BadRequest, BodyTooLarge, CallerGone, Overloaded, RequestTimeout
from gateway.upload import HELD_BYTES_MAX, Upload, UploadBounds

TYPE = b"multipart/form-data; boundary=XX"
MODEL = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
COUNT = b'--XX\r\nContent-Disposition: form-data; name="n"\r\n\r\n2\r\n'
FILE = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(range(256)) * 4_000 + b"\r\n"
)
END = b"--XX--\r\n"
ALL = frozenset({"model"})


class Caller:
    """Sends a body in pieces, then nothing."""

    def __init__(self, body: bytes, *, each: int = 10_000, leaves: bool = False, stops: bool = False) -> None:
        self.sent_bytes = 0
        self._pieces = [body[at : at + each] for at in range(0, len(body), each)] or [b""]
        self._leaves = leaves
        self._stops = stops

    async def receive(self) -> dict:
        if not self._pieces:
            if self._stops:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        piece = self._pieces.pop(0)
        self.sent_bytes += len(piece)
        more = bool(self._pieces) or self._leaves or self._stops
        return {"type": "http.request", "body": piece, "more_body": more}


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Callable[..., Upload]]:
    """Makes uploads that are closed in the end."""
    opened: list[Upload] = []

    def make(caller: Caller, *, length: int | None = None, **bounds: object) -> Upload:
        given = {
            "size_bytes_max": 10**7, "spool_bytes_max": 5 * 10**6, "read_timeout_s": 30.0, "total_timeout_s": 30.0,
            "spool_dir": str(tmp_path),
        }  # fmt: skip
        made = Upload(caller.receive, content_type=TYPE, length=length, bounds=UploadBounds(**{**given, **bounds}))
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


async def collect(opened: Upload, model: str | None = None) -> bytes:
    return b"".join([piece async for piece in opened.pieces(model)])


async def take_all(opened: Upload) -> None:
    await opened.open(ALL, needs_length=True)
    await collect(opened)


async def test_a_small_form_is_a_body(upload, tmp_path):
    body = MODEL + COUNT + END

    assert await upload(Caller(body)).open(ALL, needs_length=True) == body


async def test_what_is_needed_stands_before_the_file_so_the_rest_is_passed_on(upload, tmp_path):
    body = MODEL + FILE + END
    caller = Caller(body)
    opened = upload(caller, length=len(body))

    assert await opened.open(ALL, needs_length=True) is None
    assert caller.sent_bytes < 20_000
    assert (opened.peek.model, opened.replayable, opened.consumed) == ("whisper-1", False, False)
    renamed = body.replace(b"whisper-1", b"a longer name")
    assert opened.size_bytes() == opened.size_bytes("whisper-1") == len(body)
    assert opened.size_bytes("a longer name") == len(renamed)
    assert await collect(opened, "a longer name") == renamed
    assert opened.consumed
    assert opened.form.recording.size_bytes == 256 * 4_000
    with pytest.raises(RuntimeError):
        await collect(opened)


@pytest.mark.parametrize(
    ("body", "needs", "announced"),
    [
        (FILE + MODEL + END, ALL, True),
        (MODEL + FILE + END, ALL | {"n"}, True),
        (MODEL + FILE + END, ALL, False),
        (FILE + END, ALL, True),
    ],
)
async def test_what_has_to_be_known_comes_late_so_it_is_spooled(upload, tmp_path, body, needs, announced):
    opened = upload(Caller(body), length=len(body) if announced else None)

    assert await opened.open(needs, needs_length=True) is None

    assert opened.replayable
    assert not list(tmp_path.iterdir()), "the file has a name"
    assert opened.size_bytes() == len(body)
    assert await collect(opened) == body
    assert await collect(opened, "x") == body.replace(b"whisper-1", b"x")
    opened.close()
    with pytest.raises((Overloaded, ValueError)):
        await collect(opened)


async def test_a_length_that_nothing_depends_on_need_not_be_known(upload, tmp_path):
    body = MODEL + FILE + END
    opened = upload(Caller(body))

    assert await opened.open(frozenset(), needs_length=False) is None

    assert not opened.replayable
    assert opened.size_bytes() is None
    assert await collect(opened) == body
    assert opened.size_bytes() == len(body)


@pytest.mark.parametrize("end", [b"", MODEL + END])
async def test_a_form_that_is_wrong_at_its_end_is_not_given_out_whole(upload, tmp_path, end):
    body = MODEL + FILE + end
    opened = upload(Caller(body), length=len(body))
    await opened.open(ALL, needs_length=True)
    given: list[bytes] = []

    async def take() -> None:
        async for piece in opened.pieces():
            given.append(piece)  # noqa: PERF401  what came before it failed counts

    with pytest.raises(BadRequest):
        await take()

    assert sum(map(len, given)) < len(body)


@pytest.mark.parametrize("spooled", [False, True])
async def test_a_caller_who_leaves_is_noticed(upload, tmp_path, spooled):
    parts = (FILE, MODEL) if spooled else (MODEL, FILE)
    opened = upload(Caller(b"".join(parts), leaves=True), length=2_000_000)

    with pytest.raises(CallerGone):
        await take_all(opened)


@pytest.mark.parametrize("bounds", [{"read_timeout_s": 0.05}, {"total_timeout_s": 0.05}])
@pytest.mark.parametrize("spooled", [False, True])
async def test_a_caller_who_stops_is_given_up(upload, tmp_path, bounds, spooled):
    parts = (FILE, MODEL) if spooled else (MODEL, FILE)
    opened = upload(Caller(b"".join(parts), stops=True), length=2_000_000, **bounds)

    with pytest.raises(RequestTimeout):
        await take_all(opened)


async def test_what_is_announced_as_too_large_is_refused_unread(upload, tmp_path):
    with pytest.raises(BodyTooLarge):
        upload(Caller(b""), length=10**7 + 1)


@pytest.mark.parametrize("announced", [False, True])
async def test_what_is_too_large_to_spool_is_refused(upload, tmp_path, announced):
    body = FILE + MODEL + END
    caller = Caller(body)
    opened = upload(caller, length=len(body) if announced else None, spool_bytes_max=500_000)

    with pytest.raises(BodyTooLarge):
        await opened.open(ALL, needs_length=True)

    assert caller.sent_bytes <= (HELD_BYTES_MAX + 10_000 if announced else 520_000)


async def test_what_turns_out_too_large_is_cut(upload, tmp_path):
    opened = upload(Caller(MODEL + FILE + END), size_bytes_max=500_000)
    await opened.open(frozenset(), needs_length=False)

    with pytest.raises(BodyTooLarge):
        await collect(opened)


async def test_a_disk_that_takes_nothing_is_the_gateways_trouble(upload, tmp_path):
    opened = upload(Caller(FILE + MODEL + END), spool_dir=str(tmp_path / "missing"))

    with pytest.raises(Overloaded):
        await opened.open(ALL, needs_length=True)


async def test_a_name_with_line_ends_does_not_go_into_a_form(upload, tmp_path):
    body = MODEL + FILE + END
    opened = upload(Caller(body), length=len(body))
    await opened.open(ALL, needs_length=True)

    with pytest.raises(BadRequest):
        opened.size_bytes("a\r\n--XX--")


async def test_the_caller_is_heard_again_once_the_form_was_read(upload, tmp_path):
    body = MODEL + FILE + END
    opened = upload(Caller(body), length=len(body))
    await opened.open(ALL, needs_length=True)
    waiting = asyncio.ensure_future(opened.receive_after())

    await asyncio.sleep(0)
    assert not waiting.done()
    await collect(opened)

    assert (await waiting)["type"] == "http.disconnect"


@pytest.mark.parametrize("spooled", [False, True])
async def test_memory_does_not_grow_with_the_upload(upload, tmp_path, spooled):
    piece = bytes(60_000)
    left = 500

    async def receive() -> dict:
        nonlocal left
        left -= 1
        if left == 499:
            return {"type": "http.request", "body": (FILE[:80] if spooled else MODEL + FILE[:80]), "more_body": True}
        if left == 0:
            return {"type": "http.request", "body": b"\r\n" + (MODEL if spooled else b"") + END, "more_body": False}
        return {"type": "http.request", "body": piece, "more_body": True}

    bounds = UploadBounds(10**9, 10**9, 30.0, 60.0, str(tmp_path))
    opened = Upload(receive, content_type=TYPE, length=10**8, bounds=bounds)
    tracemalloc.start()
    try:
        await opened.open(ALL, needs_length=True)
        given = 0
        async for part in opened.pieces():
            given += len(part)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        opened.close()

    assert opened.read_bytes > 29_000_000
    assert peak_bytes < 4_000_000
