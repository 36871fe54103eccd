-- Statements about people: who they are, how they sign in, and what is theirs.

-- create_account: whoever pays, by `create_person` and `create_team`
insert into accounts (name, plan) values ($1, $2) returning id;

-- create_user: by `create_person`; refused by users_email and users_username
insert into users (email, username, name, password_hash, role, verified_at)
values ($1, $2, $3, $4, $5, case when $6 then now() end)
returning id, created_at;

-- add_member: somebody works in an account from now on
insert into memberships (account_id, user_id, role) values ($1, $2, $3) on conflict do nothing;

-- create_primary_key: the key that comes with an account
insert into keys (id, account_id, user_id, name, environment, digest, last_four, is_primary)
values ($1, $2, $3, $4, $5, $6, $7, true);

-- add_identity: who a person is at an issuer
insert into identities (issuer, subject, user_id, email) values ($1, $2, $3, $4) on conflict do nothing returning true;

-- find_by_identity: the person that an issuer's word is about; the row is touched, so that its last use is known
update identities i set last_used_at = now(), email = coalesce($3, i.email)
from users u
where i.issuer = $1 and i.subject = $2 and u.id = i.user_id
returning u.id, u.status;

-- find_by_email: a person by address, in any case; locked, because whoever asks is about to change something
select id, email, password_hash, verified_at is not null as verified, status from users where lower(email) = lower($1)
for no key update;

-- read_login: what a sign-in by password needs
select id, password_hash, verified_at is not null as verified, status from users where lower(email) = lower($1);

-- give_up_email: an address that nobody had verified was proved to be another's
update users set email = null, verified_at = null, updated_at = now() where id = $1;

-- read_person: what a person is shown of themselves
select u.id, u.email, u.username, u.name, u.role, u.status, u.verified_at is not null as verified, u.preferences, u.settings,
       u.created_at, u.updated_at, u.last_login_at, u.password_hash is not null as has_password, u.welcomed_at
from users u
where u.id = $1;

-- first_account: the account that a person works in after signing in: the one joined first
select m.account_id from memberships m join accounts a on a.id = m.account_id
where m.user_id = $1 and a.status = 'active'
order by m.created_at, m.account_id limit 1;

-- open_session: somebody is signed in
insert into sessions (digest, user_id, account_id, kind, expires_at, ip, user_agent)
values ($1, $2, $3, $4, now() + make_interval(secs => $5), $6::text::inet, $7)
returning id, expires_at;

-- note_login: when somebody last signed in
update users set last_login_at = now() where id = $1;

-- list_sessions: where a person is signed in, newest first
select id, kind, account_id, created_at, expires_at, host(ip) as ip, user_agent
from sessions where user_id = $1 and revoked_at is null and expires_at > now()
order by id desc limit 1000;

-- close_session: one of a person's
update sessions set revoked_at = now() where id = $1 and user_id = $2 and revoked_at is null returning id;

-- close_sessions: all of a person's but one
update sessions set revoked_at = now() where user_id = $1 and id is distinct from $2::bigint and revoked_at is null;

-- add_token: what a mail will prove
insert into tokens (digest, user_id, purpose, email, expires_at)
values ($1, $2, $3, $4, now() + make_interval(secs => $5));

-- drop_tokens: those of a purpose that were not used, because a newer one counts, or none any more
delete from tokens where user_id = $1 and purpose = $2 and used_at is null;

-- use_token: once
update tokens t set used_at = now()
from users u
where t.digest = $1 and t.purpose = $2 and t.used_at is null and t.expires_at > now()
    and u.id = t.user_id and u.status = 'active'
returning t.user_id, t.email, u.verified_at is not null as verified, u.email as current_email;

-- verify_email: the address is the person's
update users set email = $2, verified_at = coalesce(case when lower(email) = lower($2) then verified_at end, now()),
                 updated_at = now()
where id = $1;

-- set_password: a new one
update users set password_hash = $2, updated_at = now() where id = $1;

-- read_password: what a person's password is checked against
select password_hash, email from users where id = $1;

-- revoke_keys_of: the keys that somebody made, when it turns out that it was not the owner of the address
update keys set revoked_at = now() where user_id = $1 and revoked_at is null returning id;

-- note_welcome: whether nobody had been welcomed yet
update users set welcomed_at = now() where id = $1 and welcomed_at is null returning true;

-- update_profile: what a person says of themselves; null leaves it as it is
update users
set name = coalesce($2, name), preferences = coalesce($3::jsonb, preferences), settings = coalesce($4::jsonb, settings),
    updated_at = now()
where id = $1;

-- list_owned: the accounts of which a person is the last owner, locked, with how many others are in them
select m.account_id, (select count(*) from memberships o where o.account_id = m.account_id and o.user_id <> $1) as others
from memberships m
join accounts a on a.id = m.account_id
where m.user_id = $1 and m.role = 'owner'
    and not exists (
        select from memberships o where o.account_id = m.account_id and o.role = 'owner' and o.user_id <> $1
    )
order by m.account_id
for update of a;

-- close_account: for good, and nothing personal is left in it
update accounts set status = 'closed', name = 'closed account ' || id where id = $1;

-- revoke_account_keys: all of an account
update keys set revoked_at = coalesce(revoked_at, now()), name = 'key ' || id where account_id = $1 returning id;

-- delete_provider_keys: those that an account brought itself
delete from provider_keys where account_id = $1;

-- forget_person: nothing personal is left
update users
set email = null, username = null, name = null, password_hash = null, verified_at = null, status = 'deleted',
    preferences = '{}', settings = '{}', role = 'user', updated_at = now()
where id = $1;

-- forget_identities: at other issuers
delete from identities where user_id = $1;

-- forget_sessions: and where they were
delete from sessions where user_id = $1;

-- forget_tokens: and what was sent to them
delete from tokens where user_id = $1;

-- forget_memberships: and where they worked
delete from memberships where user_id = $1 returning account_id;

-- forget_invitations: and where they were asked to
delete from invitations where lower(email) = lower($1);

-- create_key: one that somebody asks for while signing in
insert into keys (id, account_id, user_id, name, environment, digest, last_four)
values ($1, $2, $3, $4, 'live', $5, $6);
