"""How much a model is to think: OpenAI's words for it in Google's, which differ by generation.

Models up to 2.5 take a number of tokens, later ones a level. What a caller says in Google's own words, in the place
that Google's OpenAI-compatible API has for them (`extra_body.google`), wins.
"""

import re
from typing import Final, TypeVar

import msgspec

from gateway.api import BadRequest
from gateway_adapters.chat_request import NONE, ChatRequest

T = TypeVar("T")

_GENERATION = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
#: Of those that a name says nothing of: aliases of the newest.
_NEWEST: Final = (99, 0)
_FIRST_THAT_THINKS: Final = (2, 5)
_FIRST_WITH_LEVELS: Final = (3, 0)

#: Tokens. 2.5 Pro can't be kept from thinking; this is its least.
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}
_PRO_BUDGET_MIN: Final = 128
_LEVELS: Final = {
    "none": "minimal",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}


class _Reasoning(msgspec.Struct):
    """OpenRouter's way to say it."""

    effort: str | None = None
    max_tokens: int | None = None
    exclude: bool | None = None


class _Google(msgspec.Struct):
    thinking_config: msgspec.Raw = NONE
    cached_content: msgspec.Raw = NONE
    safety_settings: msgspec.Raw = NONE


class _Extra(msgspec.Struct):
    google: _Google = msgspec.field(default_factory=_Google)


def own_words(request: ChatRequest) -> _Google:
    """What the request says to Google in particular: `extra_body.google`."""
    raw = request.member("extra_body")
    return _read("extra_body", raw, _Extra).google if raw is not None else _Google()


def generation_of(model: str) -> tuple[int, int]:
    """(2, 5) for `gemini-2.5-flash`."""
    found = _GENERATION.search(model)
    return _NEWEST if found is None else (int(found[1]), int(found[2] or 0))


def needs_signatures(model: str) -> bool:
    return "gemini" in model and generation_of(model) >= _FIRST_WITH_LEVELS


def thinking_of(request: ChatRequest, model: str) -> dict[str, object] | msgspec.Raw | None:
    """The `thinkingConfig`; None where the request says nothing of it, or the model does not think.

    Raises:
        BadRequest: an effort that there is not.
    """
    if bytes(own := own_words(request).thinking_config):
        return own
    raw = request.member("reasoning")
    reasoning = _Reasoning() if raw is None else _read("reasoning", raw, _Reasoning)
    effort = request.reasoning_effort or reasoning.effort
    generation = generation_of(model)
    if generation < _FIRST_THAT_THINKS or "gemini" not in model:
        return None
    config: dict[str, object] = {}
    if effort is not None and effort not in _LEVELS:
        raise BadRequest(
            f"`reasoning_effort` must be one of {', '.join(_LEVELS)}.", param="reasoning_effort", code="invalid_value"
        )
    if reasoning.max_tokens is not None:
        config["thinkingBudget"] = reasoning.max_tokens
    elif effort is not None and generation >= _FIRST_WITH_LEVELS:
        config["thinkingLevel"] = _LEVELS[effort]
    elif effort is not None:
        least = _PRO_BUDGET_MIN if "pro" in model else 0
        config["thinkingBudget"] = max(_BUDGETS[effort], least)
    if raw is not None and not reasoning.exclude and effort != "none":
        # Who asks for reasoning in that way wants to see it; `reasoning_effort` alone shows none, as at OpenAI.
        config["includeThoughts"] = True
    return config or None


def _read(name: str, raw: msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(f"`{name}` is not as it should be.", param=name, code="invalid_value") from None
