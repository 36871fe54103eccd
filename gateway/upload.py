"""A form on its way in, with files in it: never held whole, passed on to a provider as it comes or from a spool file.

Rules:
- Small forms (`HELD_BYTES_MAX`) are read whole and are a body like any other.
- Of larger ones the beginning is read, until it is known what the call is about: limits and money are taken before
  the rest is read. Clients that write their fields before their files, as OpenAI's does in Python, are then passed on
  as they send: what is held is a piece.
- Where a file stands before what has to be known, or the hold depends on a size that nobody announced, the form goes
  into an unnamed file in the data directory, up to a bound, and is sent from there with its length. A picture's edit
  is spooled unless it says how many pictures it wants: the hold depends on it, and it may say so at its very end.
- A spooled form can be sent to another provider when one fails. One that is passed on can't be, once any of it was
  read (`consumed`).
- What is wrong with a form shows at its end at the latest. Then its last piece is not sent: a provider that knows the
  length, or waits for the last chunk, never takes the request for whole.
- Each read of the caller has a time, and all of them together have one.

`stages/receive.py` opens it; an adapter asks it for `pieces` and `size_bytes`.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from typing import BinaryIO, Final, NamedTuple

from gateway.errors import BadRequest, BodyTooLarge, CallerGone, Overloaded, RequestTimeout
from gateway.exchange import Message, Receive
from gateway.wire.form import FormScanner
from gateway.wire.peek import Peek, Span

#: A form up to this size is held.
HELD_BYTES_MAX: Final = 256 * 1024
#: What is written to, and read from, a spool file in one go, in a thread: a disk may be slow.
SPOOL_PIECE_BYTES: Final = 256 * 1024


class UploadBounds(NamedTuple):
    """What an upload may take. `spool_bytes_max` is for what goes into a file, `size_bytes_max` for what passes."""

    size_bytes_max: int
    spool_bytes_max: int
    read_timeout_s: float
    total_timeout_s: float
    spool_dir: str


class Upload:
    """One form. `open` it, then take its `pieces`; `close` it in any case."""

    def __init__(self, receive: Receive, *, content_type: bytes, length: int | None, bounds: UploadBounds) -> None:
        """`length` is what the caller announced, or None.

        Raises:
            BadRequest: the content type names no boundary.
            BodyTooLarge: the announced length is beyond any bound.
        """
        if length is not None and length > bounds.size_bytes_max:
            raise _too_large(bounds.size_bytes_max)
        #: What is seen of it.
        self.form = FormScanner(content_type)
        #: True once pieces were given out that can't be given out again.
        self.consumed = False
        #: How much of it was read from the caller.
        self.read_bytes = 0
        self._receive = receive
        self._length = length
        self._bounds = bounds
        self._ended = False
        #: Read and not given out.
        self._start: list[bytes] = []
        self._start_bytes = 0
        self._spool: BinaryIO | None = None
        self._peek: Peek | None = None
        self._due_s = asyncio.get_running_loop().time() + bounds.total_timeout_s
        #: Set when nothing more is read from the caller here.
        self._read = asyncio.Event()

    async def open(self, needs: frozenset[str], *, needs_length: bool) -> bytes | None:
        """Read until the fields in `needs` are known, or all of it; the whole body, if it is small.

        Raises:
            BadRequest: it is not well formed, or not whole.
            BodyTooLarge, RequestTimeout, CallerGone: it did not come in.
            Overloaded: it can't be spooled.
        """
        while not self._ended:
            piece = await self._next()
            self._start.append(piece)
            self._start_bytes += len(piece)
            is_known = self.form.files and needs <= self.form.fields.keys()
            if is_known and not (needs_length and self._length is None) and not self._ended:
                self._peek = self.form.peek()
                return None
            if self._start_bytes > HELD_BYTES_MAX:
                await self._fill_spool()
                return None
        self._peek = self.form.peek()
        self._read.set()
        return b"".join(self._start)

    @property
    def peek(self) -> Peek:
        """What the form says, as far as it has to be known."""
        assert self._peek is not None, "not open"
        return self._peek

    @property
    def replayable(self) -> bool:
        """Whether it can be sent a second time, whatever was sent of it before."""
        return self._spool is not None

    def size_bytes(self, model: str | None = None) -> int | None:
        """Its size with the model renamed to `model`; None if nobody knows."""
        if self._length is None:
            return None
        edit = self._edit(model)
        return self._length if edit is None else self._length - (edit[0][1] - edit[0][0]) + len(edit[1])

    async def pieces(self, model: str | None = None) -> AsyncIterator[bytes]:
        """All of it, as it comes, with the model renamed to `model` where that is another.

        Raises:
            BadRequest, BodyTooLarge, RequestTimeout, CallerGone: as `open`; what was given out is not whole then.
            Overloaded: the spool file can't be read.
        """
        edit = self._edit(model)
        if self._spool is not None:
            assert self._length is not None
            (start, end), new = edit or ((self._length, self._length), b"")
            async for piece in self._read_spool(0, start):
                yield piece
            if new:
                yield new
            async for piece in self._read_spool(end, self._length):
                yield piece
            return
        if self.consumed:
            raise RuntimeError("an upload that was passed on can't be sent again")
        self.consumed = True
        try:
            beginning = b"".join(self._start)
            self._start.clear()
            if edit is not None:
                (start, end), new = edit
                beginning = beginning[:start] + new + beginning[end:]
            yield beginning
            del beginning
            while not self._ended:
                yield await self._next()
        finally:
            self._read.set()

    async def receive_after(self) -> Message:
        """The caller's next message once the form was read: until then they are all the form's."""
        await self._read.wait()
        return await self._receive()

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._start.clear()

    # -- from the caller -----------------------------------------------------------------------------------------

    async def _next(self) -> bytes:
        """The next piece, looked at. After the last one `_ended` is true, and the form is known to be whole."""
        left_s = self._due_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(self._bounds.read_timeout_s, left_s)):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece: bytes = message.get("body", b"")
        self.read_bytes += len(piece)
        if self.read_bytes > self._bounds.size_bytes_max:
            raise _too_large(self._bounds.size_bytes_max)
        self.form.feed(piece)
        if not message.get("more_body", False):
            self._ended = True
            self.form.finish()
            self._length = self.read_bytes
        return piece

    async def _fill_spool(self) -> None:
        """Put all of it into a file."""
        bound = self._bounds.spool_bytes_max
        if self._length is not None and self._length > bound:
            raise BodyTooLarge(
                f"A form of more than {bound} bytes must have its fields before its files, and announce its length."
            )
        try:
            self._spool = tempfile.TemporaryFile(dir=self._bounds.spool_dir, buffering=0)  # noqa: SIM115 - `close`
            while True:
                if self._ended or self._start_bytes >= SPOOL_PIECE_BYTES:
                    block = b"".join(self._start)
                    self._start.clear()
                    self._start_bytes = 0
                    await asyncio.get_running_loop().run_in_executor(None, _write, self._spool, block)
                if self._ended:
                    break
                piece = await self._next()
                if self.read_bytes > bound:
                    raise _too_large(bound)
                self._start.append(piece)
                self._start_bytes += len(piece)
        except OSError as error:
            raise Overloaded(detail=f"no spool file: {error}") from error
        self._peek = self.form.peek()
        self._read.set()

    async def _read_spool(self, start: int, end: int) -> AsyncIterator[bytes]:
        assert self._spool is not None
        loop, number = asyncio.get_running_loop(), self._spool.fileno()
        while start < end:
            try:
                piece = await loop.run_in_executor(None, os.pread, number, min(SPOOL_PIECE_BYTES, end - start), start)
            except OSError as error:
                raise Overloaded(detail=f"spool file: {error}") from error
            if not piece:
                raise Overloaded(detail="spool file: shorter than what was written")
            start += len(piece)
            yield piece

    def _edit(self, model: str | None) -> tuple[Span, bytes] | None:
        """Where the model's name stands and what comes there instead; None where nothing changes."""
        peeked = self.peek
        if model is None or peeked.model_span is None or model == peeked.model:
            return None
        if "\r" in model or "\n" in model:
            raise BadRequest("The model's name has a line end in it.", param="model")
        return peeked.model_span, model.encode()


def _write(file: BinaryIO, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The upload is larger than the {limit_bytes} bytes this gateway accepts.")
