"""Whether a caller reads what is written to it: one who does not holds a place, and what waits, for nothing."""

import asyncio

#: Written and not taken by the kernel; beyond it the source of the bytes is paused.
HIGH_WATER_BYTES = 32 * 1024


class Unread:
    """What the kernel has not taken of what was written to one connection, from look to look."""

    __slots__ = ("_since_s", "_size_bytes")

    def __init__(self) -> None:
        self._size_bytes = 0
        self._since_s = 0.0

    def is_stuck(self, transport: asyncio.WriteTransport, *, now_s: float, timeout_s: float) -> bool:
        """Whether none of it was taken for `timeout_s`; look once a second."""
        size_bytes = transport.get_write_buffer_size()
        stuck = False
        if size_bytes == 0 or not self._size_bytes or size_bytes < self._size_bytes:
            self._since_s = now_s
        else:
            stuck = now_s - self._since_s > timeout_s
        # More may have been written meanwhile: that is no sign of life.
        self._size_bytes = size_bytes
        return stuck
