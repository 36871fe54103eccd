-- Statements about what an account has asked for.

-- list_activity: requests of an account that began in a span, newest first; null is any model or provider, and no place
-- the newest
select request_id, created_at, key_id, model, provider, route, status, outcome, error_type, stream, latency_ms,
       first_token_ms, input_tokens, output_tokens, cost_nanos, own_key_id, tags
from usage_records
where account_id = $1 and created_at >= $2 and created_at < $3
    and ($4::text is null or model = $4) and ($5::text is null or provider = $5)
    and created_at <= coalesce($6::timestamptz, 'infinity')
    and ($6::timestamptz is null or (created_at, request_id) < ($6::timestamptz, $7::uuid))
order by created_at desc, request_id desc
limit $8 offset $9;

-- count_activity: how many these are, from the sums by day; days from and up to, both included
select coalesce(sum(requests), 0)::bigint
from activity_days
where account_id = $1 and day between $2 and $3
    and ($4::text is null or model = $4) and ($5::text is null or provider = $5);

-- sum_activity: what an account used on the days of a span, by day, model and provider at once; null is any model or
-- provider. What is summed up over everything has neither day nor name.
select grouping(day, model, provider) as level, day, model, provider, sum(requests)::bigint as requests,
       sum(failures)::bigint as failures, sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens, sum(cost_nanos)::bigint as cost_nanos
from activity_days
where account_id = $1 and day between $2 and $3
    and ($4::text is null or model = $4) and ($5::text is null or provider = $5)
group by grouping sets ((day), (model), (provider), ())
order by level, day, cost_nanos desc, requests desc, model, provider;

-- sum_all_activity: the same of all accounts, from the sums by the hour; from and up to, the latter not included
select grouping(day, model, provider) as level, day, model, provider, sum(requests)::bigint as requests,
       sum(failures)::bigint as failures, sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens, sum(cost_nanos)::bigint as cost_nanos
from (
    -- Names are long and hours are many: grouped once, and what is left of them three times more.
    select (hour at time zone 'UTC')::date as day, model, provider, sum(requests) as requests,
           sum(failures) as failures, sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens,
           sum(cost_nanos) as cost_nanos
    from traffic_hours
    where hour >= $1 and hour < $2
        and ($3::text is null or model = $3) and ($4::text is null or provider = $4)
    group by 1, 2, 3
) d
group by grouping sets ((day), (model), (provider), ())
order by level, day, cost_nanos desc, requests desc, model, provider;
