-- Statements about limits: whose they are, and who comes near them.

-- list_limits: living keys of an account in the order of their ids, with their own limits; after an id
select id, name, environment, limits from keys
where account_id = $1 and revoked_at is null and id > $2
order by id limit $3 offset $4;

-- set_limits: what a key may use; null is all that its account may
update keys set limits = $3 where id = $1 and account_id = $2;

-- lock_many: several keys of an account, in one order for all who lock them
select id, environment, limits, user_id from keys
where account_id = $1 and id = any($2::text[]) and revoked_at is null
order by id for no key update;

-- count_plans: active accounts by plan
select plan, count(*) as accounts from accounts where status = 'active' group by plan order by plan;

-- count_limited: living keys with limits of their own
select count(*) from keys where revoked_at is null and limits is not null;

-- sum_traffic: of everybody in the last hour and today (UTC), as settled
select
    coalesce(sum(requests) filter (where hour >= date_trunc('hour', now(), 'UTC')), 0)::bigint as hour_requests,
    coalesce(sum(input_tokens + output_tokens) filter (where hour >= date_trunc('hour', now(), 'UTC')), 0)::bigint
        as hour_tokens,
    coalesce(sum(requests), 0)::bigint as day_requests,
    coalesce(sum(input_tokens + output_tokens), 0)::bigint as day_tokens
from traffic_hours where hour >= date_trunc('day', now(), 'UTC');
