"""Replays the golden cases of the built-in adapters; `gateway/testing/cases.py` tells how they are written."""

from pathlib import Path

import pytest

from gateway.testing.cases import KINDS, Case, cases, check_received, check_sent, check_untouched

CASES = cases(Path(__file__).parent / "golden")
#: Rows that many people come for; others are known to make a provider, and no more (`test_compatible.py`).
ROWS = {
    *("bedrock-mantle", "bedrock-openai", "cerebras", "chutes", "deepinfra", "deepseek", "featherless", "fireworks"),
    *("gemini-openai", "groq", "huggingface", "lmstudio", "mistral", "nebius", "ollama", "openrouter", "perplexity"),
    *("portkey", "sambanova", "together", "vllm", "xai"),
}


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_each_adapter_has_the_five_cases() -> None:
    assert CASES
    for folder in {path.parent for path in CASES}:
        assert {path.stem for path in folder.iterdir()} >= KINDS, folder.name


def test_rows_that_many_come_for_have_cases() -> None:
    tables = [Case(path).config.extra for path in CASES if path.parent.name == "compatible"]

    assert {table.get("row") for table in tables} >= ROWS


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_is_sent(path: Path) -> None:
    check_sent(Case(path))


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_comes_back(path: Path) -> None:
    check_received(Case(path))


@pytest.mark.parametrize("path", CASES, ids=named)
def test_a_body_that_needs_no_change_is_the_very_same_object(path: Path) -> None:
    check_untouched(Case(path))
