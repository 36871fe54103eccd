"""Credits, usage and reconciling, as a shell runs them against stores that a gateway could be running on."""

import asyncio
import subprocess
import sys

import msgspec
import pytest

from gateway.infra.clock import SystemClock
from gateway.infra.metrics import Registry
from gateway.infra.postgres import Database, Row
from gateway.infra.redis import Redis
from gateway.kernel.ledger import Ledger
from gateway.kernel.limits import pack_limits
from gateway.kernel.loader import Loader
from gateway.kernel.record import UsageRecord, encode_record
from gateway.kernel.request_id import RequestIds
from gateway.kernel.settler import Settler
from gateway.telemetry import Telemetry

TIMEOUT_S = 60


@pytest.fixture
def run(tmp_path, environ, database, redis_url):
    """Runs `gateway ARGS` on the test's own stores."""
    variables = environ | {
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "GATEWAY__AUTH__PEPPER": "p" * 32,
    }

    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 or done.stdout else done.stderr

    return run


def serve(dsn: str, url: str, *, cost_nanos: int, settle: bool = True, plant_nanos: int = 0) -> None:
    """One request of account 1, and perhaps a mistake in Redis."""

    async def serve() -> None:
        redis, clock = Redis(url, timeout_s=10.0), SystemClock()
        await redis.connect()
        async with Database(dsn, pool_size=2, timeout_s=20.0) as database:
            ledger = Ledger(redis)
            loader = Loader(database, ledger)
            await loader.ensure_loaded(1)
            key_id = await database.fetch_value("select id from keys")
            record = UsageRecord(
                request_id=RequestIds(clock).make(),
                account_id=1,
                key_id=key_id,
                cost_nanos=cost_nanos,
                model="gpt-4o-mini",
                input_tokens=12,
                output_tokens=34,
            )
            scopes = ledger.scopes(account_id=1, key_id=key_id, limits=pack_limits())
            await ledger.settle(
                record.request_id, scopes, cost_nanos=cost_nanos, tokens=46, record=encode_record(record)
            )
            if settle:
                telemetry = Telemetry(Registry(incarnation="test"), version="0")
                await Settler(database, redis, clock=clock, telemetry=telemetry).settle_once()
            if plant_nanos:
                await redis.execute("HINCRBY", "{p1}:a:1", "bal", plant_nanos)
            await loader.close()
        await redis.close()

    asyncio.run(serve())


def test_credit_is_added_shown_and_taken(run):
    run("keys", "create", "--name", "laptop", "--quiet")

    added = run("credits", "add", "--key", "laptop", "--usd", "5.50", "--reason", "a gift", "--idempotency-key", "g")
    again = run("credits", "add", "--key", "laptop", "--usd", "5.50", "--idempotency-key", "g")
    taken = run("credits", "add", "--account", "1", "--usd", "-0.25")

    has = "account 1 (development) has 5.50 USD\n"
    assert added == f"credited 5.50 USD; {has}"
    assert again == f"5.50 USD was credited already with this idempotency key; {has}"
    assert taken == "debited 0.25 USD; account 1 (development) has 5.25 USD\n"
    assert run("credits", "show").splitlines()[1].split() == ["1", "development", "5.25"]
    shown = run("credits", "show", "--key", "laptop")
    assert "admin_debit" in shown
    assert "a gift" in shown


def test_key_is_created_with_credit(run):
    created = run("keys", "create", "--name", "laptop", "--credits", "12", "--quiet")

    assert created.startswith("gw_live_")
    assert "has 12.00 USD" in run("credits", "show", "--key", "laptop")


def test_credit_that_is_given_or_taken_is_in_the_audit_log_once(run, database):
    run("keys", "create", "--name", "laptop", "--credits", "12", "--quiet")
    for _ in range(2):
        run("credits", "add", "--account", "1", "--usd", "5", "--reason", "a gift", "--idempotency-key", "g")
    run("credits", "add", "--account", "1", "--usd", "-20")

    async def lines() -> list[tuple[object, ...]]:
        async with Database(database, pool_size=1, timeout_s=20.0) as opened:
            rows = await opened.fetch("select * from audit_log where action like 'credits.%' order by id")
            return [
                (row["action"], row["actor_kind"], row["account_id"], row["reason"], *credit_of(row)) for row in rows
            ]

    def credit_of(row: Row) -> tuple[str, str]:
        before, after = (msgspec.json.decode(row[name])["credits"] for name in ("before", "after"))
        return before, after

    given, gift, taken = asyncio.run(lines())
    assert (given[0], given[1], given[2], *given[4:]) == ("credits.add", "operator", 1, "0", "12")
    assert gift == ("credits.add", "operator", 1, "a gift", "12", "17")
    assert taken == ("credits.deduct", "operator", 1, None, "17", "-3")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("credits", "add", "--account", "1", "--usd", "much"), "--usd"),
        (("credits", "add", "--account", "1", "--usd", "0"), "--usd"),
        (("credits", "add", "--account", "1", "--usd", "0.0000000001"), "--usd"),
        (("credits", "add", "--account", "99", "--usd", "1"), "no such account"),
        (("credits", "add", "--key", "nobody", "--usd", "1"), "no key"),
        (("credits", "show", "--account", "99"), "no such account"),
        (("keys", "create", "--name", "x", "--credits", "-1"), "--credits"),
        (("keys", "create", "--name", "x", "--credits", "lots"), "--credits"),
        (("usage", "--since", "yesterday"), "--since"),
        (("usage", "--key", "nobody"), "no key"),
    ],
)
def test_mistakes_are_named(run, arguments, word):
    assert word in run(*arguments, status=1)


