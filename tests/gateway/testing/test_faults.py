"""The faults are found in adapters that have them, and not in those that have none."""

from pathlib import Path

import pytest

from gateway.api import Adapter
from gateway.testing import FAULTS, FaultFound, Subject, cases, conversations_of
from gateway.testing.cases import Case
from tests.gateway.testing.adapters import BROKEN, CONFIG, Keeping, Sound

GOLDEN = Path(__file__).parents[2] / "adapters" / "golden"
BY_NAME = {fault.name: fault for fault in FAULTS}


def subject(adapter: type[Adapter]) -> Subject:
    return Subject(adapter, CONFIG, conversations_of(adapter, CONFIG))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_sound_adapter_has_none(fault) -> None:
    fault.try_on(subject(Sound))


@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_each_is_found(adapter: type[Adapter]) -> None:
    name, words = BROKEN[adapter]

    with pytest.raises(FaultFound) as caught:
        BY_NAME[name].try_on(subject(adapter))

    assert words in str(caught.value)


def test_what_grows_with_the_stream_is_found() -> None:
    with pytest.raises(FaultFound, match="bytes more are held after 1000 times"):
        BY_NAME["long streams"].try_on(subject(Keeping))


def test_every_fault_is_shown_to_be_found() -> None:
    assert {name for name, _ in BROKEN.values()} | {"long streams"} == BY_NAME.keys()


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_the_built_in_adapters_have_none(name: str) -> None:
    paths = cases(GOLDEN / name)
    first = Case(paths[0])
    tried = Subject(
        first.adapter_class, first.config, conversations_of(first.adapter_class, first.config, paths), seed=11
    )

    assert tried.answers
    for fault in FAULTS:
        fault.try_on(tried)
