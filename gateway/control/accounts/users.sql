-- Statements about what is a person's own: balance, usage, profile, entries.

-- read_account: plan and limits of an account, with those of a key in it
select a.name, a.plan, a.status, k.limits, k.environment
from accounts a
left join keys k on k.id = $2 and k.account_id = a.id
where a.id = $1;

-- sum_usage: of an account, for all time, this month and today (UTC), by when requests began
select
    coalesce(sum(requests), 0)::bigint as requests,
    coalesce(sum(input_tokens + output_tokens), 0)::bigint as tokens,
    coalesce(sum(cost_nanos), 0)::bigint as cost_nanos,
    coalesce(sum(requests) filter (where day >= w.first), 0)::bigint as month_requests,
    coalesce(sum(input_tokens + output_tokens) filter (where day >= w.first), 0)::bigint as month_tokens,
    coalesce(sum(cost_nanos) filter (where day >= w.first), 0)::bigint as month_cost_nanos,
    coalesce(sum(requests) filter (where day = w.today), 0)::bigint as day_requests,
    coalesce(sum(input_tokens + output_tokens) filter (where day = w.today), 0)::bigint as day_tokens,
    coalesce(sum(cost_nanos) filter (where day = w.today), 0)::bigint as day_cost_nanos
from activity_days
cross join (
    select (now() at time zone 'UTC')::date as today, date_trunc('month', now() at time zone 'UTC')::date as first
) w
where account_id = $1;

-- top_model: what an account uses most
select model from activity_days where account_id = $1 group by model order by sum(requests) desc, model limit 1;

-- last_request: when an account last asked for something
select created_at from usage_records where account_id = $1 order by created_at desc limit 1;

-- list_entries: entries of an account, newest first; null is any type, and no number the newest
select seq, type, amount_nanos, balance_after_nanos, request_id, payment_id, reason, idempotency_key, created_at
from entries
where account_id = $1 and ($2::text is null or type = $2) and seq < coalesce($3::bigint, 9223372036854775807)
order by seq desc
limit $4 offset $5;

-- sum_entries: all of an account by type. Usage is what the rest leaves: entries are numbered without gaps, and sum to
-- the balance
with other as (
    select type, count(*) as count, sum(amount_nanos)::bigint as amount_nanos
    from entries where account_id = $1 and type <> 'api_usage'
    group by type
), together as (
    select coalesce(sum(count), 0)::bigint as count, coalesce(sum(amount_nanos), 0)::bigint as amount_nanos from other
)
select type, count, amount_nanos from other
union all
select 'api_usage', b.last_seq - t.count, b.balance_nanos - t.amount_nanos
from balances b
cross join together t
where b.account_id = $1 and b.last_seq > t.count
order by type;
