-- People, what they may do, and what they did; and what a key may be used for.

-- Somebody who signs in. Addresses and names are compared without regard to case.
create table users (
    id bigint generated always as identity primary key,
    -- Null once it was given up: the person is deleted, or an address nobody had verified was proved to be another's.
    email text check (length(email) between 3 and 320),
    username text check (length(username) between 1 and 100),
    name text check (length(name) between 1 and 200),
    -- argon2id; null where another issuer's word is all there is.
    password_hash text,
    -- When the address was proved to be the person's.
    verified_at timestamptz,
    -- suspended: signs in nowhere, and the keys made for it are refused; deleted: for good, and nothing personal is left.
    status text not null default 'active' check (status in ('active', 'suspended', 'deleted')),
    role text not null default 'user' check (role in ('admin', 'developer', 'user')),
    preferences jsonb not null default '{}' check (jsonb_typeof(preferences) = 'object'),
    settings jsonb not null default '{}' check (jsonb_typeof(settings) = 'object'),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    last_login_at timestamptz,
    welcomed_at timestamptz,
    check (status <> 'deleted' or (email is null and username is null and name is null and password_hash is null))
);

create unique index users_email on users (lower(email));
create unique index users_username on users (lower(username));
-- What administrators search by: how it begins.
create index users_email_prefix on users (lower(email) text_pattern_ops);
create index users_username_prefix on users (lower(username) text_pattern_ops);
create index users_name_prefix on users (lower(name) text_pattern_ops);
create index users_role on users (role, id) where role <> 'user';
create index users_status on users (status, id) where status <> 'active';

-- Who a person is at an issuer: at most one person for each subject.
create table identities (
    issuer text not null check (length(issuer) between 1 and 500),
    subject text not null check (length(subject) between 1 and 500),
    user_id bigint not null references users (id) on delete cascade,
    -- As the issuer said at the last sign-in; to show it, never to match by it.
    email text,
    created_at timestamptz not null default now(),
    last_used_at timestamptz not null default now(),
    primary key (issuer, subject)
);
create index identities_user on identities (user_id);

-- Who works in an account. Keys, balance and limits are the account's.
create table memberships (
    account_id bigint not null references accounts (id),
    user_id bigint not null references users (id) on delete cascade,
    role text not null check (role in ('owner', 'admin', 'member')),
    created_at timestamptz not null default now(),
    primary key (account_id, user_id)
);
create index memberships_user on memberships (user_id, created_at, account_id);

create table invitations (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts (id),
    email text not null check (length(email) between 3 and 320),
    role text not null check (role in ('admin', 'member')),
    digest bytea not null unique check (octet_length(digest) = 32),
    invited_by bigint references users (id) on delete set null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    accepted_at timestamptz,
    revoked_at timestamptz
);
create unique index invitations_open on invitations (account_id, lower(email))
    where accepted_at is null and revoked_at is null;

-- Somebody is signed in. What is presented is signed; here is only its SHA-256.
create table sessions (
    id bigint generated always as identity primary key,
    digest bytea not null unique check (octet_length(digest) = 32),
    user_id bigint not null references users (id) on delete cascade,
    -- The account that is being worked in.
    account_id bigint not null references accounts (id),
    -- cookie: of a browser, and so in need of protection against other sites; bearer: of a program.
    kind text not null check (kind in ('cookie', 'bearer')),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz,
    ip inet,
    user_agent text
);
create index sessions_user on sessions (user_id, id);
create index sessions_expired on sessions (expires_at);

-- What a mail proves: of use once, for a while, for one thing. Here is only the SHA-256.
create table tokens (
    digest bytea primary key check (octet_length(digest) = 32),
    user_id bigint not null references users (id) on delete cascade,
    purpose text not null check (purpose in ('verify_email', 'reset_password')),
    -- The address it was sent to: it proves nothing about another.
    email text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz
);
create index tokens_user on tokens (user_id, purpose);
create index tokens_expired on tokens (expires_at);

-- Every change of keys, people, roles, plans, prices, credits and settings: who, what, what it was before and after,
-- and from where. Never a secret, and never a person's name or address.
create table audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    -- user: a person in a session; key: a program with an API key; operator: a command on the machine; system: itself.
    actor_kind text not null check (actor_kind in ('user', 'key', 'operator', 'system')),
    actor_user_id bigint,
    actor_key_id text,
    -- Whose thing it was; null for what is everybody's.
    account_id bigint,
    -- resource.verb, such as api_keys.rotate
    action text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
    object_kind text not null,
    object_id text not null,
    before jsonb,
    after jsonb,
    reason text,
    ip inet,
    user_agent text,
    request_id text
);
create index audit_log_account on audit_log (account_id, id);
create index audit_log_object on audit_log (object_kind, object_id, id);
create index audit_log_actor on audit_log (actor_user_id, id);
create index audit_log_action on audit_log (action, id);
create index audit_log_at on audit_log using brin (at);

create function audit_log_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is only ever added to';
end $$;
create trigger audit_log_only_added before update or delete on audit_log
    for each row execute function audit_log_refuse_change();
create trigger audit_log_not_emptied before truncate on audit_log
    for each statement execute function audit_log_refuse_change();

-- The first answer to a request that may be sent again. It is encrypted: among the answers are new keys.
create table idempotency_keys (
    -- Whose key it is: the same text of two callers is two keys.
    scope text not null,
    key text not null check (length(key) between 1 and 200),
    -- SHA-256 of method, path and body: another request with the same key is refused.
    request_hash bytea not null check (octet_length(request_hash) = 32),
    created_at timestamptz not null default now(),
    -- Null while the request runs, and for good if its end was never noted.
    status integer,
    answer bytea,
    primary key (scope, key)
);
create index idempotency_keys_created on idempotency_keys (created_at);

-- Numbers that are counted for show, such as pings.
create table counters (
    name text primary key check (length(name) between 1 and 100),
    value bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- What a key may be used for. Null and empty mean: anything.
alter table keys
    -- Who made it, and in whose role it acts at the control plane; null for those that commands made.
    add column user_id bigint references users (id) on delete set null,
    -- {action: [resource, ...]}, "*" is every one
    add column scopes jsonb not null default '{}' check (jsonb_typeof(scopes) = 'object'),
    add column ip_allowlist cidr[] not null default '{}' check (cardinality(ip_allowlist) <= 1000),
    add column referrer_allowlist text[] not null default '{}' check (cardinality(referrer_allowlist) <= 1000),
    add column model_allowlist text[] not null default '{}' check (cardinality(model_allowlist) <= 1000),
    add column provider_allowlist text[] not null default '{}' check (cardinality(provider_allowlist) <= 1000),
    -- Requests it may make for as long as it lives.
    add column max_requests bigint check (max_requests > 0),
    -- The first one, made with the account.
    add column is_primary boolean not null default false,
    -- Switched off by its owner, and not for good.
    add column disabled_at timestamptz,
    -- The key whose place it took, and until when that one may still be used is its own expires_at.
    add column rotated_from text references keys (id);

create index keys_user on keys (user_id) where user_id is not null;
create unique index keys_account_primary on keys (account_id) where is_primary and revoked_at is null;
