"""An answer that is no stream, for a chat client: gathered, and turned at its end.

Where the client asked for a stream and the provider answered with a plain message all the same, the client gets the
stream that this message would have been. An error with a good status is an error all the same.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.api import Failure, Usage
from gateway_adapters.anthropic import answer
from gateway_adapters.anthropic.stream import SSE_TYPE, ChunkTap
from gateway_adapters.chat_answer import unreadable

#: A longer answer is not read.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
JSON_TYPE: Final = b"application/json"


class AnswerTap:
    """The watcher of a plain message. See `gateway.api.Tap`."""

    rewrites = True
    mid_event = False
    __slots__ = ("_blame", "_created", "_parts", "_size", "_stream", "_usage", "complete", "content_type", "failure")

    def __init__(self, *, created: int, stream: ChunkTap | None, blame: Callable[[bytes], Failure]) -> None:
        """`stream` makes chunks of it, where the client asked for those; `blame` says what an error means."""
        self.complete = False
        self.failure: Failure | None = None
        self.content_type = JSON_TYPE if stream is None else SSE_TYPE
        self._created = created
        self._stream = stream
        self._blame = blame
        self._parts: list[bytes] = []
        self._size = 0
        self._usage: Usage | None = None

    @property
    def errored(self) -> bool:
        return self.failure is not None

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > ANSWER_BYTES_MAX:
            self._parts.clear()
            self.failure = unreadable("the answer is too long")
        else:
            self._parts.append(data)
        return b""

    def end(self) -> bytes:
        if self.failure is not None:
            return b""
        body = b"".join(self._parts)
        try:
            message = answer.decode_message(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.failure = unreadable(f"the answer can't be read: {error}")
            return b""
        if message.type == "error":
            self.failure = self._blame(body)
            return b""
        self._usage = answer.report_of(message)
        self.complete = True
        if self._stream is None:
            return answer.completion(message, created=self._created)
        return b"".join([self._stream.event(data) for data in answer.events_of(message)])

    def usage(self) -> Usage | None:
        return self._usage

    def delivered(self) -> Usage:
        tokens = self._size // answer.BYTES_PER_TOKEN if self.complete else 0
        return Usage(output_tokens=tokens, source="estimated" if self.complete else "partial")
