-- The ledger: what every account was given and has used, and what is on its way to or from Redis.
--
-- Amounts are whole nano-dollars. Redis holds them as doubles, so none may pass 2^53.

-- What an account and a key may use. The plan names a row of the configuration; a key's own limits come on top.
alter table accounts add column plan text not null default 'unlimited' check (length(plan) between 1 and 64);
alter table keys add column limits jsonb check (jsonb_typeof(limits) = 'object');

-- One row for each account, derived from its entries by a trigger and written by nobody else. Whoever adds entries
-- locks it first, which puts the entries of an account in one order.
create table balances (
    account_id bigint primary key references accounts (id),
    balance_nanos bigint not null default 0 check (abs(balance_nanos) < 9007199254740992),
    -- Numbers of the last entry, and of the last one that is not usage: the only ones that are sent to Redis.
    last_seq bigint not null default 0 check (last_seq >= 0),
    credit_seq bigint not null default 0 check (credit_seq between 0 and last_seq),
    -- How far below zero this account may be admitted.
    overdraft_nanos bigint not null default 0 check (overdraft_nanos between 0 and 9007199254740991)
) with (fillfactor = 70);

create function balances_open() returns trigger language plpgsql as $$
begin
    insert into balances (account_id) values (new.id);
    return null;
end $$;

create trigger accounts_open_balance after insert on accounts for each row execute function balances_open();
insert into balances (account_id) select id from accounts;

-- Every change of a balance, for ever. `created_at` of a usage entry is the time inside its request id, so that the
-- unique index below holds across months: the same id always falls into the same partition.
create table entries (
    account_id bigint not null,
    -- From 1 and without gaps within the account.
    seq bigint not null check (seq > 0),
    type text not null,
    amount_nanos bigint not null,
    balance_after_nanos bigint not null,
    -- What it was for: exactly one of a request, or a key that whoever grants or takes credit has chosen.
    request_id uuid,
    idempotency_key text,
    payment_id text,
    reason text,
    created_at timestamptz not null default now(),
    primary key (account_id, seq, created_at),
    constraint entries_type_and_sign check (
        case type
            when 'api_usage' then amount_nanos < 0 and request_id is not null and idempotency_key is null
            when 'admin_debit' then amount_nanos < 0 and request_id is null and idempotency_key is not null
            when 'refund' then amount_nanos < 0 and request_id is null and idempotency_key is not null
            when 'transfer' then amount_nanos <> 0 and request_id is null and idempotency_key is not null
            when 'adjustment' then amount_nanos <> 0 and request_id is null and idempotency_key is not null
            else type in ('trial', 'purchase', 'admin_credit', 'bonus', 'coupon', 'referral')
                and amount_nanos > 0 and request_id is null and idempotency_key is not null
        end
    )
) partition by range (created_at);

create unique index entries_request on entries (request_id, created_at) where request_id is not null;
create table entries_default partition of entries default;

create function entries_refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'entries are only ever added: correct one by another of type adjustment';
end $$;

-- By row, since that is what the partitions inherit.
create trigger entries_only_added before update or delete on entries
    for each row execute function entries_refuse_change();
create trigger entries_not_emptied before truncate on entries
    for each statement execute function entries_refuse_change();

-- Moves the balances, and refuses entries that don't continue them: for each account the numbers must go on where they
-- ended, and every entry must say the balance that it leaves. For one statement at once, since usage comes in batches.
create function entries_apply() returns trigger language plpgsql as $$
declare
    accounts_count bigint;
    moved_count bigint;
begin
    if exists (
        select from (
            select
                seq - lag(seq) over chain as step,
                balance_after_nanos - amount_nanos - lag(balance_after_nanos) over chain as gap
            from added
            window chain as (partition by account_id order by seq)
        ) links
        where step <> 1 or gap <> 0
    ) then
        raise exception 'entries do not continue each other' using errcode = 'integrity_constraint_violation';
    end if;

    select count(distinct account_id) into accounts_count from added;
    update balances b
    set balance_nanos = b.balance_nanos + s.total_nanos,
        last_seq = s.last_seq,
        credit_seq = greatest(b.credit_seq, s.credit_seq)
    from (
        select
            account_id,
            min(seq) as first_seq,
            max(seq) as last_seq,
            coalesce(max(seq) filter (where type <> 'api_usage'), 0) as credit_seq,
            sum(amount_nanos)::bigint as total_nanos,
            (array_agg(balance_after_nanos order by seq desc))[1] as after_nanos
        from added
        group by account_id
    ) s
    where b.account_id = s.account_id
        and s.first_seq = b.last_seq + 1
        and s.after_nanos = b.balance_nanos + s.total_nanos;
    get diagnostics moved_count = row_count;
    if moved_count <> accounts_count then
        raise exception 'entries do not continue their balances' using errcode = 'integrity_constraint_violation';
    end if;
    return null;
end $$;

create trigger entries_move_balances after insert on entries
    referencing new table as added for each statement execute function entries_apply();

