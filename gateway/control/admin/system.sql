-- Statements about the whole gateway, for administrators.

-- count_people: who there is; the few who are not active have an index of their own
with other as (select status, count(*) as count from users where status <> 'active' group by status)
select (select count(*) from users) - coalesce((select count from other where status = 'deleted'), 0) as users,
       coalesce((select count from other where status = 'suspended'), 0) as suspended;

-- sum_day: what all accounts did on a day, and how many did anything
select count(distinct account_id) as accounts, coalesce(sum(requests), 0)::bigint as requests,
       coalesce(sum(failures), 0)::bigint as failures, coalesce(sum(input_tokens), 0)::bigint as input_tokens,
       coalesce(sum(output_tokens), 0)::bigint as output_tokens, coalesce(sum(cost_nanos), 0)::bigint as cost_nanos
from activity_days
where day = $1;

-- top_accounts: who used most on a day; the other sums are made of these alone
select d.account_id, a.name, s.requests, d.tokens, s.cost_nanos
from (
    select account_id, sum(input_tokens + output_tokens)::bigint as tokens
    from activity_days
    where day = $1
    group by account_id
    order by tokens desc, account_id
    limit 10
) d
join accounts a on a.id = d.account_id
cross join lateral (
    select sum(requests)::bigint as requests, sum(cost_nanos)::bigint as cost_nanos
    from activity_days
    where day = $1 and account_id = d.account_id
) s
order by d.tokens desc, d.account_id;

-- sum_providers: what all accounts did at each provider since an hour
select provider, sum(requests)::bigint as requests, sum(failures)::bigint as failures,
       sum(input_tokens + output_tokens)::bigint as tokens, sum(cost_nanos)::bigint as cost_nanos,
       sum(latency_ms)::bigint as latency_ms
from traffic_hours
where hour >= $1
group by provider
order by requests desc, provider
limit 1000;

-- last_requests: of all accounts; the time is inside the id, so the primary keys are in its order
select request_id, created_at, account_id, key_id, model, provider, status, outcome, input_tokens, output_tokens,
       cost_nanos, latency_ms
from usage_records
order by request_id desc
limit 20;

-- count_waiting: credit on its way to Redis
select count(*) from credit_outbox;