def test_idempotency_key_of_another_amount_is_refused(run):
    run("keys", "create", "--name", "laptop", "--credits", "1", "--quiet")
    run("credits", "add", "--account", "1", "--usd", "5", "--idempotency-key", "g")

    assert "idempotency key" in run(
        "credits", "add", "--account", "1", "--usd", "6", "--idempotency-key", "g", status=1
    )


def test_usage_is_shown_by_key_and_model(run, database, redis_url):
    assert "nothing was used" in run("usage")
    run("keys", "create", "--name", "laptop", "--credits", "1", "--quiet")
    serve(database, redis_url, cost_nanos=1_500_000)

    table = run("usage", "--key", "laptop", "--since", "1d").splitlines()
    rows = msgspec.json.decode(run("usage", "--json", "--account", "1"))

    assert table[1].split()[2:] == ["gpt-4o-mini", "1", "12", "34", "0.0015"]
    assert table[2].split() == ["all", "1", "12", "34", "0.0015"]
    assert [(row["model"], row["requests"], row["cost_nanos"]) for row in rows] == [("gpt-4o-mini", 1, 1_500_000)]


def test_reconcile_finds_planted_drift_and_mends_it(run, database, redis_url):
    run("keys", "create", "--name", "laptop", "--credits", "1", "--quiet")
    serve(database, redis_url, cost_nanos=1_000_000, settle=False)
    assert "no drift" in run("reconcile")

    serve(database, redis_url, cost_nanos=1_000_000, plant_nanos=250_000_000)
    found = run("reconcile", status=1)
    mended = run("reconcile", "--fix")

    assert ["drift", "1", "1.248", "0.998", "0.25"] in [line.split() for line in found.splitlines()]
    assert "loaded 1 accounts anew; 0 still drift" in mended
    assert "no drift" in run("reconcile")


def test_what_was_set_aside_is_shown_put_back_and_forgotten(run, database, redis_url):
    run("keys", "create", "--name", "laptop", "--credits", "1", "--quiet")
    assert run("reconcile", "--rejects") == "no record is set aside\n"
    record = UsageRecord(
        request_id=RequestIds(SystemClock()).make(), account_id=1, key_id="laptop", cost_nanos=7_000_000, model="m"
    )
    set_aside(database, encode_record(record), b"rubbish", b"more rubbish")

    shown = run("reconcile", "--rejects", status=1)
    one = run("reconcile", "--retry", "1", status=1)
    unknown = run("reconcile", "--discard", "1", status=1)
    typo = run("reconcile", "--retry", "everything", status=1)
    rest = run("reconcile", "--discard", "all")
    serve(database, redis_url, cost_nanos=1_000_000)

    assert [record.request_id in line and "0.007" in line for line in shown.splitlines()].count(True) == 1
    assert "1 records put back" in one
    assert "there is no record 1" in unknown
    assert "neither the number of a record nor `all`" in typo
    assert rest == "2 records forgotten\nno record is set aside\n"
    assert "has 0.992 USD" in run("credits", "show", "--account", "1")


def test_without_a_gateway_there_is_no_status(run):
    assert "no gateway runs" in run("status", status=1)


def set_aside(dsn: str, *records: bytes) -> None:
    """As the settler would, in partition 1, where the first account's records go."""

    async def insert() -> None:
        async with Database(dsn, pool_size=1, timeout_s=TIMEOUT_S) as database:
            for record in records:
                await database.execute(
                    "insert into settle_rejects (partition, stream_id, record, reason) values (1, '1-1', $1, 'a test')",
                    record,
                )

    asyncio.run(insert())
