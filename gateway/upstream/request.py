"""A request as bytes: the head, and the framing of a body that comes in pieces.

Rules:
- `host`, `content-length` and `transfer-encoding` are written here and nowhere else (RFC 9112, section 6).
- Nothing that was put into a header or a target can start a new line: a request with a stray CR, LF or NUL, or a
  space in its target, is refused. The count of line ends in the finished head tells, at the price of three scans of
  a few hundred bytes.
"""

from collections.abc import AsyncIterable
from typing import Final

from gateway.api import Origin, UpstreamRequest
from gateway.errors import BadRequest, GatewayError, UpstreamDisconnected
from gateway.upstream.connection import Connection
from gateway.upstream.proxy import Proxy, bracketed
from gateway.upstream.response import UpstreamResponse

# RFC 9110, section 8.6: a length is expected from the methods that give content a meaning, even where there is none.
_BODILESS_METHODS: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_pair = b": ".join


class HeadEncoder:
    """Heads for one origin: what is the same in all of them is made once."""

    __slots__ = ("_lines", "_prefix", "_tail")

    def __init__(self, origin: Origin, proxy: Proxy | None) -> None:
        authority = _authority(origin)
        # Plain HTTP through a proxy names the whole origin (RFC 9112, section 3.2.2); https goes through a tunnel.
        absolute = proxy is not None and origin.scheme == "http"
        self._prefix = b" http://" + authority if absolute else b" "
        self._tail = b" HTTP/1.1\r\nhost: " + authority + b"\r\n"
        if absolute and proxy is not None and proxy.authorization:
            self._tail += b"proxy-authorization: " + proxy.authorization + b"\r\n"
        # With the line of the body's framing; the empty line at the end stands for the last header's own.
        self._lines = self._tail.count(b"\n") + 2

    def encode(self, request: UpstreamRequest) -> bytes:
        """The head, with its closing empty line.

        Raises:
            BadRequest: a character that would change the meaning of the head.
        """
        body = request.body
        lines = self._lines + len(request.headers)
        if isinstance(body, bytes):
            if body or request.method not in _BODILESS_METHODS:
                framing = b"content-length: %d\r\n" % len(body)
            else:
                framing = b""
                lines -= 1
        elif request.content_length is None:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b"content-length: %d\r\n" % request.content_length
        fields = b"\r\n".join(map(_pair, request.headers))
        end = b"\r\n\r\n" if fields else b"\r\n"
        head = b"".join((request.method, self._prefix, request.target, self._tail, framing, fields, end))
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in request.target:
            raise BadRequest(detail="a line end, NUL or space inside the target or a header")
        return head


async def upload(
    connection: Connection,
    response: UpstreamResponse,
    body: AsyncIterable[bytes],
    content_length: int | None,
) -> None:
    """Write a body as it comes, never faster than the socket takes it, and tell `response` how that went.

    A failure of the body itself becomes `response.fault`. What is no `GatewayError` goes on to the caller.
    """
    sent_bytes = 0
    finished = False
    reason = "request body: not sent whole"
    try:
        async for piece in body:
            if not connection.serves(response):
                return
            if not piece:
                continue
            sent_bytes += len(piece)
            if content_length is None:
                connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            elif sent_bytes <= content_length:
                connection.write(piece)
            else:
                break
            response.touched = True
            await connection.writable()
        if content_length is None:
            connection.write(b"0\r\n\r\n")
            finished = True
        else:
            finished = sent_bytes == content_length
            reason = f"request body: {sent_bytes} or more bytes where {content_length} were announced"
    except GatewayError as error:
        response.fault = error
    finally:
        if connection.serves(response):
            if finished:
                connection.finish_upload()
            else:
                connection.fail(UpstreamDisconnected(detail=reason))


def _authority(origin: Origin) -> bytes:
    """Host and, where it is not the scheme's own, port."""
    port = b"" if _DEFAULT_PORTS.get(origin.scheme) == origin.port else b":%d" % origin.port
    return bracketed(origin.host).encode("ascii") + port
