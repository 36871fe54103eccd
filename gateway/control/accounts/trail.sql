-- Statements that show the audit log. Whatever is null is not asked for.

-- list_trail: changes, newest first: of an account; by a person; of an action, or all of a resource; of a thing; of a
-- request; in a span; before a place
select id, at, actor_kind, actor_user_id, actor_key_id, account_id, action, object_kind, object_id, before, after, reason,
       host(ip) as ip, user_agent, request_id
from audit_log
where ($1::bigint is null or account_id = $1)
    and ($2::bigint is null or actor_user_id = $2)
    and ($3::text is null or action = $3)
    and ($4::text is null or object_kind = $4)
    and ($5::text is null or object_id = $5)
    and ($6::text is null or request_id = $6)
    and ($7::timestamptz is null or at >= $7)
    and ($8::timestamptz is null or at < $8)
    and id < coalesce($9::bigint, 9223372036854775807)
order by id desc
limit $10 offset $11;

-- list_trail_forward: the same, oldest first and after a place, for whoever takes all of it away
select id, at, actor_kind, actor_user_id, actor_key_id, account_id, action, object_kind, object_id, before, after, reason,
       host(ip) as ip, user_agent, request_id
from audit_log
where ($1::bigint is null or account_id = $1)
    and ($2::bigint is null or actor_user_id = $2)
    and ($3::text is null or action = $3)
    and ($4::text is null or object_kind = $4)
    and ($5::text is null or object_id = $5)
    and ($6::text is null or request_id = $6)
    and ($7::timestamptz is null or at >= $7)
    and ($8::timestamptz is null or at < $8)
    and id > $9
order by id
limit $10;

-- list_key_changes: what was done with the keys of an account, newest first
select id, at, actor_kind, actor_user_id, actor_key_id, account_id, action, object_kind, object_id, before, after, reason,
       host(ip) as ip, user_agent, request_id
from audit_log
where account_id = $1 and action like 'api\_keys.%'
    and ($2::text is null or object_id = $2)
    and ($3::text is null or action = $3)
    and ($4::timestamptz is null or at >= $4)
    and ($5::timestamptz is null or at < $5)
    and id < coalesce($6::bigint, 9223372036854775807)
order by id desc
limit $7 offset $8;

-- count_key_changes: how many these are
select count(*)
from audit_log
where account_id = $1 and action like 'api\_keys.%'
    and ($2::text is null or object_id = $2)
    and ($3::text is null or action = $3)
    and ($4::timestamptz is null or at >= $4)
    and ($5::timestamptz is null or at < $5);
