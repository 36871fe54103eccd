-- Statements about accounts and keys.

-- find_key: what a worker's KeyRing needs to verify a key, by public id
select k.id, k.account_id, k.environment, k.digest,
       k.previous_digest, extract(epoch from k.previous_until)::float8 as previous_until_s,
       k.revoked_at is not null as revoked, k.disabled_at is not null as disabled,
       extract(epoch from k.expires_at)::float8 as expires_at_s,
       case when a.status = 'active' and u.status = 'suspended' then 'suspended' else a.status end as account_status,
       a.plan, k.limits, b.overdraft_nanos, k.max_requests,
       k.scopes, k.ip_allowlist::text[] as networks, k.referrer_allowlist as referrers, k.model_allowlist as models,
       k.provider_allowlist as providers,
       (select json_agg(json_build_object(
                    'id', p.id, 'provider', p.provider, 'mode', p.mode, 'fingerprint', p.fingerprint,
                    'master_id', p.master_id, 'nonce', translate(encode(p.nonce, 'base64'), E'\n', ''),
                    'sealed', translate(encode(p.sealed, 'base64'), E'\n', '')
                ) order by p.created_at, p.id)
        from provider_keys p
        where p.account_id = k.account_id and p.enabled) as own_keys
from keys k
join accounts a on a.id = k.account_id
join balances b on b.account_id = k.account_id
left join users u on u.id = k.user_id
where k.id = $1;

-- create_account: a new account, by `gateway keys create` and the first start
insert into accounts (name) values ($1) returning id;

-- first_account: the oldest account, the one a single-tenant gateway uses
select id from accounts order by id limit 1;

-- create_key: a new key; refused by keys_account_id_name_living when a living key has the name
insert into keys (id, account_id, name, environment, digest, last_four)
values ($1, $2, $3, $4, $5, $6);

-- list_keys: every key, newest first, for `gateway keys list`
select id, account_id, name, environment, last_four, created_at, revoked_at, expires_at
from keys
order by created_at desc, id;

-- revoke_key: by public id, or by name where a living key has it; the ids revoked
update keys set revoked_at = now()
where revoked_at is null and (id = $1 or name = $1)
returning id, account_id;

-- lock_limits: what living keys of an id or a name may use, until it is changed, by `change_limits`
select id, account_id, limits from keys where revoked_at is null and (id = $1 or name = $1) for no key update;

-- set_limits: what a key may use; null is all that its account may, by `change_limits`
update keys set limits = $2 where id = $1;

-- any_key: whether a key was ever made, so that the first start is known as such
select exists (select from keys);
