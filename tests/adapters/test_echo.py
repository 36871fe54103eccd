"""The echo provider over its real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import openai
import pytest

from gateway.api import Call, ConfigError, Dialect, Lifecycle, Offer, ProviderConfig, UpstreamRequest
from gateway.secret import Secret
from gateway.wire.peek import peek
from gateway_adapters.echo import Echo

CONFIG = ProviderConfig(name="echo", base_url=None, api_key=None, extra={})


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    adapter = Echo()
    adapter.configure(CONFIG)
    await adapter.start()
    yield adapter
    await adapter.stop()


def request(echo: Echo, **members: object) -> UpstreamRequest:
    body = msgspec.json.encode({"model": "echo", "messages": [{"role": "user", "content": "a b c"}], **members})
    seen = peek(body)
    call = Call(
        id="1",
        dialect=Dialect.OPENAI_CHAT,
        method="POST",
        path=b"/chat/completions",
        query=b"",
        headers=[(b"content-type", b"application/json")],
        body=body,
        peek=seen,
        model=seen.model or "",
    )
    return echo.prepare(call, Offer(model=call.model, provider="echo", upstream_model=call.model))


class Link:
    """A connection to it, at the level of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, sent: UpstreamRequest) -> "Link":
        return cls(*await asyncio.open_connection(sent.origin.host, sent.origin.port))

    def send(self, sent: UpstreamRequest, *headers: bytes) -> None:
        assert isinstance(sent.body, bytes)
        lines = [b"%b %b HTTP/1.1" % (sent.method, sent.target), b"host: echo", *headers]
        lines += [b"%b: %b" % header for header in sent.headers]
        lines.append(b"content-length: %d" % len(sent.body))
        self.writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + sent.body)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw[:-4].split(b"\r\n")
        pairs = (line.partition(b": ") for line in lines)
        return int(start.split()[1]), {name: value for name, _, value in pairs}

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks(self) -> list[bytes]:
        found = []
        while data := await self.chunk():
            found.append(data)
        return found

    async def hung_up(self) -> bool:
        """Waits for the end of the connection, orderly or not."""
        with contextlib.suppress(ConnectionResetError):
            await self.reader.read()
        return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self.writer.wait_closed()


async def test_it_has_a_life_and_a_port_of_its_own(echo: Echo) -> None:
    other = Echo()
    other.configure(CONFIG)
    await other.start()

    assert isinstance(echo, Lifecycle)
    assert request(echo).origin.port != request(other).origin.port
    assert request(echo).target == b"/v1/chat/completions"

    await other.stop()
    await other.stop()


async def test_one_connection_carries_one_request_after_the_other(echo: Echo) -> None:
    link = await Link.open(request(echo))

    for stream in (False, True, False):
        sent = request(echo, stream=stream)
        link.send(sent)
        status, headers = await link.head()
        assert status == 200
        if stream:
            assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
            events = await link.chunks()
            assert events[-1] == b"data: [DONE]\n\n"
        else:
            body = await link.reader.readexactly(int(headers[b"content-length"]))
            assert msgspec.json.decode(body)["choices"][0]["message"]["content"] == "a b c"
    await link.close()


async def test_it_closes_when_asked_to(echo: Echo) -> None:
    sent = request(echo)
    link = await Link.open(sent)

    link.send(sent, b"connection: close")
    await link.head()

    assert await link.reader.read() != b""  # to the end of the connection
    await link.close()


async def test_words_come_one_by_one(echo: Echo) -> None:
    sent = request(echo, model="echo-delay-30ms-ttft-30ms", stream=True)
    link = await Link.open(sent)
    clock = asyncio.get_running_loop().time
    start = clock()

    link.send(sent)
    await link.head()
    events = await link.chunks()

    assert clock() - start >= 0.08
    assert len(events) == 7  # the role, three words, the finish, the usage that the gateway asks for, [DONE]
    await link.close()


async def test_cut_after_some_events_is_an_end_without_an_end(echo: Echo) -> None:
    sent = request(echo, model="echo-cut-2", stream=True)
    link = await Link.open(sent)

    link.send(sent)
    await link.head()

    assert b'"a ' in [await link.chunk(), await link.chunk()][1]
    assert await link.reader.read() == b""
    await link.close()


async def test_a_plain_answer_is_cut_in_its_middle(echo: Echo) -> None:
    sent = request(echo, model="echo-cut-1")
    link = await Link.open(sent)

    link.send(sent)
    _, headers = await link.head()

    assert 0 < len(await link.reader.read()) < int(headers[b"content-length"])
    await link.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stalled_answer_lasts_until_the_other_side_leaves(echo: Echo, stream: bool) -> None:
    sent = request(echo, model="echo-stall-1", stream=stream)
    link = await Link.open(sent)

    link.send(sent)
    await link.head()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(link.chunks() if stream else link.reader.read(), 0.2)

    await link.close()


async def test_failing_says_when_to_come_back(echo: Echo) -> None:
    sent = request(echo, model="echo-fail-429")
    link = await Link.open(sent)

    link.send(sent)
    status, headers = await link.head()

    assert (status, headers[b"retry-after"]) == (429, b"1")
    await link.close()


async def test_a_reader_that_does_not_read_pauses_the_words(echo: Echo) -> None:
    sent = request(echo, model="echo-tokens-100000", stream=True)
    link = await Link.open(sent)

    link.send(sent)
    await link.head()
    await asyncio.sleep(0.1)
    events = await link.chunks()

    assert len(events) == 100_004
    await link.close()


async def test_what_is_not_http_is_hung_up_on(echo: Echo) -> None:
    link = await Link.open(request(echo))

    link.writer.write(b"\x16\x03\x01 hello\r\n\r\n")

    assert await link.hung_up()
    await link.close()


async def test_stopping_hangs_up(echo: Echo) -> None:
    sent = request(echo, model="echo-stall-1", stream=True)
    link = await Link.open(sent)
    link.send(sent)
    await link.head()

    await echo.stop()

    assert await link.hung_up()
    await link.close()


async def test_the_official_client_understands_every_answer(echo: Echo) -> None:
    origin = request(echo).origin
    url = f"http://{origin.host}:{origin.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        messages = [{"role": "user", "content": "a b c"}]
        chat = await client.chat.completions.create(model="echo", messages=messages)
        assert chat.choices[0].message.content == "a b c"
        async with client.chat.completions.stream(model="echo", messages=messages) as chunks:
            assert (await chunks.get_final_completion()).choices[0].message.content == "a b c"
        legacy = await client.completions.create(model="echo", prompt="a b")
        assert legacy.choices[0].text == "a b"
        async with client.responses.stream(model="echo", input="a b") as events:
            final = await events.get_final_response()
        assert final.output_text == "a b"
        assert final.usage is not None
        assert final.usage.output_tokens == 2
        vectors = await client.embeddings.create(model="echo", input=["a", "b"])
        assert [len(item.embedding) for item in vectors.data] == [8, 8]
        assert [model.id async for model in client.models.list()][0] == "echo"  # noqa: RUF015
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="echo-fail-429", messages=messages)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="echo-nonsense", messages=messages)


@pytest.mark.parametrize(
    "config",
    [
        ProviderConfig(name="echo", base_url="http://elsewhere", api_key=None, extra={}),
        ProviderConfig(name="echo", base_url=None, api_key=Secret("k"), extra={}),
        ProviderConfig(name="echo", base_url=None, api_key=None, extra={"row": "groq"}),
    ],
)
def test_there_is_nothing_to_configure(config: ProviderConfig) -> None:
    with pytest.raises(ConfigError):
        Echo().configure(config)
