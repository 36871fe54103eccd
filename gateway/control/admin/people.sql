-- Statements about people and accounts, for administrators.

-- list_people: by how their address, user name or name begins (lower case, and the end of that range), role, status; in
-- the order of their ids. The comparisons are those of the indexes over prefixes; ids come first, because those that are
-- passed over then need no look at their rows.
select u.id, u.email, u.username, u.name, u.role, u.status, u.verified_at is not null as verified, u.created_at,
       u.last_login_at, m.account_id, a.name as account_name, a.plan, a.status as account_status, b.balance_nanos
from (
    select id
    from users
    where ($1::text is null
            or (lower(email) ~>=~ $1 and lower(email) ~<~ $2)
            or (lower(username) ~>=~ $1 and lower(username) ~<~ $2)
            or (lower(name) ~>=~ $1 and lower(name) ~<~ $2)
            or id = $3::bigint)
        and ($4::text is null or role = $4)
        and ($5::text is null or status = $5)
        and id > $6
    order by id
    limit $7 offset $8
) place
join users u on u.id = place.id
left join lateral (
    select account_id from memberships where user_id = u.id order by created_at, account_id limit 1
) m on true
left join accounts a on a.id = m.account_id
left join balances b on b.account_id = m.account_id
order by u.id;

-- count_people: how many these are
select count(*)
from users
where ($1::text is null
        or (lower(email) ~>=~ $1 and lower(email) ~<~ $2)
        or (lower(username) ~>=~ $1 and lower(username) ~<~ $2)
        or (lower(name) ~>=~ $1 and lower(name) ~<~ $2)
        or id = $3::bigint)
    and ($4::text is null or role = $4)
    and ($5::text is null or status = $5);

-- read_person: one, whatever became of them
select u.id, u.email, u.username, u.name, u.role, u.status, u.verified_at is not null as verified, u.created_at,
       u.updated_at, u.last_login_at
from users u
where u.id = $1;

-- read_memberships: where somebody works
select m.account_id, m.role, a.name, a.plan, a.status, b.balance_nanos
from memberships m
join accounts a on a.id = m.account_id
join balances b on b.account_id = a.id
where m.user_id = $1
order by m.created_at, m.account_id
limit 1000;

-- list_accounts: by status and plan, and how the name begins, in the order of their ids
select a.id, a.name, a.plan, a.status, a.created_at, b.balance_nanos, o.user_id, o.email,
       (select count(*) from keys k where k.account_id = a.id and k.revoked_at is null) as keys
from (
    select id
    from accounts
    where ($1::text is null or status = $1) and ($2::text is null or plan = $2)
        and ($3::text is null or (lower(name) ~>=~ $3 and lower(name) ~<~ $4))
        and id > $5
    order by id
    limit $6 offset $7
) place
join accounts a on a.id = place.id
join balances b on b.account_id = a.id
left join lateral (
    select m.user_id, u.email
    from memberships m
    join users u on u.id = m.user_id
    where m.account_id = a.id and m.role = 'owner'
    order by m.created_at, m.user_id limit 1
) o on true
order by a.id;

-- count_accounts: how many these are
select count(*)
from accounts
where ($1::text is null or status = $1) and ($2::text is null or plan = $2)
    and ($3::text is null or (lower(name) ~>=~ $3 and lower(name) ~<~ $4));

-- read_account: one, with what it has
select a.id, a.name, a.plan, a.status, a.created_at, b.balance_nanos, b.overdraft_nanos
from accounts a
join balances b on b.account_id = a.id
where a.id = $1;

-- read_members: who works there
select m.user_id, m.role, u.email, u.status
from memberships m
join users u on u.id = m.user_id
where m.account_id = $1
order by m.created_at, m.user_id
limit 1000;

-- read_keys: its keys, newest first
select k.id, k.name, k.environment, k.last_four, k.created_at, t.last_used_at, k.expires_at, k.revoked_at, k.disabled_at
from keys k
left join usage_totals t on t.account_id = k.account_id and t.key_id = k.id
where k.account_id = $1
order by k.created_at desc, k.id desc
limit 1000;
