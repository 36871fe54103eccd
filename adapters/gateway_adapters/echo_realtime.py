"""The echo provider's conversations: it says back the last text item, word by word, when it is asked for a response.

A word is a token, as everywhere in echo; what was said before is input once more.
"""

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
_WORD = re.compile(r"\s*\S+\s*")
_DEFAULT = "Hello! Say something, and it comes back."


class _Content(msgspec.Struct):
    text: str = ""


class _Item(msgspec.Struct):
    content: list[_Content] = []


class _Event(msgspec.Struct):
    type: str = ""
    item: _Item = msgspec.field(default_factory=_Item)
    session: dict[str, object] = {}


@contextlib.asynccontextmanager
async def serving(host: str) -> AsyncIterator[int]:
    """Converse on a free port, whose number it gives."""
    async with serve(
        _converse, host, 0, max_size=MESSAGE_BYTES_MAX, select_subprotocol=_choose, compression=None
    ) as server:
        port: int = next(iter(server.sockets)).getsockname()[1]
        yield port


def _choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol("realtime") if "realtime" in offered else None


async def _converse(connection: ServerConnection) -> None:
    numbers = itertools.count(1)
    session: dict[str, object] = {"object": "realtime.session", "model": "echo"}
    said: list[str] = []

    async def say(kind: str, **members: object) -> None:
        event = {"type": kind, "event_id": f"event_{next(numbers)}", **members}
        await connection.send(msgspec.json.encode(event).decode())

    with contextlib.suppress(ConnectionClosed):
        await say("session.created", session=session)
        async for message in connection:
            try:
                event = msgspec.json.decode(message, type=_Event)
            except msgspec.DecodeError:
                error = {"type": "invalid_request_error", "code": "invalid_event", "message": "That is no event."}
                await say("error", error=error)
                continue
            if event.type == "session.update":
                session |= {name: value for name, value in event.session.items() if name != "model"}
                await say("session.updated", session=session)
            elif event.type == "conversation.item.create":
                said.append(" ".join(each.text for each in event.item.content))
            elif event.type == "response.create":
                for kind, members in _response(said):
                    await say(kind, **members)


def _response(said: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    words = _WORD.findall(said[-1] if said else _DEFAULT)
    heard = sum(len(_WORD.findall(text)) for text in said)
    place = {"response_id": "resp_echo", "item_id": "item_echo", "output_index": 0, "content_index": 0}
    response: dict[str, object] = {
        "id": "resp_echo",
        "object": "realtime.response",
        "status": "in_progress",
        "output": [],
    }
    yield "response.created", {"response": response}
    for word in words:
        yield "response.output_text.delta", {**place, "delta": word}
    yield "response.output_text.done", {**place, "text": "".join(words)}
    usage = {
        "total_tokens": heard + len(words),
        "input_tokens": heard,
        "output_tokens": len(words),
        "input_token_details": {"text_tokens": heard, "audio_tokens": 0, "cached_tokens": 0},
        "output_token_details": {"text_tokens": len(words), "audio_tokens": 0},
    }
    yield "response.done", {"response": response | {"status": "completed", "usage": usage}}
    said.append("".join(words))
