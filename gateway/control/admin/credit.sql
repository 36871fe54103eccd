-- Statements about credit and limits, for administrators.

-- find_key: whose key that is
select id, account_id, limits from keys where id = $1;

-- lock_key: until what it may use is changed
select id, account_id, limits from keys where id = $1 and revoked_at is null for no key update;

-- set_limits: what a key may use; null is all that its account may
update keys set limits = $2 where id = $1;

-- first_account: the account that a person joined first
select account_id from memberships where user_id = $1 order by created_at, account_id limit 1;

-- first_owner: who answers for an account
select user_id from memberships where account_id = $1 and role = 'owner' order by created_at, user_id limit 1;

-- list_credit: entries of all accounts that are not usage, newest first; null is any account, type or time, and no
-- place the newest
select e.account_id, e.seq, e.type, e.amount_nanos, e.balance_after_nanos, e.payment_id, e.reason, e.idempotency_key,
       e.created_at
from entry_keys k
-- One by one, as they are wanted: joined as a whole, all of both are read for any page.
cross join lateral (
    select * from entries where account_id = k.account_id and seq = k.seq and created_at = k.created_at offset 0
) e
where ($1::bigint is null or k.account_id = $1)
    and ($2::text is null or e.type = $2)
    and ($3::timestamptz is null or k.created_at >= $3)
    and ($4::timestamptz is null or k.created_at < $4)
    and k.created_at <= coalesce($5::timestamptz, 'infinity')
    and ($5::timestamptz is null or (k.created_at, k.account_id, k.seq) < ($5::timestamptz, $6::bigint, $7::bigint))
order by k.created_at desc, k.account_id desc, k.seq desc
limit $8 offset $9;