-- What makes a grant happen once: not partitioned, so that it holds for ever.
create table entry_keys (
    idempotency_key text primary key check (length(idempotency_key) between 1 and 200),
    account_id bigint not null,
    seq bigint not null,
    created_at timestamptz not null
);

-- Entries on their way to Redis, in the transaction of the entry, and removed when Redis has them. A table of its own,
-- because "later than what Redis knows" could only be found by asking Redis about every account.
create table credit_outbox (
    account_id bigint not null,
    seq bigint not null,
    -- The number of the entry that Redis must have had before.
    previous_seq bigint not null,
    amount_nanos bigint not null,
    created_at timestamptz not null default now(),
    primary key (account_id, seq)
);

-- One row for each request that ended. Not tied to accounts by a foreign key: the settler has locked their balances.
create table usage_records (
    request_id uuid not null,
    -- The time inside the request id.
    created_at timestamptz not null,
    account_id bigint not null,
    key_id text not null,
    cost_nanos bigint not null check (cost_nanos >= 0),
    hold_nanos bigint not null,
    model text not null,
    provider text not null,
    upstream_model text not null,
    dialect text not null,
    route text not null,
    status integer not null,
    outcome text not null,
    error_type text not null,
    stream boolean not null,
    latency_ms bigint not null,
    first_token_ms bigint,
    usage_source text not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    -- Parts of the two above.
    input_cached_tokens bigint not null,
    input_cache_write_tokens bigint not null,
    input_cache_write_1h_tokens bigint not null,
    input_audio_tokens bigint not null,
    input_image_tokens bigint not null,
    output_reasoning_tokens bigint not null,
    output_audio_tokens bigint not null,
    output_image_tokens bigint not null,
    images bigint not null,
    audio_ms bigint not null,
    characters bigint not null,
    searches bigint not null,
    provider_cost_nanos bigint,
    service_tier text,
    -- The prices and the markup that the cost was computed at.
    input_mtok_nanos bigint not null,
    output_mtok_nanos bigint not null,
    markup_permille integer not null,
    -- [[provider, outcome], ...]
    attempts jsonb not null,
    tags jsonb not null,
    -- When Redis took the charge: budgets count by it.
    settled_at timestamptz not null,
    primary key (request_id, created_at)
) partition by range (created_at);

create index usage_records_account on usage_records (account_id, created_at);
create index usage_records_key on usage_records (key_id, created_at);
create table usage_records_default partition of usage_records default;

-- The same summed up by day of settlement (UTC), for budgets, statements and charts.
create table usage_days (
    account_id bigint not null,
    day date not null,
    key_id text not null,
    model text not null,
    requests bigint not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cost_nanos bigint not null,
    primary key (account_id, day, key_id, model)
) with (fillfactor = 70);

create index usage_days_key on usage_days (key_id, day);

-- And by key for all time, for the budgets that have no end.
create table usage_totals (
    account_id bigint not null,
    key_id text not null,
    requests bigint not null,
    cost_nanos bigint not null,
    primary key (account_id, key_id)
) with (fillfactor = 70);

-- How far each partition's usage stream is in these tables; moved in the transaction that puts it there. The entry at
-- the cursor is kept in the stream: a stream without it is another one, of an emptied or an older Redis.
create table settle_cursors (
    partition smallint primary key,
    last_id text not null default '0-0' check (last_id ~ '^[0-9]+-[0-9]+$'),
    -- How often the stream was found to be another one.
    rewinds integer not null default 0
) with (fillfactor = 50);

-- What came out of a stream and is no record of ours, or of nobody we know. Kept for people to look at.
create table settle_rejects (
    id bigint generated always as identity primary key,
    partition smallint not null,
    stream_id text not null,
    record bytea not null,
    reason text not null,
    created_at timestamptz not null default now()
);

-- Makes the partitions of this month and of the `ahead` months that follow; answers with the names of new ones. A month
-- of which the default partition has rows already stays there. Attached, not created in place: that takes the weaker
-- lock, and inserts go on.
create function make_partitions(ahead integer) returns setof text language plpgsql as $$
declare
    parent text;
    child text;
    starts timestamptz;
    ends timestamptz;
    taken boolean;
begin
    perform pg_advisory_xact_lock(hashtext('gateway.make_partitions'));
    foreach parent in array array['entries', 'usage_records'] loop
        for month in 0..ahead loop
            starts := (date_trunc('month', now() at time zone 'UTC') + make_interval(months => month)) at time zone 'UTC';
            ends := (date_trunc('month', now() at time zone 'UTC') + make_interval(months => month + 1)) at time zone 'UTC';
            child := parent || to_char(starts at time zone 'UTC', '_YYYY_MM');
            continue when to_regclass(child) is not null;
            execute format('select exists (select from %I where created_at >= $1 and created_at < $2)', parent || '_default')
                into taken using starts, ends;
            continue when taken;
            execute format('create table %I (like %I including defaults including constraints)', child, parent);
            execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, child, starts, ends);
            return next child;
        end loop;
    end loop;
end $$;

select make_partitions(3);
