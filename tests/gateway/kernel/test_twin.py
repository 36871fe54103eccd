"""What only the twin has: its memory is bounded, and it takes effect when it is called. The rest is in properties/."""

import pytest

from gateway.errors import Overloaded
from gateway.kernel.limits import Limits, pack_limits
from gateway.kernel.twin import Twin
from gateway.kernel.verbs import Admitted, Ended, Limited, NotLoaded, Scopes, Settled, Snapshot
from tests.ledgers import TurnClock, run


class Fixture:
    def __init__(self, *, scopes_max: int = 100, holds_max: int = 100) -> None:
        self.clock = TurnClock()
        self.kept: list[tuple[int, bytes]] = []
        self.twin = Twin(
            now_us=self.clock,
            keep=lambda partition, record, _: self.kept.append((partition, record)),
            scopes_max=scopes_max,
            holds_max=holds_max,
        )

    def scopes(self, number: int) -> Scopes:
        packed = pack_limits(key=Limits(requests_per_day=1))
        return self.twin.scopes(account_id=number, key_id=f"k{number}", limits=packed)

    def admit(self, request_id: str, number: int, hold_nanos: int = 0) -> object:
        return run(self.twin.admit(request_id, self.scopes(number), hold_nanos=hold_nanos, tokens=0))

    def settle(self, request_id: str, number: int) -> object:
        return run(self.twin.settle(request_id, self.scopes(number), cost_nanos=0, tokens=0, record=b"record"))


def test_idle_scopes_are_forgotten_least_recently_used_first() -> None:
    fixture = Fixture(scopes_max=6)  # an account and a key each
    for number in range(4):
        fixture.admit(f"r{number}", number)
        fixture.settle(f"r{number}", number)

    assert len(fixture.twin.states) == 6
    assert isinstance(fixture.admit("again", 3), Limited)
    assert isinstance(fixture.admit("forgotten", 0), Admitted)


def test_what_is_in_flight_is_not_forgotten() -> None:
    fixture = Fixture(scopes_max=2)
    fixture.admit("held", 0)
    for number in range(1, 5):
        fixture.admit(f"r{number}", number)
        fixture.settle(f"r{number}", number)

    assert isinstance(fixture.admit("again", 0), Limited)
    assert fixture.settle("held", 0) == Settled(0, held=True)


def test_a_loaded_balance_is_not_forgotten() -> None:
    fixture = Fixture(scopes_max=2)
    run(fixture.twin.load(0, Snapshot(balance_nanos=5, seq=1, cursor="0-0")))
    for number in range(1, 5):
        fixture.admit(f"r{number}", number)
        fixture.settle(f"r{number}", number)

    assert run(fixture.twin.peek_balance(0)).balance_nanos == 5


def test_too_much_in_flight_is_refused_as_overload() -> None:
    fixture = Fixture(holds_max=2)
    fixture.admit("r0", 0)
    fixture.admit("r1", 1)

    with pytest.raises(Overloaded):
        fixture.admit("r2", 2)
    fixture.settle("r0", 0)
    assert isinstance(fixture.admit("r2", 2), Admitted)


def test_without_a_balance_only_what_costs_nothing_passes() -> None:
    fixture = Fixture()

    assert fixture.admit("paid", 0, hold_nanos=1) == NotLoaded("account")
    assert isinstance(fixture.admit("free", 0), Admitted)


def test_records_are_handed_over_when_the_verb_is_called() -> None:
    fixture = Fixture()
    fixture.admit("r", 67)

    fixture.twin.settle("r", fixture.scopes(67), cost_nanos=0, tokens=0, record=b"record")

    assert fixture.kept == [(3, b"record")]
    assert fixture.admit("r", 67) == Ended("settle", 0)


def test_whoever_wants_to_be_told_is_told() -> None:
    fixture = Fixture()
    told: list[object] = []

    fixture.twin.void("r", fixture.scopes(1)).when_done(lambda answer, error: told.append((answer, error)))

    assert len(told) == 1


@pytest.mark.parametrize(("amount", "tokens"), [(-1, 0), (0, -1), (2**53, 0), (0, 2**53)])
def test_amounts_out_of_bounds_are_refused(amount: int, tokens: int) -> None:
    fixture = Fixture()

    with pytest.raises(ValueError, match="out of bounds"):
        fixture.twin.admit("r", fixture.scopes(1), hold_nanos=amount, tokens=tokens)
