"""Worlds in which everything goes wrong, and money all the same right; see `world.py`.

pytest tests/simulation                                       300 worlds
pytest tests/simulation --worlds 20000 --timeout 0            many more
pytest tests/simulation --worlds 1 --first-world 1433         the one that broke
"""

from collections import Counter

import pytest

from tests.simulation.world import Broken, World, run_world

#: Worlds in one test, so that several processes can share them.
SHARES = 4


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch):
    """Each worker would read the system's certificates, which takes longer than its life; nothing here is encrypted."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")


def count(world: World) -> Counter[str]:
    """What happened in it."""
    rows = world.cold.usage.values()
    calls = world.calls.values()
    return Counter(
        {
            "worlds": 1,
            "calls": len(calls),
            "answered whole": sum(call.whole for call in calls),
            "cut": sum(bool(call.tokens) and not call.whole for call in calls),
            "their worker died": sum(call.process is not None and not call.process.alive for call in calls),
            "charged": sum(row.get("cost_nanos", 0) > 0 for row in rows),
            "orphaned": sum(row.get("outcome") == "orphaned" for row in rows),
            "lost to two failures at once": len(world.lost),
            "redis failed": world.redis_failed,
        }
    )


@pytest.mark.parametrize("share", range(SHARES))
def test_money_is_right_in_every_world(request, share):
    total: Counter[str] = Counter()
    broken = []
    worlds, first = request.config.getoption("--worlds"), request.config.getoption("--first-world")
    for seed in range(first + share, first + worlds, SHARES):
        try:
            total += count(run_world(seed))
        except Broken as error:
            broken.append(str(error))

    print(f"\n{dict(total)}")
    assert not broken, f"{len(broken)} broken worlds, the first of them:\n{broken[0]}"
    if total["worlds"] >= 50:
        # What never happens is not tested.
        assert all(total[name] for name in ("answered whole", "cut", "their worker died", "charged", "redis failed"))


def test_the_same_seed_gives_the_same_world():
    first, second = run_world(7), run_world(7)

    assert first.story == second.story
    assert first.loop.time() == second.loop.time()
    assert [bytes(call.raw).count(b"word") for call in first.calls.values()] == [
        bytes(call.raw).count(b"word") for call in second.calls.values()
    ]
