"""Replays the golden cases of the bridges: the same files as those of the adapters, read by the same reader, with the
bridge of the caller's dialect between the caller and an adapter that serves chat completions.

A case is `golden/BRIDGE/NAME.case`. Sections that differ from an adapter's:

    == dropped            what the bridge could not carry, and then what the provider could not be told
    == refused            in place of everything below `request`: the bridge can't carry this
"""

import random
from pathlib import Path

import msgspec
import pytest

from gateway.api import BadRequest, Failure, Tap, Usage
from gateway.bridges import BRIDGES
from tests.adapters.test_golden import SPLITS, Case, message, pieces_of, play

CASES = sorted((Path(__file__).parent / "golden").glob("*/*.case"))


class Bridged(Case):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        assert self.call.dialect not in self.adapter.dialects
        self.bridge = BRIDGES[self.call.dialect]

    def tap(self) -> Tap:
        spoken = self.bridge.open(self.call).call
        return self.bridge.tap(self.call, self.head, self.adapter.tap(spoken, self.head))


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_there_are_cases() -> None:
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_is_sent(path: Path) -> None:
    case = Bridged(path)
    if "refused" in case.sections:
        with pytest.raises(BadRequest) as caught:
            case.bridge.open(case.call)
        assert f"{caught.value.param}: {caught.value.message}".encode() == case.sections["refused"]
        return

    opened = case.bridge.open(case.call)
    sent = case.adapter.prepare(opened.call, case.offer)

    assert " ".join(opened.dropped + sent.dropped).encode() == case.sections.get("dropped", b"")
    origin = f"{sent.origin.scheme}://{sent.origin.host}:{sent.origin.port}".encode()
    start = sent.method + b" " + origin + sent.target
    assert (start, sent.headers, sent.body) == message(case.sections["sent"])


@pytest.mark.parametrize("path", CASES, ids=named)
def test_what_comes_back(path: Path) -> None:
    case = Bridged(path)
    if "refused" in case.sections:
        return
    expected = msgspec.json.decode(case.sections["usage"], type=Usage | None)
    failure = msgspec.json.decode(case.sections.get("failure", b"null"), type=Failure | None)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole, byte_by_byte = [case.body], [case.body[i : i + 1] for i in range(len(case.body))]

    for pieces in (whole, byte_by_byte, *(pieces_of(case.body, chance) for _ in range(SPLITS))):
        tap = case.tap()
        assert play(tap, pieces, cut=case.cut) == case.sections["downstream"]
        assert tap.usage() == expected
        assert tap.failure == failure
        assert tap.complete is not (case.cut or failure is not None)
        assert not tap.mid_event
