"""How long the control plane's lists, searches and statistics take over a large database, on one connection.

    python -m benchmarks.accounts            # 100,000 users, a million keys, ten million records
    python -m benchmarks.accounts --users 20000 --keys 200000 --records 1000000
    python -m benchmarks.accounts --data-dir DIR                       # kept there, and used again by the next run
    python -m benchmarks.accounts --plans                             # and how PostgreSQL goes about what reads most

It brings a PostgreSQL and a Valkey of its own, fills them (`population.py`), and asks the whole application through
its routes, without a server between. Accounts are used very unevenly, as in life: the busiest has about one in fifty
of all records. Each route is asked for the busiest account, for ordinary ones, and deep into its pages.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from benchmarks.population import fill
from gateway.app import create_app
from gateway.control.app import ControlPlane
from gateway.control.session import digest
from gateway.dataplane import Crossing
from gateway.infra.embedded import EmbeddedServers, Stores
from gateway.infra.migrate import migrate
from gateway.infra.postgres import Database
from gateway.secret import Secret
from gateway.settings import Control, Log, Provider, Server, Settings

#: The bar: the median of every route.
MEDIAN_MS: Final = 100.0
RUNS: Final = 15
PEPPER: Final = "the pepper of a benchmark"  # long enough, and nobody's

#: What reads most: shown with `--plans`.
_PLANS: Final = {
    "the busiest account's year in sums": """
        select grouping(day, model, provider), day, model, provider, sum(requests), sum(cost_nanos) from activity_days
        where account_id = 1 and day between current_date - 364 and current_date
        group by grouping sets ((day), (model), (provider), ())""",
    "a page of the busiest account's log, far in": """
        select * from usage_records where account_id = 1 and created_at >= now() - interval '20 days'
        and created_at <= now() - interval '10 days' order by created_at desc, request_id desc limit 51""",
    "what all accounts did today": """
        select count(distinct account_id), sum(requests), sum(cost_nanos)
        from activity_days where day = current_date""",
    "the latest requests of all": "select * from usage_records order by request_id desc limit 20",
    "how many people there are": "select count(*) from users where status <> 'deleted'",
    "people whose address begins so": """
        select * from users where (lower(email) ~>=~ 'ab' and lower(email) ~<~ 'ac')
        or (lower(username) ~>=~ 'ab' and lower(username) ~<~ 'ac')
        or (lower(name) ~>=~ 'ab' and lower(name) ~<~ 'ac')
        order by id limit 51""",
}


@contextlib.asynccontextmanager
async def asking(stores: Stores, data_dir: str) -> AsyncIterator[tuple[httpx2.AsyncClient, ControlPlane]]:
    """A client of the whole application, whose control plane has one connection."""
    settings = Settings(
        server=Server(data_dir=data_dir),
        control=Control(pool_size=1, timeout_s=60.0),
        log=Log(access=""),
        providers_from_environment=False,
        providers={"echo": Provider(adapter="echo", models=("echo",))},
    )
    settings = msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, pepper=Secret(PEPPER)))
    app = create_app(settings, stores)
    assert isinstance(app.default, Crossing)
    control = app.default.control
    assert isinstance(control, ControlPlane)
    async with app.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=120) as client:
            yield client, control


async def sign_in(control: ControlPlane, user_id: int) -> dict[str, str]:
    """The headers of somebody who is signed in."""
    token = control.parts.sessions.mint()
    await control.parts.database.execute(
        "insert into sessions (digest, user_id, account_id, kind, expires_at) "
        "select $1, $2, account_id, 'bearer', now() + interval '1 day' from memberships where user_id = $2",
        digest(token),
        user_id,
    )
    return {"authorization": f"Bearer {token}"}


async def measure(stores: Stores, data_dir: str, *, users: int) -> bool:
    """Ask, and print; whether every median is within the bar."""
    generator = random.Random(1)
    async with asking(stores, data_dir) as (client, control):
        boss = await sign_in(control, 1)
        ordinary = [await sign_in(control, generator.randrange(users // 10, users)) for _ in range(RUNS)]
        busiest = [boss] * RUNS
        rows = []
        for path, callers, what in (
            ("/user/activity/stats", busiest, "busiest account"),
            ("/user/activity/stats?days=365", busiest, "busiest account, a year"),
            ("/user/activity/stats", ordinary, "ordinary accounts"),
            ("/user/activity/log", busiest, "busiest account"),
            ("/user/activity/log?limit=100&offset=4000", busiest, "busiest account, far in by offset"),
            ("/user/activity/log?limit=100&model=model-39", busiest, "busiest account, a rare model"),
            ("/user/activity/log", ordinary, "ordinary accounts"),
            ("/user/monitor", busiest, "busiest account"),
            ("/user/balance", busiest, "busiest account"),
            ("/user/limit", busiest, "busiest account"),
            ("/user/credit-transactions", busiest, "busiest account"),
            ("/user/credit-transactions?limit=100&offset=4000", busiest, "busiest account, far in by offset"),
            ("/user/credit-transactions?transaction_type=admin_credit", busiest, "busiest account, by type"),
            ("/user/credit-transactions", ordinary, "ordinary accounts"),
            ("/user/rate-limits", busiest, "busiest account"),
            ("/user/api-keys", busiest, "busiest account"),
            ("/user/api-keys/usage", busiest, "busiest account"),
            (f"/user/api-keys/k{users:011}/usage?days=365", busiest, "a key of the busiest account"),
            ("/user/api-keys", ordinary, "ordinary accounts"),
            ("/user/api-keys/audit-logs", ordinary, "ordinary accounts"),
            ("/user/audit-logs", busiest, "busiest account"),
            ("/admin/users", busiest, "first page"),
            (f"/admin/users?offset={users * 9 // 10}", busiest, "far in by offset"),
            ("/admin/users?search=ab", busiest, "by a beginning that many have"),
            ("/admin/users?search=user-77", busiest, "by a user name"),
            ("/admin/users?search=nobody", busiest, "by what nobody is called"),
            ("/admin/users?role=developer", busiest, "by role"),
            ("/admin/users/1", busiest, "one"),
            ("/admin/accounts/1", busiest, "one"),
            ("/admin/balance", busiest, "first page"),
            (f"/admin/balance?offset={users * 9 // 10}", busiest, "far in by offset"),
            ("/admin/balance?plan=team", busiest, "by plan"),
            ("/admin/roles/list/developer", busiest, "first page"),
            ("/admin/roles/audit/log", busiest, "first page"),
            ("/admin/rate-limits/system", busiest, "everything"),
            ("/admin/rate-limits/alerts", busiest, "everything"),
            ("/admin/balance?search=account%2077", busiest, "by name"),
            ("/admin/credit-transactions", busiest, "first page"),
            ("/admin/audit-logs?action=credits.add", busiest, "by action"),
            ("/admin/audit-logs", busiest, "first page"),
            ("/admin/monitor", busiest, "everything"),
            ("/admin/usage", busiest, "all accounts, a month"),
            ("/admin/usage?account_id=1", busiest, "the busiest account"),
            ("/admin/trial/analytics", busiest, "everything"),
            ("/health/providers", busiest, "passive"),
            ("/health/models", busiest, "passive"),
        ):
            took_ms = []
            # The first is to prepare the statement.
            for headers in (callers[0], *callers):
                began = time.perf_counter()
                answer = await client.get(path, headers=headers)
                took_ms.append((time.perf_counter() - began) * 1000)
                assert answer.status_code == 200, (path, answer.content)
            rows.append((statistics.median(took_ms[1:]), max(took_ms[1:]), path, what))
    for median_ms, most_ms, path, what in rows:
        mark = " " if median_ms <= MEDIAN_MS else "!"
        print(f"{mark} {median_ms:8.1f} ms median {most_ms:8.1f} ms most   {path}  ({what})")
    return all(median_ms <= MEDIAN_MS for median_ms, *_ in rows)


async def show_plans(dsn: str) -> None:
    """How PostgreSQL goes about it."""
    async with Database(dsn, pool_size=1, timeout_s=600) as database:
        for what, query in _PLANS.items():
            print(f"\n-- {what}")
            for row in await database.fetch(f"explain (analyze, buffers, costs off) {query}"):
                print(row["QUERY PLAN"])


async def run(stores: Stores, data_dir: str, arguments: argparse.Namespace) -> bool:
    await migrate(stores.database_dsn)
    await fill(stores.database_dsn, users=arguments.users, keys=arguments.keys, records=arguments.records)
    within = await measure(stores, data_dir, users=arguments.users)
    if arguments.plans:
        await show_plans(stores.database_dsn)
    return within


def main() -> int:
    """Exit status 1 where a median is over the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accounts", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--data-dir", help="where the servers live (default: a directory that is gone afterwards)")
    parser.add_argument("--plans", action="store_true", help="show how PostgreSQL goes about what reads most")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        data_dir = arguments.data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-accounts-"))
        servers = EmbeddedServers(Path(data_dir), postgres=True, valkey=True)
        stack.callback(servers.stop)
        stores = servers.start()
        return 0 if asyncio.run(run(stores, data_dir, arguments)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
