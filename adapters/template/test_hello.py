"""Bytes in, bytes out: no network, no key, no gateway running.

Most of it is the kit's: conversations in `cases/`, and what can go wrong with any adapter. What is yours alone, its table
for example, is tested by hand.
"""

from pathlib import Path

import pytest
from gateway_adapter_hello import Hello

from gateway.api import ConfigError, ProviderConfig, ResponseHead, Secret
from gateway.testing import FAULTS, Fault, Subject, cases, conversations_of, replay

CONFIG = ProviderConfig(name="hello", base_url="https://hello.example/api", api_key=Secret("k-123456"), extra={})
CASES = cases(Path(__file__).parent / "cases")
# Tests run before the package is installed, too: a case finds the adapter here by the name it has in `== provider`.
ADAPTERS = {"hello": Hello}
SUBJECT = Subject(Hello, CONFIG, conversations_of(Hello, CONFIG, CASES, adapters=ADAPTERS))


def hello(**extra: object) -> Hello:
    adapter = Hello()
    adapter.configure(ProviderConfig(name="hello", base_url=None, api_key=Secret("k-1"), extra=extra))
    return adapter


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_conversation(path: Path) -> None:
    replay(path, adapters=ADAPTERS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault(fault: Fault) -> None:
    fault.try_on(SUBJECT)


@pytest.mark.parametrize(
    ("status", "body", "blame"),
    [(400, b"", "caller"), (400, b"context_length_exceeded", "context"), (401, b"", "key"), (503, b"", "provider")],
)
def test_whose_fault_it_is(status: int, body: bytes, blame: str) -> None:
    assert hello().classify(ResponseHead(status, []), body).blame == blame


def test_when_to_come_back() -> None:
    assert hello().classify(ResponseHead(429, [(b"retry-after", b"7")]), b"").retry_after_s == 7


@pytest.mark.parametrize("extra", [{"region": "moon"}, {"regoin": "eu"}])
def test_a_wrong_table_stops_the_start(extra: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        hello(**extra)
