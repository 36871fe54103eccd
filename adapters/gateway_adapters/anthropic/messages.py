"""The messages of a chat as Anthropic has them: what the system says, and the turns of user and assistant.

Rules:
- What `system` and `developer` say goes in front, in order, wherever it stood.
- Consecutive messages of user and tools are one turn: the results of tools come first in it, which Anthropic demands,
  and everything else follows in order.
- What a model thought goes back with its signature, in front of what it said and called. Without one it is of no use
  to Anthropic and stays out.
- What is left empty is left out. Whether the rest makes sense is Anthropic's to say.
"""

import contextlib
from collections.abc import Iterator

import msgspec

from gateway.api import BadRequest
from gateway_adapters.anthropic.chat import NOTHING, FunctionCall, Message, Reasoning, ToolCall
from gateway_adapters.anthropic.content import Block, blocks_of, is_kept_file, mark, text_of
from gateway_adapters.anthropic.names import CUSTOM_INPUT, write_id, write_name
from gateway_adapters.chat_request import object_of

_ANTHROPIC = "anthropic"

_decode_text = msgspec.json.Decoder(str).decode


class Conversation(msgspec.Struct, frozen=True):
    """`system` and `messages` of a request."""

    system: list[Block]
    messages: list[Block]
    #: True where the model is to go on after a tool that it called without its thoughts being told.
    thoughtless: bool
    #: True where a block is about a file that the provider keeps.
    has_files: bool


def conversation_of(messages: list[Message]) -> Conversation:
    """The same conversation for Anthropic.

    Raises:
        BadRequest: a message is malformed, or has content that can't be told; `param` names it.
    """
    turns = _Turns()
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        match message.role:
            case "user":
                blocks = blocks_of(message.content, param=f"{param}.content")
                turns.say(_marked(blocks, message))
            case "assistant":
                turns.answer(_marked(_answer(message, number, param), message))
            case "tool" | "function":
                turns.report(_result(message, turns.function_id, param))
            case "system" | "developer":
                turns.system += _marked(text_of(message.content, param=f"{param}.content"), message)
            case role:
                shown = role[:40] if role.isprintable() else "?"
                raise BadRequest(f"There is no role `{shown}`.", param=f"{param}.role", code="invalid_value")
        if message.role == "assistant" and message.function_call is not None:
            turns.function_id = _function_id(number)
    return turns.close()


class _Turns:
    """Collects messages into turns."""

    def __init__(self) -> None:
        self.system: list[Block] = []
        #: What the last call of the old kind, which had no id, is called here.
        self.function_id = ""
        self._turns: list[Block] = []
        self._results: list[Block] = []
        self._said: list[Block] = []
        self._thoughtless = False

    def say(self, blocks: list[Block]) -> None:
        self._said += blocks
        if blocks:
            self._thoughtless = False

    def report(self, result: Block) -> None:
        self._results.append(result)

    def answer(self, blocks: list[Block]) -> None:
        if not blocks:
            return
        self._close_user()
        calls = blocks[-1]["type"] == "tool_use"
        self._thoughtless = calls and blocks[0]["type"] not in ("thinking", "redacted_thinking")
        self._turns.append({"role": "assistant", "content": blocks})

    def close(self) -> Conversation:
        self._close_user()
        if self._turns and self._turns[-1]["role"] == "assistant":
            _trim(self._turns[-1]["content"])
        has_files = any(is_kept_file(block) for turn in self._turns for block in turn["content"])
        for turn in self._turns:
            turn["content"] = _plain(turn["content"])
        return Conversation(self.system, self._turns, self._thoughtless, has_files)

    def _close_user(self) -> None:
        if blocks := self._results + self._said:
            self._turns.append({"role": "user", "content": blocks})
        self._results, self._said = [], []


def _marked(blocks: list[Block], message: Message) -> list[Block]:
    """A cache mark on a message is one on its last block."""
    if (
        blocks
        and message.cache_control is not NOTHING
        and blocks[-1]["type"] not in ("thinking", "redacted_thinking")
    ):
        mark(blocks[-1], message.cache_control)
    return blocks


