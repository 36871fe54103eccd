-- Statements about accounts with several members.

-- list_accounts: where a person works
select a.id, a.name, a.status, a.plan, m.role, a.created_at,
       (select count(*) from memberships o where o.account_id = a.id) as members
from memberships m
join accounts a on a.id = m.account_id
where m.user_id = $1
order by m.created_at, a.id
limit 1000;

-- read_team: one account
select a.id, a.name, a.status, a.plan, a.created_at,
       (select count(*) from memberships o where o.account_id = a.id) as members
from accounts a where a.id = $1;

-- rename: an account
update accounts set name = $2 where id = $1;

-- lock_account: whoever changes its members does so one after the other
select id, name from accounts where id = $1 for no key update;

-- count_teams: how many accounts somebody owns
select count(*) from memberships where user_id = $1 and role = 'owner';

-- list_members: of an account, in the order of their ids
select m.user_id, m.role, m.created_at, u.email, u.username, u.name, u.status, u.last_login_at
from memberships m
join users u on u.id = m.user_id
where m.account_id = $1 and m.user_id > $2
order by m.user_id
limit $3 offset $4;

-- find_member: somebody's role in an account
select role from memberships where account_id = $1 and user_id = $2;

-- count_owners: of an account
select count(*) from memberships where account_id = $1 and role = 'owner';

-- set_role: of a member
update memberships set role = $3 where account_id = $1 and user_id = $2;

-- remove_member: from an account
delete from memberships where account_id = $1 and user_id = $2;

-- end_sessions: of a member, in that account
update sessions set revoked_at = now() where account_id = $1 and user_id = $2 and revoked_at is null;

-- revoke_members_keys: what a member made in an account
update keys set revoked_at = now() where account_id = $1 and user_id = $2 and revoked_at is null returning id;

-- is_member_by_email: whether somebody works there already
select exists (
    select from memberships m join users u on u.id = m.user_id where m.account_id = $1 and lower(u.email) = lower($2)
);

-- invite: somebody by address; refused by invitations_open while an earlier one is open
insert into invitations (account_id, email, role, digest, invited_by, expires_at)
values ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))
returning id, created_at, expires_at;

-- drop_expired_invitation: so that somebody can be asked again
update invitations set revoked_at = now()
where account_id = $1 and lower(email) = lower($2) and accepted_at is null and revoked_at is null and expires_at <= now();

-- list_invitations: that are open, newest first
select id, email, role, invited_by, created_at, expires_at
from invitations
where account_id = $1 and accepted_at is null and revoked_at is null and expires_at > now()
order by id desc limit 1000;

-- withdraw: an invitation
update invitations set revoked_at = now()
where id = $1 and account_id = $2 and accepted_at is null and revoked_at is null
returning email, role;

-- accept: an invitation, once
update invitations i set accepted_at = now()
from accounts a
where i.digest = $1 and i.accepted_at is null and i.revoked_at is null and i.expires_at > now()
    and a.id = i.account_id and a.status = 'active'
returning i.id, i.account_id, i.role, i.email;

-- switch_account: what a session works in; only where the person is a member
update sessions s set account_id = $2
from memberships m, accounts a
where s.id = $1 and m.account_id = $2 and m.user_id = s.user_id and a.id = m.account_id and a.status = 'active'
returning s.id;
