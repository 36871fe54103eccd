"""The catalogue as it is made from the installed package, once for all tests."""

import pytest
from genai_prices.data import providers

from gateway.catalogue.build import build, read_corrections
from gateway.catalogue.prices import Catalogue
from gateway.catalogue.snapshot import Snapshot, decode, edition, encode
from gateway.infra.clock import SystemClock


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    cards = build(providers, read_corrections(), at=SystemClock().now())
    return decode(encode(Snapshot.of(cards, edition=edition())))


@pytest.fixture
def catalogue(snapshot) -> Catalogue:
    return Catalogue(snapshot)
