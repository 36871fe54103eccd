"""Replays the golden cases of the built-in adapters; `gateway/testing/cases.py` tells how they are written."""

from pathlib import Path

import pytest

from gateway.testing.cases import KINDS, Case, cases, check_received, check_sent, check_untouched

CASES = cases(Path(__file__).parent / "golden")


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_each_adapter_has_the_five_cases() -> None:
    assert CASES
    for folder in {path.parent for path in CASES}:
        assert {path.stem for path in folder.iterdir()} >= KINDS, folder.name


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_is_sent(path: Path) -> None:
    check_sent(Case(path))


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_comes_back(path: Path) -> None:
    check_received(Case(path))


@pytest.mark.parametrize("path", CASES, ids=named)
def test_a_body_that_needs_no_change_is_the_very_same_object(path: Path) -> None:
    check_untouched(Case(path))
