"""Replays the golden cases of the bridges: the same files as those of the adapters, read by the same reader, with the
bridge of the caller's dialect between the caller and an adapter that serves chat completions.

A case is `golden/BRIDGE/NAME.case`. `== dropped` names what the bridge could not carry, then what the provider could
not be told.
"""

from pathlib import Path

import pytest

from gateway.testing.cases import Case, cases, check_received, check_sent

CASES = cases(Path(__file__).parent / "golden")


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_there_are_cases() -> None:
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_is_sent(path: Path) -> None:
    case = Case(path)

    assert case.bridge is not None
    check_sent(case)


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_comes_back(path: Path) -> None:
    check_received(Case(path))
