"""Plans: where they are read from, and what becomes of them."""

from pathlib import Path

import msgspec
import pytest

from gateway.config import InvalidConfig, load
from gateway.kernel.keys import KeyRecord, KeyRing, mint
from gateway.kernel.limits import Limits, combine_limits, pack_limits
from gateway.settings import PLANS, Auth, Plan

CONFIG = Path(__file__).parents[2] / "config"
PEPPER = b"pepper-of-the-tests"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gateway.toml").write_text("")
    return tmp_path


def read(folder: Path, *, plans: str | None = None, main: str = "", **environ: str) -> dict[str, Plan]:
    (folder / "gateway.toml").write_text(main)
    if plans is not None:
        (folder / "plans.toml").write_text(plans)
    return load(str(folder), environ=environ).settings.plans


def test_the_file_that_comes_with_the_gateway_says_what_it_knows_anyway():
    loaded = load(str(CONFIG / "gateway.toml"), environ={})

    assert loaded.settings.plans == PLANS
    assert str(CONFIG / "plans.toml") in loaded.files


def test_plans_are_there_without_a_file(folder):
    assert read(folder) == PLANS


def test_a_row_of_the_file_takes_the_place_of_what_is_known_and_others_are_added(folder):
    plans = read(folder, plans="[plans.free]\nrequests_per_day = 7\n[plans.small]\nconcurrency = 2\n")

    assert plans == PLANS | {"free": Plan(requests_per_day=7), "small": Plan(concurrency=2)}


def test_a_variable_changes_one_limit_and_lifts_none(folder):
    plans = read(folder, GATEWAY__PLANS__FREE__CONCURRENCY="9")

    assert plans["free"] == msgspec.structs.replace(PLANS["free"], concurrency=9)


def test_a_variable_goes_over_the_file(folder):
    plans = read(folder, plans="[plans.free]\nconcurrency = 3\n", GATEWAY__PLANS__FREE__CONCURRENCY="9")

    assert plans["free"] == Plan(concurrency=9)


@pytest.mark.parametrize(
    ("plans", "main", "says"),
    [
        ("[server]\nport = 1\n", "", "plans.toml:1: server: only [plans.*] may stand in this file"),
        ("[plans.free]\n", "[plans.small]\n", "plans.toml:1: plans: the main configuration file has"),
        ("[plans.free]\nrequests_per_dya = 1\n", "", "plans.toml:2: plans.free.requests_per_dya: unknown key"),
        ("[plans.free]\nrequests_per_day = -1\n", "", "plans.toml:2: plans.free.requests_per_day: expected"),
        ("[plans.unlimited]\nrequests_per_day = 1\n", "", "plans.toml:1: plans.unlimited: is the name of the plan"),
    ],
)
def test_what_is_wrong_in_it_is_named_by_its_place(folder, plans, main, says):
    with pytest.raises(InvalidConfig) as raised:
        read(folder, plans=plans, main=main)

    assert any(says in str(problem) for problem in raised.value.problems), raised.value.problems


class StoppedClock:
    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return 1000.0


@pytest.mark.parametrize(
    ("plan", "holds"),
    [("free", Limits(requests_per_day=5)), ("gone", Limits(requests_per_day=1)), ("unlimited", Limits())],
)
async def test_an_account_has_the_limits_of_its_plan(plan, holds):
    key = mint("live", pepper=PEPPER)
    record = KeyRecord(id=key.id, account_id=1, environment="live", digest=key.digest, plan=plan)

    async def fetch(_: str) -> KeyRecord:
        return record

    plans = {"free": Limits(requests_per_day=5), "none": Limits(requests_per_day=1)}
    ring = KeyRing(Auth(), pepper=PEPPER, fetch=fetch, clock=StoppedClock(), plans=plans)

    assert (await ring.verify(key.text)).limits == pack_limits(account=holds)


async def test_a_key_that_is_not_live_has_half_for_itself_and_overdraft_is_the_accounts():
    key = mint("test", pepper=PEPPER)
    own = Limits(concurrency=3)
    record = KeyRecord(
        id=key.id,
        account_id=1,
        environment="test",
        digest=key.digest,
        plan="free",
        limits=own,
        overdraft_nanos=77,
    )

    async def fetch(_: str) -> KeyRecord:
        return record

    plan = Limits(requests_per_day=10)
    ring = KeyRing(Auth(), pepper=PEPPER, fetch=fetch, clock=StoppedClock(), plans={"free": plan})

    principal = await ring.verify(key.text)

    assert principal.limits == combine_limits(plan=plan, key=own, live=False, overdraft_nanos=77)
    assert principal.limits == pack_limits(
        account=plan, key=Limits(requests_per_day=5, concurrency=3), overdraft_nanos=77
    )
