"""Which answers wait for their end, and which leave byte by byte as they come."""

import asyncio

import pytest

from tests.acceptance.answers import ASK, delta, sse
from tests.upstreams import RECEIVE, Until, chunk, play

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("content_type", "first"),
    [
        (b"audio/mpeg", b"ID3 first bytes of a song"),
        (b"text/plain", b"1\n00:00:00,000 --> 00:00:01,000"),
        (b"application/json", sse(delta("events under the wrong name"))),
    ],
    ids=["audio", "text", "mislabelled events"],
)
async def test_what_is_of_use_before_its_end_does_not_wait_for_it(stage, server, content_type, first):
    rest = asyncio.Event()
    script = play(RECEIVE, HEAD % content_type, chunk(first), Until(rest), chunk(b"the rest"), b"0\r\n\r\n")
    gateway, _ = await stage.gateway(script, server=server)
    connection = await gateway.connect()
    await connection.send(gateway.request(ASK))

    async with asyncio.timeout(20):
        await connection.reader.readuntil(first)
        rest.set()
        await connection.reader.readuntil(b"the rest")
