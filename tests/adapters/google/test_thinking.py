"""OpenAI's efforts in the words of each generation."""

import msgspec
import pytest

from gateway.api import BadRequest
from gateway_adapters.chat_request import ChatRequest
from gateway_adapters.google.thinking import generation_of, needs_signatures, thinking_of


def request(**members: object) -> ChatRequest:
    found = msgspec.convert(members, ChatRequest)
    found.members = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}
    return found


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("gemini-3-pro", "none", {"thinkingLevel": "minimal"}),
        ("gemini-3.1-flash", "xhigh", {"thinkingLevel": "high"}),
        ("models/gemini-flash-latest", "medium", {"thinkingLevel": "medium"}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
        ("gemini-2.5-flash", "low", {"thinkingBudget": 1024}),
        ("gemini-2.5-flash", "medium", {"thinkingBudget": 8192}),
        ("gemini-2.5-flash", "high", {"thinkingBudget": 24576}),
        ("gemini-2.0-flash", "high", None),
        ("gemma-3-27b-it", "high", None),
        ("gemini-3-pro", None, None),
    ],
)
def test_an_effort(model: str, effort: str | None, config: dict[str, object] | None) -> None:
    asked = request() if effort is None else request(reasoning_effort=effort)

    assert thinking_of(asked, model) == config


def test_what_a_caller_says_in_googles_words_wins() -> None:
    own = {"include_thoughts": True, "thinking_budget": 5}
    asked = request(reasoning_effort="low", extra_body={"google": {"thinking_config": own}})

    found = thinking_of(asked, "gemini-2.5-flash")

    assert isinstance(found, msgspec.Raw)
    assert msgspec.json.decode(found) == own


@pytest.mark.parametrize(
    ("reasoning", "config"),
    [
        ({"effort": "low"}, {"thinkingLevel": "low", "includeThoughts": True}),
        ({"effort": "low", "exclude": True}, {"thinkingLevel": "low"}),
        ({"max_tokens": 100}, {"thinkingBudget": 100, "includeThoughts": True}),
        ({"effort": "none"}, {"thinkingLevel": "minimal"}),
    ],
)
def test_openrouters_way(reasoning: dict[str, object], config: dict[str, object]) -> None:
    assert thinking_of(request(reasoning=reasoning), "gemini-3-pro") == config


def test_an_effort_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        thinking_of(request(reasoning_effort="huge"), "gemini-3-pro")

    assert caught.value.param == "reasoning_effort"


def test_the_generation_stands_in_the_name() -> None:
    assert generation_of("gemini-2.5-flash-lite") == (2, 5)
    assert generation_of("publishers/google/models/gemini-3-pro-preview") == (3, 0)
    assert needs_signatures("gemini-3-pro")
    assert needs_signatures("gemini-flash-latest")
    assert not needs_signatures("gemini-2.5-pro")
    assert not needs_signatures("gemma-3-27b-it")
