"""A crowd of callers, and what each of them saw: for tests that break a gateway under load and count afterwards.

A caller asks in a loop, each time on a connection of its own, and writes down an `Sight`: how many tokens reached it,
when, and whether the answer was whole. The provider behind (`tell`) says as many tokens as it is asked for, at a pace,
and reports exactly what it said; so what each answer has to cost is known to the nano.
"""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gateway.infra.postgres import Database
from gateway.kernel.journal import credit
from gateway.kernel.key_store import create_key
from gateway.wire.estimate import estimate_input_tokens
from tests.acceptance.answers import LAST_CHUNK, SSE, stream_head
from tests.gateways import PEPPER
from tests.upstreams import Peer, answer, chunk

#: What the provider reports for every question.
INPUT_TOKENS: Final = 7
INPUT_NANOS: Final = 1_000
OUTPUT_NANOS: Final = 4_000
MODEL: Final = """
[models.m]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 4.0
"""
CREDIT_NANOS: Final = 1_000_000_000_000
#: One token of the answer, as it stands in an event.
TOKEN: Final = b'"content":"word'
PATIENCE_S: Final = 60.0


class Question(msgspec.Struct):
    """The part of a request that the provider acts on."""

    max_tokens: int
    stream: bool = False
    user: str = "0"


@dataclass
class Account:
    id: int
    key: str
    key_id: str


@dataclass(eq=False)
class Sight:
    """What a caller saw of one answer."""

    account: Account
    stream: bool
    tokens: int
    question: bytes
    asked_s: float
    request_id: str = ""
    status: int = 0
    whole: bool = False
    #: When each token came in.
    token_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def price_nanos(self) -> int:
        """Of the whole answer."""
        return INPUT_TOKENS * INPUT_NANOS + self.tokens * OUTPUT_NANOS

    def part_nanos(self, tokens: int) -> int:
        """The least that a part of the answer may cost: the input as it is estimated, and so many tokens."""
        return estimate_input_tokens(self.question) * INPUT_NANOS + tokens * OUTPUT_NANOS


def ask(*, tokens: int, stream: bool, pace_ms: int) -> bytes:
    """The body of a request for `tokens` tokens, one each `pace_ms`."""
    return msgspec.json.encode(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Say it."}],
            "max_tokens": tokens,
            "stream": stream,
            "user": str(pace_ms),
        }
    )


async def tell(peer: Peer) -> None:
    """The provider's script: answer whatever is asked on one connection."""
    while True:
        request = await peer.receive()
        peer.upstream.requests.clear()
        question = msgspec.json.decode(request.body, type=Question)
        pace_s = int(question.user) / 1000
        if question.stream:
            await _stream(peer, question.max_tokens, pace_s)
        else:
            await asyncio.sleep(pace_s)
            await peer.send(answer(plain_answer(question.max_tokens)))


def plain_answer(tokens: int) -> bytes:
    text = " ".join(["word"] * tokens)
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": _usage(tokens),
        }
    )


def stream_events(tokens: int) -> list[bytes]:
    """The events of a streamed answer: a token in each but the last three."""
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    choice = b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
    return [
        *(head + choice % (b'{%b"}' % TOKEN, b"null") for _ in range(tokens)),
        head + choice % (b"{}", b'"stop"'),
        head + b'"choices":[],"usage":%b}\n\n' % msgspec.json.encode(_usage(tokens)),
        b"data: [DONE]\n\n",
    ]


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": INPUT_TOKENS, "completion_tokens": tokens, "total_tokens": INPUT_TOKENS + tokens}


async def _stream(peer: Peer, tokens: int, pace_s: float) -> None:
    *words, finish, usage, done = stream_events(tokens)
    await peer.send(stream_head(headers=SSE))
    for word in words:
        await peer.send(chunk(word))
        await asyncio.sleep(pace_s)
    await peer.send(chunk(finish) + chunk(usage) + chunk(done) + LAST_CHUNK)


async def open_accounts(database: Database, count: int) -> list[Account]:
    """Accounts with a key and credit each."""
    accounts = []
    for number in range(count):
        account_id = await database.fetch_value("insert into accounts (name) values ($1) returning id", f"a{number}")
        key = await create_key(database, name=f"k{number}", pepper=PEPPER.encode(), account_id=account_id)
        await credit(
            database, account_id, type="admin_credit", amount_nanos=CREDIT_NANOS, idempotency_key=f"open-{number}"
        )
        accounts.append(Account(account_id, key.text, key.id))
    return accounts


class Crowd:
    """Callers who ask until they are told to stop, and finish what they began."""

    def __init__(self, port: int, accounts: list[Account], *, seed: int) -> None:
        self.sights: list[Sight] = []
        self._port = port
        self._accounts = accounts
        self._random = random.Random(seed)
        self._going = True
        self._callers: list[asyncio.Future[None]] = []

    def start(self, *, streams: int, plain: int) -> None:
        """So many callers of each kind."""
        kinds = [True] * streams + [False] * plain
        self._callers = [asyncio.ensure_future(self._call(stream=stream)) for stream in kinds]

    async def finish(self) -> None:
        """Ask nothing more, and wait for what was asked."""
        self._going = False
        await asyncio.gather(*self._callers)

    async def _call(self, *, stream: bool) -> None:
        draw = self._random
        # Not all at once.
        await asyncio.sleep(draw.uniform(0, 2))
        while self._going:
            tokens = draw.randint(30, 70) if stream else draw.randint(1, 20)
            pace_ms = 100 if stream else draw.randint(0, 200)
            sight = await self.ask_once(draw.choice(self._accounts), tokens=tokens, stream=stream, pace_ms=pace_ms)
            if sight.status != 200:
                await asyncio.sleep(0.2)

    async def ask_once(self, account: Account, *, tokens: int, stream: bool, pace_ms: int) -> Sight:
        body = ask(tokens=tokens, stream=stream, pace_ms=pace_ms)
        sight = Sight(account, stream, tokens, body, asyncio.get_running_loop().time())
        self.sights.append(sight)
        writer = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
                    b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                    % (account.key.encode(), len(body), body)
                )
                await self._read(reader, sight)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            sight.ended_s = asyncio.get_running_loop().time()
            if writer is not None:
                writer.transport.abort()
        return sight

    async def _read(self, reader: asyncio.StreamReader, sight: Sight) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        sight.status = int(lines[0].split(b" ")[1])
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
        sight.request_id = fields[b"x-gateway-request-id"].decode()
        loop = asyncio.get_running_loop()
        if b"content-length" in fields:
            body = await reader.readexactly(int(fields[b"content-length"]))
            sight.whole = True
            sight.token_s = [loop.time()] * body.count(b"word")
            return
        rest = b""
        while data := await reader.read(65536):
            rest += data
            # An event that came in half is counted when its end is here.
            found = rest.count(TOKEN)
            sight.token_s += [loop.time()] * found
            if found:
                rest = rest[rest.rindex(TOKEN) + len(TOKEN) :]
        sight.whole = rest.endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK)
