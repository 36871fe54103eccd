"""Fills a database with people, keys and what they used, as a gateway would have left it after a month.

Faster than a settler could, by the means of whoever restores a large database: each month's records are written into
a table that is no partition then and has no index, so no trigger runs, and only then it is attached, which builds the
indexes; what the triggers would have summed up is summed up by one statement for each table of sums.
The result is what the settler would have left: every record that cost something has its entry, entries of an account
continue each other without gaps, balances are where they end, and the sums by day, hour and key are those of the
records.
"""

from collections.abc import Sequence
from typing import Final

from gateway.infra.clock import SystemClock
from gateway.infra.postgres import Database, Row, Session

PIECE: Final = 250_000

#: Of this session alone, and of no use in service.
_SESSION: Final = """
set work_mem = '256MB';
set maintenance_work_mem = '512MB';
set synchronous_commit = off;
"""
_PEOPLE: Final = """
insert into accounts (name, plan) select 'account ' || n, (array['free', 'dev', 'team'])[1 + n % 3]
from generate_series(1, {users}) n;
insert into users (email, username, name, role, verified_at, created_at)
select md5(n::text) || '@example.com', 'user-' || n, 'Person ' || n,
       case when n = 1 then 'admin' when n % 10 = 0 then 'developer' else 'user' end, now(),
       now() - random() * interval '300 days'
from generate_series(1, {users}) n;
insert into memberships (account_id, user_id, role)
select a.id, u.id, 'owner' from (select id, row_number() over (order by id) n from accounts) a
join (select id, row_number() over (order by id) n from users) u using (n);
insert into entries (account_id, seq, type, amount_nanos, balance_after_nanos, idempotency_key, created_at)
select id, 1, 'admin_credit', 1000000000000, 1000000000000, 'benchmark ' || id,
       date_trunc('month', now() - interval '30 days')
from accounts order by id;
insert into entry_keys (idempotency_key, account_id, seq, created_at)
select idempotency_key, account_id, seq, created_at from entries where type = 'admin_credit';
"""
_KEYS: Final = """
insert into keys (id, account_id, user_id, name, environment, digest, last_four, created_at)
select 'k' || lpad(n::text, 11, '0'), 1 + n % {users}, 1 + n % {users}, 'key ' || n, 'live', sha256(n::text::bytea),
       'abcd', now() - random() * interval '300 days'
from generate_series({start}, {end}) n
"""
#: A part of a span of time, so that records lie on the disk about as they came; by accounts of which each is used
#: less than the one before, by all keys of each.
_RECORDS: Final = """
insert into {table}
select
    (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || '8'
        || substr(noise, 4, 15))::uuid,
    date_trunc('milliseconds', at), account,
    'k' || lpad((account - 1 + {users} * (ascii(noise) % {keys_each} + (account = 1)::int))::text, 11, '0'),
    1000000 + (random() * 1e6)::bigint, 0,
    'model-' || model, (array['openai', 'anthropic', 'google', 'bedrock'])[1 + model % 4], 'model-' || model,
    'openai_chat', '/v1/chat/completions', case when failed then 502 else 200 end,
    case when failed then 'provider_timeout' else 'ok' end, case when failed then 'provider_timeout' else '' end,
    true,
    1000 + (random() * 5000)::bigint, 200 + (random() * 500)::bigint, 'reported', 100 + (random() * 2000)::bigint,
    (random() * 800)::bigint, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, null, null, 1000000000, 2000000000, 1000, '[]',
    '{{}}', at
from (
    select 1 + floor({users} * power(random(), 3))::bigint as account, floor(40 * power(random(), 2))::int as model,
           '{first}'::timestamptz
               + ({number} + random()) / {pieces} * ('{last}'::timestamptz - '{first}'::timestamptz) as at,
           md5(random()::text || n) as noise, random() < 0.02 as failed
    from generate_series(1, {count}) n
) r
"""
#: In the order of time, as they come about.
_SUMS: Final = {
    "usage_days": """
insert into usage_days (account_id, day, key_id, model, requests, input_tokens, output_tokens, cost_nanos)
select account_id, (settled_at at time zone 'UTC')::date, key_id, model, count(*), sum(input_tokens),
       sum(output_tokens), sum(cost_nanos)
from usage_records group by 1, 2, 3, 4 order by 2, 1, 3, 4
""",
    "usage_totals": """
insert into usage_totals (account_id, key_id, requests, cost_nanos, last_used_at)
select account_id, key_id, count(*), sum(cost_nanos), max(settled_at) from usage_records group by 1, 2 order by 1, 2
""",
    "activity_days": """
insert into activity_days (account_id, day, provider, model, requests, failures, input_tokens, output_tokens,
                           cost_nanos)
select account_id, (created_at at time zone 'UTC')::date, provider, model, count(*),
       count(*) filter (where error_type <> ''), sum(input_tokens), sum(output_tokens), sum(cost_nanos)
from usage_records group by 1, 2, 3, 4 order by 2, 1, 3, 4
""",
    "traffic_hours": """
insert into traffic_hours (hour, provider, model, requests, failures, input_tokens, output_tokens, cost_nanos,
                           latency_ms, begun, first_token_ms)
select date_trunc('hour', created_at, 'UTC'), provider, model, count(*),
       count(*) filter (where error_type like 'provider\\_%'), sum(input_tokens), sum(output_tokens), sum(cost_nanos),
       sum(latency_ms), count(first_token_ms), coalesce(sum(first_token_ms), 0)
from usage_records group by 1, 2, 3 order by 1, 2, 3
""",
}
#: Indexes of a table that are not its primary key.
_INDEXES: Final = """
select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition
from pg_index where indrelid = '{table}'::regclass and not indisprimary
"""
_CHAIN: Final = """
create unlogged table chain as
select r.account_id, b.last_seq + row_number() over each as seq, -r.cost_nanos as amount_nanos,
       b.balance_nanos - (sum(r.cost_nanos) over each)::bigint as balance_after_nanos, r.request_id, r.created_at
from usage_records r
join balances b on b.account_id = r.account_id
where r.cost_nanos > 0
window each as (partition by r.account_id order by r.created_at, r.request_id)
"""
_ENTRIES: Final = """
insert into {table} (account_id, seq, type, amount_nanos, balance_after_nanos, request_id, created_at)
select account_id, seq, 'api_usage', amount_nanos, balance_after_nanos, request_id, created_at
from chain where created_at >= '{starts}' and created_at < '{ends}'
"""
_BALANCES: Final = """
update balances b set balance_nanos = l.balance_after_nanos, last_seq = l.seq
from (select distinct on (account_id) account_id, seq, balance_after_nanos from chain order by account_id, seq desc) l
where l.account_id = b.account_id
"""
_AUDIT: Final = """
insert into audit_log (at, actor_kind, actor_user_id, account_id, action, object_kind, object_id, before, after)
select now() - (1000000 - n) * interval '2 seconds', 'user', 1 + n % {users}, 1 + n % {users},
       (array['api_keys.create', 'api_keys.update', 'credits.add', 'users.update'])[1 + n % 4], 'key', 'k' || n,
       '{{}}', '{{}}'
from generate_series({start}, {end}) n
"""
#: The months that the last thirty days are of, what of them those days are, and which share of the thirty that is.
_MONTHS: Final = """
select to_char(starts, '_YYYY_MM') as name, starts::text as starts, (starts + interval '1 month')::text as ends,
       first::text as first, last::text as last, extract(epoch from last - first)::float8 / (30 * 86400) as share
from generate_series(date_trunc('month', now() - interval '30 days'), now(), interval '1 month') starts
cross join lateral (
    select greatest(starts, now() - interval '30 days') as first, least(starts + interval '1 month', now()) as last
) of_it
order by starts
"""
_MAKE: Final = "create table if not exists {child} partition of {parent} for values from ('{starts}') to ('{ends}')"
_DETACH: Final = "alter table {parent} detach partition {child}"
#: Without its indexes, those that are constraints first.
_STRIP: Final = """
do $$
declare
    name text;
begin
    for name in select conname from pg_constraint where conrelid = '{child}'::regclass and contype in ('p', 'u') loop
        execute format('alter table {child} drop constraint %I', name);
    end loop;
    for name in select indexrelid::regclass::text from pg_index where indrelid = '{child}'::regclass loop
        execute 'drop index ' || name;
    end loop;
end $$
"""
_ATTACH: Final = "alter table {parent} attach partition {child} for values from ('{starts}') to ('{ends}')"


