"""Content codings: undoing gzip and deflate, on whole bodies and on streams, without being blown up by them.

Rules:
- What comes out is bounded twice: absolutely, and as a multiple of what went in. Both are checked while inflating, so
  that at most one step's worth of output exists before a bomb is refused.
- What it takes grows with the input and no faster: the rest of the input is copied wherever a member ends, so that it
  is given in small steps, and a request has a bound on its members.
- A stream gives at once whatever its input allows: a server that flushes after each event is followed event by event.
- gzip may have several members (RFC 1952, section 2.2). `deflate` is zlib (RFC 9110, section 8.4.1.2); the bare form
  that some send instead is read too.
- Anything else, `zstd` and `br` among them, is refused: the standard library can't undo it on every Python we run on.
"""

import zlib

from gateway.errors import BadRequest, BodyTooLarge, GatewayError, UnsupportedEncoding, UpstreamMalformed

#: Text that repeats itself shrinks to a hundredth; nothing honest shrinks more.
RATIO_MAX = 200
#: Below this much output the ratio does not matter.
RATIO_FREE_BYTES = 1024 * 1024
#: Output made in one step, between two checks.
_STEP_BYTES = 1024 * 1024

#: Input given in one step: as much is copied at the end of each member.
_FED_BYTES = 16 * 1024
#: Members of a gzip request. Programs that write several put tens of kilobytes or more into each.
REQUEST_MEMBERS_MAX = 1024

_GZIP = zlib.MAX_WBITS | 16
_ZLIB = zlib.MAX_WBITS
_BARE = -zlib.MAX_WBITS

_CODINGS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}
_IDENTITY = frozenset({b"", b"identity"})


class Inflater:
    """Undoes one coding, piece by piece. Made by `request_inflater` and `response_inflater`."""

    def __init__(
        self,
        wbits: int,
        *,
        size_bytes_max: int,
        too_much: type[GatewayError],
        malformed: type[GatewayError],
        members_max: int | None = None,
    ) -> None:
        self._wbits = wbits
        self._size_bytes_max = size_bytes_max
        self._too_much = too_much
        self._malformed = malformed
        #: How many more there may be.
        self._members_left = members_max
        self._in = 0
        self._out = 0
        # What `deflate` means shows in its first two bytes.
        self._head = b""
        self._stream = zlib.decompressobj(wbits) if wbits == _GZIP else None

    def feed(self, data: bytes) -> bytes:
        """Everything that can be inflated once `data` is there.

        Raises:
            GatewayError: a bound was passed, or `data` is not of this coding; which error, the factory says.
        """
        self._in += len(data)
        if len(data) <= _FED_BYTES:
            return self._feed(data)
        view = memoryview(data)
        return b"".join(self._feed(bytes(view[at : at + _FED_BYTES])) for at in range(0, len(view), _FED_BYTES))

    def _feed(self, data: bytes) -> bytes:
        stream = self._stream
        if stream is None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return b""
            # RFC 1950, section 2.2: the method is 8, and the first two bytes are a multiple of 31.
            zlib_form = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            stream = self._stream = zlib.decompressobj(_ZLIB if zlib_form else _BARE)
        parts: list[bytes] = []
        more = bool(data)
        while more:
            if stream.eof:
                # Another member; zeros after the last one are padding, and whatever follows deflate is nothing.
                data = data.lstrip(b"\0") if self._wbits == _GZIP else b""
                if not data:
                    break
                if self._members_left is not None:
                    self._members_left -= 1
                    if self._members_left <= 0:
                        raise self._malformed(detail="the compressed body has too many members")
                stream = self._stream = zlib.decompressobj(_GZIP)
            try:
                part = stream.decompress(data, _STEP_BYTES)
            except zlib.error as error:
                raise self._malformed(detail=str(error)) from None
            self._out += len(part)
            bombed = self._out > RATIO_FREE_BYTES and self._out > self._in * RATIO_MAX
            if bombed or self._out > self._size_bytes_max:
                raise self._too_much
            parts.append(part)
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
            # A full step may have left output behind although all input is taken.
            more = bool(data) or (len(part) == _STEP_BYTES and not stream.eof)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """Say that the input is over.

        Raises:
            GatewayError: it stopped before the coding's own end.
        """
        started = self._in > 0
        if started and (self._stream is None or not self._stream.eof):
            raise self._malformed(detail="the compressed body is cut short")


class BadCoding(BadRequest):
    """The request body is not what its content-encoding says."""


def request_inflater(coding: bytes, *, size_bytes_max: int) -> Inflater | None:
    """For a request body with this `content-encoding`; None where there is nothing to undo.

    Its feed raises `BodyTooLarge` and `BadCoding`.

    Raises:
        UnsupportedEncoding: the coding is not known, or there are several.
    """
    name = coding.strip().lower()
    if name in _IDENTITY:
        return None
    wbits = _CODINGS.get(name)
    if wbits is None:
        raise UnsupportedEncoding
    return Inflater(
        wbits,
        size_bytes_max=size_bytes_max,
        too_much=BodyTooLarge,
        malformed=BadCoding,
        members_max=REQUEST_MEMBERS_MAX,
    )


def response_inflater(coding: bytes, *, size_bytes_max: int) -> Inflater | None:
    """For a provider's answer with this `content-encoding`; None where there is nothing to undo.

    Raises:
        UpstreamMalformed: the coding is not known, though none was asked for. Its feed raises the same.
    """
    name = coding.strip().lower()
    if name in _IDENTITY:
        return None
    wbits = _CODINGS.get(name)
    if wbits is None:
        raise UpstreamMalformed(detail="content-encoding not understood")
    return Inflater(wbits, size_bytes_max=size_bytes_max, too_much=UpstreamMalformed, malformed=UpstreamMalformed)


def inflate_request(body: bytes, coding: bytes, *, size_bytes_max: int) -> bytes:
    """A whole request body with its `content-encoding` undone; raises as `request_inflater` and its feed do."""
    inflater = request_inflater(coding, size_bytes_max=size_bytes_max)
    if inflater is None:
        return body
    plain = inflater.feed(body)
    inflater.end()
    return plain
