-- What providers say about their own models, asked for now and then by whoever keeps the books.
create table model_lists (
    -- The provider's name in the configuration.
    provider text primary key check (length(provider) between 1 and 200),
    -- Of what it said last; null until it said anything.
    digest bytea,
    -- All of it, and in short what the data plane needs; msgpack, the former compressed.
    models bytea check (octet_length(models) <= 33554432),
    facts bytea check (octet_length(facts) <= 16777216),
    model_count integer not null default 0,
    -- When it was asked with success, and is to be asked next.
    listed_at timestamptz,
    next_at timestamptz not null default now(),
    -- In a row, and why the last one.
    failures integer not null default 0,
    error text not null default '' check (length(error) <= 500)
);

-- What Hugging Face knows about open models, where that is turned on.
create table model_metrics (
    hugging_face_id text primary key check (length(hugging_face_id) between 1 and 256),
    -- Null where there is no such model.
    metrics bytea check (octet_length(metrics) <= 65536),
    next_at timestamptz not null default now()
);

create index model_metrics_due on model_metrics (next_at);
