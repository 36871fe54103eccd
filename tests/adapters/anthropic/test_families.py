"""Models are found by what they are called, however that is written."""

import pytest

from gateway_adapters.anthropic.families import REMEMBERED_MAX, families, family_of, plain_name


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4.5:beta", "claude-sonnet-4-5"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("claude-opus-4-1@20250805", "claude-opus-4-1"),
        ("claude-3-7-sonnet-latest", "claude-sonnet-3-7"),
        ("claude-3-5-haiku-20241022", "claude-haiku-3-5"),
        ("claude-4.6-opus-20260205", "claude-opus-4-6"),
        ("Claude-Opus-5", "claude-opus-5"),
        ("claude-3-opus-20240229", "claude-opus-3"),
    ],
)
def test_a_name_without_what_varies(written: str, plain: str) -> None:
    assert plain_name(written) == plain
    assert plain in family_of(written).models


def test_every_model_is_in_one_family() -> None:
    named = [model for family in families().values() for model in family.models]

    assert len(named) == len(set(named))
    assert all(plain_name(model) == model or model.startswith("claude-2") for model in named)


@pytest.mark.parametrize(
    ("model", "family"), [("claude-opus-9", "newest"), ("claude-sonnet-4-7", "newest"), ("kimi-k3", "other")]
)
def test_what_nobody_wrote_down(model: str, family: str) -> None:
    assert family_of(model) is families()[family]


def test_names_that_callers_make_up_are_not_kept_for_ever() -> None:
    from gateway_adapters.anthropic import families as module

    for number in range(REMEMBERED_MAX + 10):
        family_of(f"claude-made-up-{number}")

    assert len(module._remembered) <= REMEMBERED_MAX
