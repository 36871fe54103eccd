-- Accounts, and the keys that call in their name.

-- Whoever pays. A person or an organisation; people and roles are another module's.
create table accounts (
    id bigint generated always as identity primary key,
    name text not null check (length(name) between 1 and 200),
    -- suspended: keys are refused until it is active again; closed: for good.
    status text not null default 'active' check (status in ('active', 'suspended', 'closed')),
    created_at timestamptz not null default now()
);

-- What applications authenticate with. The key itself is shown once and never stored.
create table keys (
    -- The public part of the key, by which it is looked up and shown.
    id text primary key check (length(id) between 4 and 64),
    account_id bigint not null references accounts (id),
    name text not null check (length(name) between 1 and 200),
    environment text not null check (environment in ('live', 'test', 'staging', 'dev')),
    -- HMAC-SHA256 of the whole key under the server's pepper.
    digest bytea not null check (octet_length(digest) = 32),
    -- So that people recognise a key they have; far too little to guess it.
    last_four text not null check (length(last_four) = 4),
    created_at timestamptz not null default now(),
    revoked_at timestamptz,
    expires_at timestamptz,
    -- Written now and then, not at each call.
    last_used_at timestamptz,
    check (expires_at is null or expires_at > created_at)
);

-- One living key of a name in an account; a revoked one leaves its name free. Also serves lists by account.
create unique index keys_account_id_name_living on keys (account_id, name) where revoked_at is null;

-- Lists that show revoked keys too, and the foreign key's own checks.
create index keys_account_id on keys (account_id);
