"""uvicorn's WebSocket protocol, as `DirectProtocol` hands connections to it: with an end of ours.

Rules:
- What is written and not taken by the kernel is bounded as for HTTP, and `send` waits beyond that. Reading pauses
  while the application has a message that it did not take.
- Nothing is compressed: what is sent is mostly audio, which would only cost time.
- A server that stops does not cut conversations. It tells the application through `scope["extensions"]`, by setting
  the event under `gateway.draining`; the application ends each at the next pause. What is still open at the end of
  the grace time is cancelled like any request.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gateway.server.unread import HIGH_WATER_BYTES, Unread

log = logging.getLogger(__name__)

DRAINING = "gateway.draining"


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One conversation."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: uvicorn's own arguments
        super().__init__(*args, **options)
        self._draining = asyncio.Event()
        self._unread = Unread()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def handle_connect(self, event: Any) -> None:  # Any: as uvicorn has it
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            # The application begins with the next turn of the loop.
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[DRAINING] = self._draining

    async def send(self, message: Any) -> None:  # Any: ASGI's own shape
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # Refused by an answer, which uvicorn takes for no answer at all.
            self.handshake_complete = True

    def handle_close(self, event: Frame) -> None:
        # The application hears of a caller who left; what it still had to say is of no use.
        super().handle_close(event)
        self.writable.set()

    def abort_unread(self, *, now_s: float, timeout_s: float) -> None:
        """Cut a conversation whose caller has taken none of what was said to it for `timeout_s`. For the sweep."""
        if self._unread.is_stuck(self.transport, now_s=now_s, timeout_s=timeout_s):
            log.info("%s has read nothing for %.0f s: its conversation is cut", self.client, timeout_s)
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops."""
        if self.disconnected or self.close_sent or not self.handshake_complete:
            super().shutdown()
        else:
            self._draining.set()
