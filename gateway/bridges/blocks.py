"""The content blocks of an Anthropic stream: one open at a time, numbered from 0 without gaps.

A chat stream says what it says in any order: reasoning, text and pieces of several calls. A piece of another block
than the open one closes it, and opens the next; but a call to a tool is only closed when its arguments are whole, and
what comes before that waits. What waits is bounded, as no provider means to mix its calls.
"""

import re
from typing import Final, Literal

from gateway.bridges.calls import JSONEnd
from gateway.bridges.hub import encode
from gateway.bridges.taps import Unwritable

#: Characters that wait for a call's arguments to be whole.
WAITING_CHARS_MAX: Final = 4 * 1024 * 1024

Kind = Literal["text", "thinking", "redacted_thinking", "tool_use"]

_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")
_DELTAS: Final[dict[Kind, bytes]] = {
    "text": b'{"type":"text_delta","text":',
    "thinking": b'{"type":"thinking_delta","thinking":',
    "tool_use": b'{"type":"input_json_delta","partial_json":',
    # It comes whole, with its beginning.
    "redacted_thinking": b"",
}
_EMPTY: Final[dict[Kind, bytes]] = {
    "text": b'{"type":"text","text":""}',
    "thinking": b'{"type":"thinking","thinking":"","signature":""}',
}


def call_id(answer: str, number: int) -> str:
    """An id for a call that was given none, in the letters that Anthropic allows."""
    return f"toolu_{_OTHER.sub('_', answer)[:64]}_{number}"


class _Block:
    __slots__ = ("end", "id", "kind", "name", "number", "pieces", "secret")

    def __init__(self, kind: Kind, number: int, secret: str = "") -> None:
        self.kind: Kind = kind
        #: The signature of a thought, or what one is that can't be read.
        self.secret = secret
        #: Of a call.
        self.number = number
        self.id = ""
        self.name = ""
        #: What waits to be written.
        self.pieces: list[str] = []
        self.end = JSONEnd() if kind == "tool_use" else None

    @property
    def may_open(self) -> bool:
        return self.kind != "tool_use" or self.name != ""

    @property
    def may_close(self) -> bool:
        return self.end is None or self.end.whole


class Blocks:
    """Writes the events of all blocks of one stream."""

    __slots__ = ("_called", "_delta", "_index", "_kind", "_name", "_open", "_waiting", "_waiting_chars")

    def __init__(self, name: str) -> None:
        """`name` is the answer's: calls without an id get one from it, so that no two of a conversation are alike."""
        self._name = name
        #: The number of the last call that was begun.
        self._called = -1
        self._index = -1
        self._open: _Block | None = None
        #: Of the open block; None where a piece of it takes the long way.
        self._kind: Kind | None = None
        #: What an event of the open block begins with.
        self._delta = b""
        self._waiting: list[_Block] = []
        self._waiting_chars = 0

    @property
    def called(self) -> bool:
        """True once a call was begun."""
        return self._called >= 0

    def say(self, kind: Kind, text: str) -> bytes:
        """A piece of text or reasoning."""
        if kind == self._kind:
            return b"%b%b}}\n\n" % (self._delta, encode(text))
        waiting = self._waiting
        if not waiting and (self._open is None or self._open.may_close):
            return self._switch(_Block(kind, -1)) + self._write(text)
        if not waiting or waiting[-1].kind != kind or waiting[-1].secret:
            waiting.append(_Block(kind, -1))
        return self._wait(waiting[-1], text)

    def sign(self, signature: str) -> bytes:
        """The signature of the thought that was told last, or of one that is not told; it ends that thought."""
        waiting = self._waiting
        if waiting:
            if waiting[-1].kind != "thinking" or waiting[-1].secret:
                waiting.append(_Block("thinking", -1))
            waiting[-1].secret = signature
            return self._hold(len(signature))
        block = self._open
        if block is None or block.kind != "thinking" or block.secret:
            return self._begin(_Block("thinking", -1, signature))
        # What is thought after it is another thought.
        self._kind = None
        block.secret = signature
        return self._sign(signature)

    def hide(self, data: str) -> bytes:
        """A thought that can't be read."""
        return self._begin(_Block("redacted_thinking", -1, data))

    def call(self, number: int, *, id_: str, name: str, arguments: str) -> bytes:
        """A piece of a call; the name and the id stand in its first one."""
        block = self._find(number)
        if block is None:
            if number <= self._called:
                if arguments.strip():
                    raise Unwritable("a call goes on after its arguments were whole")
                return b""
            self._called = number
            block = _Block("tool_use", number)
            self._waiting.append(block)
        assert block.end is not None
        block.id = block.id or id_
        block.name = block.name or name
        block.end.feed(arguments)
        if block is self._open:
            out = self._write(arguments) if arguments else b""
            return out + self._advance() if self._waiting else out
        return self._wait(block, arguments)

    def finish(self) -> bytes:
        """Write what waits, and close what is open."""
        out = b"".join([self._open_next() for _ in range(len(self._waiting))])
        return out + self._close()

    def _find(self, number: int) -> _Block | None:
        if self._open is not None and self._open.number == number:
            return self._open
        return next((block for block in self._waiting if block.number == number), None)

    def _wait(self, block: _Block, text: str) -> bytes:
        if text:
            block.pieces.append(text)
        return self._hold(len(text))

    def _hold(self, chars: int) -> bytes:
        self._waiting_chars += chars
        if self._waiting_chars > WAITING_CHARS_MAX:
            raise Unwritable("several calls at once, none of them whole")
        return self._advance()

    def _begin(self, block: _Block) -> bytes:
        """A block that is whole; it waits like any other."""
        self._waiting.append(block)
        return self._hold(len(block.secret))

    def _advance(self) -> bytes:
        """Open what waits for as long as the block before it may be closed."""
        out: list[bytes] = []
        while self._waiting and self._waiting[0].may_open and (self._open is None or self._open.may_close):
            out.append(self._open_next())
        return b"".join(out)

    def _open_next(self) -> bytes:
        block = self._waiting.pop(0)
        out = self._switch(block)
        if block.pieces:
            text = "".join(block.pieces)
            self._waiting_chars -= len(text)
            block.pieces.clear()
            out += self._write(text)
        if block.secret:
            self._waiting_chars -= len(block.secret)
            self._kind = None
            if block.kind == "thinking":
                out += self._sign(block.secret)
        return out

    def _switch(self, block: _Block) -> bytes:
        out = self._close()
        self._index += 1
        self._open = block
        kind = block.kind
        # A call may be over with any piece; text is over when something else comes.
        self._kind = None if kind == "tool_use" else kind
        self._delta = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b' % (
            self._index,
            _DELTAS[kind],
        )
        if kind == "tool_use":
            id_ = block.id or call_id(self._name, block.number)
            content = encode({"type": kind, "id": id_, "name": block.name, "input": {}})
        elif kind == "redacted_thinking":
            content = encode({"type": kind, "data": block.secret})
        else:
            content = _EMPTY[kind]
        start = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
        return out + start % (self._index, content)

    def _write(self, text: str) -> bytes:
        return b"%b%b}}\n\n" % (self._delta, encode(text))

    def _sign(self, signature: str) -> bytes:
        delta = b'{"type":"content_block_delta","index":%d,"delta":{"type":"signature_delta","signature":%b}}'
        return b"event: content_block_delta\ndata: %b\n\n" % (delta % (self._index, encode(signature)))

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = self._kind = None
        return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._index
