"""How much of the bodies that callers send one worker holds at a time.

A body has a bound of its own (`server.body_bytes_max`), and so has the number of requests; their product is more than
any machine has. Bodies that came in one read are not counted: of those, the connections bound the sum.

Rules:
- What is taken is given back when its request ends, however it ends: it may be sent again until then.
- Who finds no room is told to come back. Nobody waits in line: what is waited for may take as long as an answer.
"""

from gateway.errors import Overloaded


class Bodies:
    """The bodies of one worker. `held_bytes` is their sum."""

    __slots__ = ("_bytes_max", "held_bytes")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold so much more.

        Raises:
            Overloaded: there is no room for it.
        """
        if self.held_bytes + size_bytes > self._bytes_max:
            raise Overloaded(detail=f"{self.held_bytes} bytes of bodies are held already", retry_after_s=1.0)
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
