-- Statements about the plan of an account.

-- lock_plan: the plan of an account, which nobody else changes until this transaction is over
select plan, status from accounts where id = $1 for no key update;

-- set_plan: by `assign_plan`
update accounts set plan = $2 where id = $1;

-- living_keys: which keys of an account workers may know
select id from keys where account_id = $1 and revoked_at is null;

-- owned_accounts: the accounts that a person owns, as the plan of a person is that of theirs
select m.account_id from memberships m join accounts a on a.id = m.account_id and a.status <> 'closed'
where m.user_id = $1 and m.role = 'owner'
order by m.created_at, m.account_id limit 2;
