"""An answer that is no stream, for a chat client: gathered, and turned at its end.

Where the client asked for a stream and the provider answered with a plain message all the same, the client gets the
stream that this message would have been. An error with a good status is an error all the same.
"""

from collections.abc import Callable

from gateway.api import Call, Failure, ResponseHead, Usage
from gateway_adapters.anthropic import answer
from gateway_adapters.anthropic.stream import ChunkTap
from gateway_adapters.chat_answer import BYTES_PER_TOKEN, SSE_TYPE, BrokenAnswer, GatheredTap


class AnswerTap(GatheredTap):
    """The watcher of a plain message. See `gateway.api.Tap`."""

    def __init__(
        self, call: Call, head: ResponseHead, *, stream: ChunkTap | None, blame: Callable[[bytes], Failure]
    ) -> None:
        """`stream` makes chunks of it, where the client asked for those; `blame` says what an error means."""
        super().__init__(call, head)
        if stream is not None:
            self.content_type = SSE_TYPE
        self._stream = stream
        self._blame = blame

    def delivered(self) -> Usage:
        tokens = self._size // BYTES_PER_TOKEN if self.complete else 0
        return Usage(output_tokens=tokens, source="estimated" if self.complete else "partial")

    def _written(self, body: bytes) -> bytes:
        message = answer.decode_message(body)
        if message.type == "error":
            raise BrokenAnswer(self._blame(body))
        self._usage = answer.report_of(message)
        if self._stream is None:
            return answer.completion(message, created=self._created)
        return b"".join([self._stream.event(data) for data in answer.events_of(message)])
