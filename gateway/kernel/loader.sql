-- Statements that take one moment's view of accounts, for the hot copy.

-- take_snapshot: balance, cursor and what was spent in the windows that now is in; one statement, so one view
select
    b.balance_nanos,
    b.credit_seq,
    coalesce(c.last_id, '0-0') as cursor,
    (extract(epoch from w.at) * 1000000)::bigint as as_of_us,
    a.day_nanos, a.week_nanos, a.month_nanos,
    t.cost_nanos as total_nanos, t.requests,
    k.day_nanos as key_day_nanos, k.week_nanos as key_week_nanos, k.month_nanos as key_month_nanos,
    t.key_cost_nanos as key_total_nanos, t.key_requests
from balances b
left join settle_cursors c on c.partition = $2
cross join (
    select now() as at, (now() at time zone 'UTC')::date as today,
           date_trunc('week', now() at time zone 'UTC')::date as monday,
           date_trunc('month', now() at time zone 'UTC')::date as first
) w
cross join lateral (
    select
        coalesce(sum(cost_nanos) filter (where day = w.today), 0)::bigint as day_nanos,
        coalesce(sum(cost_nanos) filter (where day >= w.monday), 0)::bigint as week_nanos,
        coalesce(sum(cost_nanos) filter (where day >= w.first), 0)::bigint as month_nanos
    from usage_days
    where account_id = $1 and day >= least(w.monday, w.first)
) a
cross join lateral (
    select
        coalesce(sum(cost_nanos) filter (where day = w.today), 0)::bigint as day_nanos,
        coalesce(sum(cost_nanos) filter (where day >= w.monday), 0)::bigint as week_nanos,
        coalesce(sum(cost_nanos) filter (where day >= w.first), 0)::bigint as month_nanos
    from usage_days
    where account_id = $1 and key_id = $3 and day >= least(w.monday, w.first)
) k
cross join lateral (
    select
        coalesce(sum(cost_nanos), 0)::bigint as cost_nanos,
        coalesce(sum(requests), 0)::bigint as requests,
        coalesce(sum(cost_nanos) filter (where key_id = $3), 0)::bigint as key_cost_nanos,
        coalesce(sum(requests) filter (where key_id = $3), 0)::bigint as key_requests
    from usage_totals
    where account_id = $1
) t
where b.account_id = $1;

-- list_keys: the living keys of an account after one; by `Loader`
select id from keys where account_id = $1 and id > $2 and revoked_at is null order by id limit $3;
