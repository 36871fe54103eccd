-- Statements about the whole gateway, for administrators.

-- count_people: who there is; the few who are not active have an index of their own
with other as (select status, count(*) as count from users where status <> 'active' group by status)
select (select count(*) from users) - coalesce((select count from other where status = 'deleted'), 0) as users,
       coalesce((select count from other where status = 'suspended'), 0) as suspended;

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
