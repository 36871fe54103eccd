-- Statements about the keys of an account, by those who work in it. Each asks for a key and its account together.

-- list_keys: newest first, with what was used of each; after a key by when it was made and its id
select k.id, k.name, k.environment, k.last_four, k.user_id, k.is_primary, k.created_at, k.rotated_at, k.previous_until,
       k.revoked_at, k.disabled_at, k.expires_at, k.max_requests, k.scopes, k.limits,
       k.ip_allowlist::text[] as networks, k.referrer_allowlist as referrers, k.model_allowlist as models,
       k.provider_allowlist as providers,
       coalesce(t.requests, 0) as requests_used, coalesce(t.cost_nanos, 0) as cost_nanos, t.last_used_at
from keys k
left join usage_totals t on t.account_id = k.account_id and t.key_id = k.id
where k.account_id = $1
    and ($2 or k.revoked_at is null)
    and ($3::text is null or k.environment = $3)
    and (k.created_at, k.id) < (coalesce($4::timestamptz, 'infinity'), coalesce($5::text, ''))
order by k.created_at desc, k.id desc
limit $6 offset $7;

-- read_key: one of them, revoked ones too
select k.id, k.name, k.environment, k.last_four, k.user_id, k.is_primary, k.created_at, k.rotated_at, k.previous_until,
       k.revoked_at, k.disabled_at, k.expires_at, k.max_requests, k.scopes, k.limits,
       k.ip_allowlist::text[] as networks, k.referrer_allowlist as referrers, k.model_allowlist as models,
       k.provider_allowlist as providers,
       coalesce(t.requests, 0) as requests_used, coalesce(t.cost_nanos, 0) as cost_nanos, t.last_used_at
from keys k
left join usage_totals t on t.account_id = k.account_id and t.key_id = k.id
where k.id = $1 and k.account_id = $2;

-- count_keys: living ones, those of them that can be used, and what all there ever were have done
select count(*) filter (where k.revoked_at is null) as living,
       count(*) filter (where k.revoked_at is null and k.disabled_at is null
                        and coalesce(k.expires_at > now(), true)) as active,
       coalesce(sum(t.requests), 0)::bigint as requests, coalesce(sum(t.cost_nanos), 0)::bigint as cost_nanos
from keys k
left join usage_totals t on t.account_id = k.account_id and t.key_id = k.id
where k.account_id = $1;

-- lock_key: nobody else changes it until this transaction is over; what must be known before that
select id from keys where id = $1 and account_id = $2 and revoked_at is null for no key update;

-- lock_account: keys of an account are made one after the other; its plan
select plan from accounts where id = $1 for no key update;

-- read_plan: what holds for all keys of an account
select plan from accounts where id = $1;

-- count_living: keys that take a name and a place
select count(*) from keys where account_id = $1 and revoked_at is null;

-- create_key: refused by keys_account_id_name_living where a living key of the account has the name
insert into keys (id, account_id, user_id, name, environment, digest, last_four, scopes, expires_at, max_requests,
                  ip_allowlist, referrer_allowlist, model_allowlist, provider_allowlist, limits)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text[]::cidr[], $12, $13, $14, $15);

-- update_key: all that can be changed; a key that was switched off stays so since then
update keys set name = $3, scopes = $4, expires_at = $5, max_requests = $6, ip_allowlist = $7::text[]::cidr[],
    referrer_allowlist = $8, model_allowlist = $9, provider_allowlist = $10, limits = $11,
    disabled_at = case when $12 then null else coalesce(disabled_at, now()) end
where id = $1 and account_id = $2;

-- revoke_key: for good
update keys set revoked_at = now(), previous_digest = null, previous_until = null
where id = $1 and account_id = $2 and revoked_at is null;

-- rotate_key: another proof, and the old one for so many seconds more; not while it is young
update keys set digest = $3, last_four = $4, user_id = $5, rotated_at = now(),
    previous_digest = case when $6::float8 > 0 then digest end,
    previous_until = case when $6::float8 > 0 then now() + make_interval(secs => $6) end
where id = $1 and account_id = $2 and revoked_at is null
    and coalesce(rotated_at < now() - make_interval(secs => $7), true)
returning previous_until;

-- lock_rotatable: keys of an account that can be used and have not just been rotated, in one order for all who lock them
select id, name, environment, user_id, disabled_at, expires_at from keys
where account_id = $1 and revoked_at is null and disabled_at is null and coalesce(expires_at > now(), true)
    and ($2::text is null or environment = $2) and ($3::bigint is null or user_id = $3)
    and coalesce(rotated_at < now() - make_interval(secs => $4), true)
order by id
for no key update;

-- sum_key: what a key used, for all time, this month and today (UTC)
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
from usage_days
cross join (
    select (now() at time zone 'UTC')::date as today, date_trunc('month', now() at time zone 'UTC')::date as first
) w
where key_id = $1 and account_id = $2;

-- list_key_days: the same by day and model, for the last so many days
select day, model, requests, input_tokens, output_tokens, cost_nanos
from usage_days
where key_id = $1 and account_id = $2 and day > (now() at time zone 'UTC')::date - $3::int
order by day desc, requests desc, model
limit $4;
