"""What an adapter is held to, for whoever writes one: golden cases and faults, to be used from a test.

    from gateway.testing import FAULTS, Subject, cases, conversations_of, replay

    CASES = cases("cases")
    CONFIG = ProviderConfig(name="hello", base_url=None, api_key=Secret("k-1"), extra={})
    SUBJECT = Subject(Hello, CONFIG, conversations_of(Hello, CONFIG, CASES))

    @pytest.mark.parametrize("path", CASES, ids=str)
    def test_case(path):
        replay(path)

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_fault(fault):
        fault.try_on(SUBJECT)

`make_request` and `make_settled` are for tests of plugins. Nothing here needs pytest or a network.
`gateway adapter check PACKAGE` runs the same on what is installed and prints a report. See `adapters/README.md`.
"""

from gateway.testing.cases import KINDS, Case, CaseFailed, cases, fill, frame, pieces_of, play, replay
from gateway.testing.faults import FAULTS, Conversation, Fault, FaultFound, Subject, conversations_of
from gateway.testing.held import held_bytes
from gateway.testing.requests import make_request, make_settled

__all__ = [
    "FAULTS",
    "KINDS",
    "Case",
    "CaseFailed",
    "Conversation",
    "Fault",
    "FaultFound",
    "Subject",
    "cases",
    "conversations_of",
    "fill",
    "frame",
    "held_bytes",
    "make_request",
    "make_settled",
    "pieces_of",
    "play",
    "replay",
]
