"""Bytes that no provider should send, and some do: garbage, real answers with one value of another type, and error
answers of every status.
"""

import random
from collections.abc import Iterator
from typing import Final

import msgspec

from gateway.api import Headers, ResponseHead
from gateway.wire.sse import cut

AWS: Final = b"application/vnd.amazon.eventstream"
_FRAME_BYTES_MIN: Final = 16

GARBAGE: Final = (
    ("noise", random.Random(7).randbytes(4096)),
    ("zeros", b"\x00" * 1000),
    ("a page", b"<!DOCTYPE html>\n<html><head><title>502</title></head><body>Bad Gateway</body></html>\n"),
    ("half an event", b"data: {"),
    ("half an object", b'{"choices":[{"index":0,"message":{"content":"He'),
    ("no objects", b'data: null\n\ndata: 1\n\ndata: []\n\ndata: \n\ndata: "text"\n\nevent: x\n\n: c\n\n\n\n'),
    ("wrong insides", b'data: {"choices":null,"usage":7,"error":[]}\n\ndata: {"choices":[7],"type":9}\n\n'),
    ("deep", b"data: " + b"[" * 20_000 + b"\n\n"),
    ("a deep object", b'{"a":' * 5_000),
    ("broken text", b'data: {"choices":[{"delta":{"content":"\xff\xfe\xc3"}}]}\n\n'),
    ("a lone surrogate", b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'),
    ("huge numbers", b'data: {"usage":{"prompt_tokens":1e999,"x_tokens":-5,"total_tokens":%d}}\n\n' % 10**20),
    ("line ends", b"\r\n\r\n\r\r\n\n\rdata: {}\r\r\n"),
    ("an error", b'data: {"error":{"message":"overloaded","type":"server_error","code":503}}\n\n'),
)  # fmt: skip
#: What a value is changed into.
_OTHERS: Final[tuple[object, ...]] = (None, True, -1, 2**70, 0.5, "", "text", [], ["x"], {}, {"a": 1}, [None], [[]])

STATUSES: Final = (
    *(400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 415, 418, 422, 424, 425, 429, 431, 451, 498, 499),
    *(500, 501, 502, 503, 504, 505, 507, 508, 520, 521, 522, 523, 524, 525, 526, 527, 529, 530, 599),
)
_WAITS: Final = (
    b"7",
    b"0",
    b"-5",
    b"soon",
    b"1e309",
    b"nan",
    b"inf",
    b"9" * 40,
    b"Wed, 21 Oct 2026 07:28:00 GMT",
    b"",
)


def events_of(head: ResponseHead, body: bytes) -> list[bytes]:
    """The events of a stream, each with its end; of anything else, the body as one."""
    kind = head.header(b"content-type") or b""
    if kind.startswith(AWS):
        return _frames(body)
    if not kind.startswith(b"text/event-stream"):
        return [body]
    events = []
    start = 0
    while (end := cut(body, start, start)) >= 0:
        events.append(body[start:end])
        start = end
    return [*events, body[start:]] if start < len(body) or not events else events


def _frames(body: bytes) -> list[bytes]:
    frames = []
    start = 0
    while start + _FRAME_BYTES_MIN <= len(body):
        size = int.from_bytes(body[start : start + 4], "big")
        frames.append(body[start : start + size])
        start += max(size, _FRAME_BYTES_MIN)
    return frames or [body]


def mutants_of(head: ResponseHead, body: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """The answer with one value of it changed, removed or turned into another type."""
    if (head.header(b"content-type") or b"").startswith(AWS):
        for _ in range(count):
            at = chance.randrange(len(body))
            yield body[:at] + chance.randbytes(1) + body[at + 1 :]
        return
    events = events_of(head, body)
    objects = []
    for number, event in enumerate(events):
        begin = event.find(b"{")
        if begin >= 0:
            try:
                objects.append((number, begin, msgspec.json.decode(event[begin:].strip())))
            except msgspec.DecodeError:
                continue
    if not objects:
        return
    for _ in range(count):
        number, begin, value = chance.choice(objects)
        text = msgspec.json.encode(_changed(value, chance))
        end = b"\n\n" if len(events) > 1 else b""
        yield b"".join([*events[:number], events[number][:begin] + text + end, *events[number + 1 :]])


def _changed(value: object, chance: random.Random) -> object:
    """A copy with one place in it changed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {key: inner for key, inner in value.items() if key != name}
        return {**value, name: _changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(_OTHERS)


def errors_of(secret: str) -> Iterator[tuple[int, Headers, bytes]]:
    """Error answers: every status with every kind of body, and odd times to wait. `secret` is said back by some."""
    said = b"Incorrect API key provided: " + secret.encode()
    whole = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}' % said
    bodies = (
        b"",
        whole,
        whole[:-9],
        whole[:40],
        b'{"type":"error","error":{"type":"overloaded_error","message":"%b"}}' % said,
        b'{"error":"%b"}' % said,
        b'{"error":[{"message":7}]}',
        b'{"message":"%b"}' % said,
        b'{"detail":[{"loc":["body"],"msg":"%b"}]}' % said,
        b'[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"%b","details":[1,null,{}]}}]' % said,
        b"<html><body>" + said + b"</body></html>",
        said,
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b"\xff\xfe" + said,
        b"[" * 20_000,
        b'{"error":{"message":"' + b"long " * 10_000 + b'"}}',
        random.Random(3).randbytes(600),
    )
    json: Headers = [(b"content-type", b"application/json")]
    for status in STATUSES:
        for body in bodies:
            yield status, json, body
    for wait in _WAITS:
        for name in (b"retry-after", b"retry-after-ms", b"x-ratelimit-reset-requests"):
            for status in (429, 503):
                yield status, [*json, (name, wait)], whole
