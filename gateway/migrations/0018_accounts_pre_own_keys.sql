-- Provider keys that accounts bring themselves, encrypted; see `kernel/vault.py`.
create table provider_keys (
    id uuid primary key,
    account_id bigint not null references accounts (id),
    -- Of the configuration.
    provider text not null check (length(provider) between 1 and 200),
    name text not null check (length(name) between 1 and 200),
    -- Before the operator's keys, after them, or in their place.
    mode text not null check (mode in ('first', 'fallback', 'only')),
    enabled boolean not null default true,
    last_four text not null check (length(last_four) <= 4),
    -- The same for the same text, within the account: no key is here twice, and what a provider keeps for it is found.
    fingerprint text not null,
    -- Which master key it is encrypted under.
    master_id text not null,
    nonce bytea not null check (octet_length(nonce) = 12),
    sealed bytea not null check (octet_length(sealed) between 17 and 32784),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (account_id, provider, fingerprint)
);

-- What is still encrypted under an old master key.
create index provider_keys_master on provider_keys (master_id, id);

-- Requests that went out with one: which, and the share of the price that was charged.
alter table usage_records
    add column own_key_id uuid,
    add column fee_permille integer;
