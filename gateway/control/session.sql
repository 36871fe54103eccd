-- Statements that say who a caller is; each call at the control plane runs one of them.

-- find_session: a session that goes on, of a person who may sign in, in an account the person still belongs to
select s.id, s.user_id, s.account_id, u.role, m.role as account_role, a.status as account_status
from sessions s
join users u on u.id = s.user_id and u.status = 'active'
join memberships m on m.account_id = s.account_id and m.user_id = s.user_id
join accounts a on a.id = s.account_id
where s.digest = $1 and s.revoked_at is null and s.expires_at > now() and ($2::text is null or s.kind = $2);

-- find_key_actor: a key by its public id, with the person it acts for
select k.digest, case when k.previous_until > now() then k.previous_digest end as previous_digest,
       k.ip_allowlist::text[] as networks, k.referrer_allowlist as referrers,
       k.account_id, k.user_id, k.scopes, u.role, m.role as account_role, a.status as account_status,
       k.revoked_at is not null or k.disabled_at is not null or coalesce(k.expires_at <= now(), false)
       or coalesce(u.status <> 'active', false) as over
from keys k
join accounts a on a.id = k.account_id
left join users u on u.id = k.user_id
left join memberships m on m.account_id = k.account_id and m.user_id = k.user_id
where k.id = $1;