async def fill(dsn: str, *, users: int, keys: int, records: int) -> None:
    """Make everything, once for each database."""
    clock = SystemClock()
    began_s = clock.monotonic()

    def tell(what: str) -> None:
        print(f"{clock.monotonic() - began_s:6.0f} s  {what}", flush=True)

    async with Database(dsn, pool_size=1, timeout_s=3600) as database, database.session() as session:
        if await session.fetch_value("select exists (select from users)"):
            return
        await session.execute(_SESSION)
        months = await session.fetch(_MONTHS)
        for month in months:
            for parent in ("usage_records", "entries"):
                await session.execute(_MAKE.format(parent=parent, child=parent + month["name"], **month))
        for statement in _PEOPLE.format(users=users).split(";\n"):
            if statement.strip():
                await session.execute(statement)
        tell(f"{users:,} people")
        for start in range(1, keys + 1, PIECE):
            await session.execute(_KEYS.format(users=users, start=start, end=min(keys, start + PIECE - 1)))
        tell(f"{keys:,} keys")
        await _fill_records(session, months, users=users, keys_each=max(1, keys // users), records=records)
        tell(f"{records:,} records")
        for table, statement in _SUMS.items():
            await _sum_up(session, table, statement)
        tell("their sums")
        await _fill_entries(session, months)
        tell("their entries")
        lines = max(1, records // 10)
        for start in range(1, lines + 1, PIECE):
            await session.execute(_AUDIT.format(users=users, start=start, end=min(lines, start + PIECE - 1)))
        tell(f"{lines:,} lines of audit log")
        # Outside of any transaction, and what autovacuum would have done in the month.
        await session.execute("vacuum analyze")
        await session.execute("reset all")
    tell("ready")


async def _fill_records(session: Session, months: Sequence[Row], *, users: int, keys_each: int, records: int) -> None:
    left = records
    for month in months:
        child = "usage_records" + month["name"]
        count = left if month is months[-1] else min(left, round(records * month["share"]))
        left -= count
        await _begin("usage_records", child, session)
        pieces = -(-count // PIECE)
        for number in range(pieces):
            statement = _RECORDS.format(
                table=child,
                users=users,
                keys_each=keys_each,
                count=count // pieces + (number < count % pieces),
                first=month["first"],
                last=month["last"],
                number=number,
                pieces=pieces,
            )
            await session.execute(statement)
        await session.execute(_ATTACH.format(parent="usage_records", child=child, **month))


async def _sum_up(session: Session, table: str, statement: str) -> None:
    """With the indexes besides the key made when all rows are there."""
    indexes = await session.fetch(_INDEXES.format(table=table))
    for index in indexes:
        await session.execute(f"drop index {index['name']}")
    await session.execute(statement)
    for index in indexes:
        await session.execute(index["definition"])


async def _fill_entries(session: Session, months: Sequence[Row]) -> None:
    await session.execute(_CHAIN)
    for month in months:
        child = "entries" + month["name"]
        await _begin("entries", child, session)
        await session.execute(_ENTRIES.format(table=child, **month))
        await session.execute(_ATTACH.format(parent="entries", child=child, **month))
    await session.execute(_BALANCES)
    await session.execute("drop table chain")


async def _begin(parent: str, child: str, session: Session) -> None:
    """Make a partition a table of its own, and without indexes."""
    await session.execute(_DETACH.format(parent=parent, child=child))
    await session.execute(_STRIP.format(child=child))
