-- Rotation of keys, and when they were last used.

alter table keys
    -- A key keeps its id when it is rotated, and with it its limits, budgets and history: only what proves it changes.
    -- The old proof may be good for a while longer.
    add column previous_digest bytea check (octet_length(previous_digest) = 32),
    add column previous_until timestamptz,
    add column rotated_at timestamptz,
    -- Nothing was ever written here.
    drop column rotated_from,
    add constraint keys_previous check ((previous_digest is null) = (previous_until is null));

-- When a key was last used, to within the time that a record takes to get here.
alter table usage_totals add column last_used_at timestamptz;

-- The keys of an account, newest first.
create index keys_account_created on keys (account_id, created_at desc, id desc);
drop index keys_account_id;