def _plain(blocks: list[Block]) -> list[Block] | str:
    """A single text without any mark is written as the text alone."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        text: str = blocks[0]["text"]
        return text
    return blocks


def _trim(blocks: list[Block]) -> None:
    """What the assistant is to go on from must not end in white space."""
    last = blocks[-1]
    if last["type"] == "text":
        last["text"] = last["text"].rstrip()


def _answer(message: Message, number: int, param: str) -> list[Block]:
    blocks = [*_thoughts(message)]
    blocks += blocks_of(message.content, param=f"{param}.content")
    if message.refusal and not message.content:
        blocks += blocks_of(message.refusal, param=f"{param}.refusal")
    for index, call in enumerate(message.tool_calls or ()):
        blocks.append(_call(call, f"call_{number}_{index}", f"{param}.tool_calls[{index}]"))
    if message.function_call is not None:
        blocks.append(_function(_function_id(number), message.function_call, f"{param}.function_call"))
    return blocks


def _function_id(number: int) -> str:
    return f"call_fn_{number}"


def _call(call: ToolCall, unnamed: str, param: str) -> Block:
    call_id = write_id(call.id) if call.id else unnamed
    if call.custom is not None:
        name = write_name(call.custom.name, custom=True, param=param)
        return {"type": "tool_use", "id": call_id, "name": name, "input": {CUSTOM_INPUT: call.custom.input}}
    if call.function is None:
        raise BadRequest("A tool call needs its `function`.", param=param, code="missing_required_parameter")
    return _function(call_id, call.function, param)


def _function(call_id: str, function: FunctionCall, param: str) -> Block:
    name = write_name(function.name, param=param)
    return {"type": "tool_use", "id": call_id, "name": name, "input": input_of(function.arguments)}


def input_of(arguments: msgspec.Raw) -> msgspec.Raw:
    """The arguments of a call as the object that Anthropic wants, digit by digit as they were where they are one."""
    raw = bytes(arguments)
    text = raw.decode("utf-8", "replace")
    if raw.startswith(b'"'):
        # With half a surrogate pair in it, the text as it was written says as much as there is.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            text = _decode_text(raw)
    return object_of(text)


def _result(message: Message, function_id: str, param: str) -> Block:
    call_id = function_id if message.role == "function" else write_id(message.tool_call_id or "")
    if not call_id:
        raise BadRequest(
            "A tool's message must say which call it answers.",
            param=f"{param}.tool_call_id",
            code="missing_required_parameter",
        )
    result: Block = {"type": "tool_result", "tool_use_id": call_id}
    if blocks := blocks_of(message.content, param=f"{param}.content"):
        result["content"] = _plain(blocks)
    return mark(result, message.cache_control)


def _thoughts(message: Message) -> Iterator[Block]:
    """What the model thought, as far as Anthropic can know it again."""
    if message.thinking_blocks:
        for block in message.thinking_blocks:
            if block.type == "thinking" and block.signature:
                yield {"type": "thinking", "thinking": block.thinking or "", "signature": block.signature}
            elif block.type == "redacted_thinking" and block.data:
                yield {"type": "redacted_thinking", "data": block.data}
        return
    for detail in _joined(message.reasoning_details or ()):
        if detail.format is not None and not detail.format.startswith(_ANTHROPIC):
            continue
        if detail.type == "reasoning.text" and detail.signature:
            yield {"type": "thinking", "thinking": detail.text or "", "signature": detail.signature}
        elif detail.type == "reasoning.encrypted" and detail.data:
            yield {"type": "redacted_thinking", "data": detail.data}


def _joined(details: list[Reasoning] | tuple[()]) -> Iterator[Reasoning]:
    """Pieces of one thought, as a stream brought them and a client kept them, put together by their index."""
    pieces: list[Reasoning] = []
    for detail in details:
        if pieces and (detail.index is None or (detail.index, detail.type) != (pieces[0].index, pieces[0].type)):
            yield _join(pieces)
            pieces = []
        pieces.append(detail)
    if pieces:
        yield _join(pieces)


def _join(pieces: list[Reasoning]) -> Reasoning:
    if len(pieces) == 1:
        return pieces[0]
    return Reasoning(
        type=pieces[0].type,
        text="".join(piece.text or "" for piece in pieces),
        signature=next((piece.signature for piece in pieces if piece.signature), None),
        data=next((piece.data for piece in pieces if piece.data), None),
        format=next((piece.format for piece in pieces if piece.format), None),
    )
