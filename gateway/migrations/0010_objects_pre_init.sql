-- Objects that providers keep for callers: files, batches, stored responses and the like. Whose each is, where it is,
-- and what is still to be charged for it.
create table objects (
    -- The provider's. Two providers may give the same id: the second is refused, see `kernel/objects.sql`.
    id text primary key check (length(id) between 1 and 512),
    kind text not null,
    account_id bigint not null references accounts (id),
    key_id text not null,
    provider text not null,
    -- Of the provider's key that owns it: its number changes when keys are added.
    fingerprint text not null,
    created_at timestamptz not null default now(),
    -- Forgotten after that; null: kept until it is deleted.
    expires_at timestamptz,
    deleted_at timestamptz,
    -- What the provider said of it last, for lists. Not of responses: what was said in them is not ours to keep.
    document text check (octet_length(document) <= 65536),
    -- What is charged when the provider has done its work: under this request id, so once for ever.
    charge_id uuid,
    charge_state text check (charge_state in ('pending', 'settled', 'void', 'lost')),
    model text not null default '',
    upstream_model text not null default '',
    hold_nanos bigint not null default 0 check (hold_nanos >= 0),
    -- When the provider is asked next, and how often it was.
    poll_at timestamptz,
    polls integer not null default 0,
    check ((charge_id is null) = (charge_state is null))
) with (fillfactor = 85);

create index objects_list on objects (account_id, kind, created_at desc, id desc) where document is not null;
create index objects_poll on objects (poll_at) where charge_state = 'pending';
create index objects_expiry on objects (expires_at) where expires_at is not null;
