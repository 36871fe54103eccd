"""Token counts where the model's provider has no endpoint for them: the gateway's own estimate, and nobody is asked.

It is the estimate that money is held by, so that a caller who goes by it is never surprised; like that, it is rather
too high than too low. It costs nothing.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.bridges.gemini_request import camel
from gateway.bridges.hub import encode, request_members
from gateway.bridges.responses_request import read_members
from gateway.exchange import Call
from gateway.wire.dialects import Dialect
from gateway.wire.estimate import estimate_input_tokens


def _count_messages(call: Call) -> bytes:
    """Anthropic's answer, https://platform.claude.com/docs/en/api/messages-count-tokens."""
    request_members(call).need("messages", list[msgspec.Raw])
    return encode({"input_tokens": estimate_input_tokens(call.body)})


def _count_contents(call: Call) -> bytes:
    """Google's answer, https://ai.google.dev/api/tokens. The contents stand in the body, or in a request in it."""
    members = request_members(call, spell=camel)
    if members.raw("generateContentRequest") is None:
        members.need("contents", list[msgspec.Raw])
    return encode({"totalTokens": estimate_input_tokens(call.body)})


def _count_input(call: Call) -> bytes:
    """OpenAI's answer, https://platform.openai.com/docs/api-reference/responses/input-tokens."""
    read_members(call.body)
    return encode({"object": "response.input_tokens", "input_tokens": estimate_input_tokens(call.body)})


#: By the dialect that asks; each raises BadRequest where there is nothing to count.
COUNTERS: Final[dict[Dialect, Callable[[Call], bytes]]] = {
    Dialect.OPENAI_INPUT_TOKENS: _count_input,
    Dialect.ANTHROPIC_COUNT_TOKENS: _count_messages,
    Dialect.GEMINI_COUNT_TOKENS: _count_contents,
}
