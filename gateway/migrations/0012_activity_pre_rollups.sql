-- Usage summed up for people to look at, and prices that administrators have set.

-- By the day (UTC) in which a request began, so that these are exactly the sums of the records that a log of the same
-- days lists; `usage_days` counts by the day of settlement, as budgets do.
create table activity_days (
    account_id bigint not null,
    day date not null,
    provider text not null,
    model text not null,
    requests bigint not null,
    -- Those of them that ended with an error, whoever's.
    failures bigint not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cost_nanos bigint not null,
    primary key (account_id, day, provider, model)
) with (fillfactor = 70);

-- What all accounts did on a day. None of its columns changes, so updates stay where they are.
create index activity_days_day on activity_days (day, account_id);

-- Of all accounts together, by the hour in which requests began: how providers and models do.
create table traffic_hours (
    hour timestamptz not null,
    provider text not null,
    model text not null,
    requests bigint not null,
    -- Those that failed for the provider's sake, and not the caller's.
    failures bigint not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    cost_nanos bigint not null,
    latency_ms bigint not null,
    -- Streams that brought a token, and how long they took to the first one.
    begun bigint not null,
    first_token_ms bigint not null,
    primary key (hour, provider, model)
) with (fillfactor = 70);

-- Written by a trigger, so that they are right whichever release settles; in one order, so that two settlers never wait
-- for each other in a circle.
create function usage_records_sum_up() returns trigger language plpgsql as $$
begin
    insert into activity_days (account_id, day, provider, model, requests, failures, input_tokens, output_tokens,
                               cost_nanos)
    select account_id, (created_at at time zone 'UTC')::date, provider, model, count(*),
        count(*) filter (where error_type <> ''), sum(input_tokens), sum(output_tokens), sum(cost_nanos)
    from added
    group by 1, 2, 3, 4
    order by 1, 2, 3, 4
    on conflict (account_id, day, provider, model) do update set
        requests = activity_days.requests + excluded.requests,
        failures = activity_days.failures + excluded.failures,
        input_tokens = activity_days.input_tokens + excluded.input_tokens,
        output_tokens = activity_days.output_tokens + excluded.output_tokens,
        cost_nanos = activity_days.cost_nanos + excluded.cost_nanos;

    insert into traffic_hours (hour, provider, model, requests, failures, input_tokens, output_tokens, cost_nanos,
                               latency_ms, begun, first_token_ms)
    select date_trunc('hour', created_at, 'UTC'), provider, model, count(*),
        count(*) filter (where error_type like 'provider\_%'), sum(input_tokens), sum(output_tokens),
        sum(cost_nanos), sum(latency_ms), count(first_token_ms), coalesce(sum(first_token_ms), 0)
    from added
    group by 1, 2, 3
    order by 1, 2, 3
    on conflict (hour, provider, model) do update set
        requests = traffic_hours.requests + excluded.requests,
        failures = traffic_hours.failures + excluded.failures,
        input_tokens = traffic_hours.input_tokens + excluded.input_tokens,
        output_tokens = traffic_hours.output_tokens + excluded.output_tokens,
        cost_nanos = traffic_hours.cost_nanos + excluded.cost_nanos,
        latency_ms = traffic_hours.latency_ms + excluded.latency_ms,
        begun = traffic_hours.begun + excluded.begun,
        first_token_ms = traffic_hours.first_token_ms + excluded.first_token_ms;
    return null;
end $$;

-- From here on nobody settles until this is committed; what is there already is summed up below.
create trigger usage_records_summed_up after insert on usage_records
    referencing new table as added for each statement execute function usage_records_sum_up();

insert into activity_days (account_id, day, provider, model, requests, failures, input_tokens, output_tokens, cost_nanos)
select account_id, (created_at at time zone 'UTC')::date, provider, model, count(*),
    count(*) filter (where error_type <> ''), sum(input_tokens), sum(output_tokens), sum(cost_nanos)
from usage_records
group by 1, 2, 3, 4;

insert into traffic_hours (hour, provider, model, requests, failures, input_tokens, output_tokens, cost_nanos, latency_ms,
                           begun, first_token_ms)
select date_trunc('hour', created_at, 'UTC'), provider, model, count(*),
    count(*) filter (where error_type like 'provider\_%'), sum(input_tokens), sum(output_tokens), sum(cost_nanos),
    sum(latency_ms), count(first_token_ms), coalesce(sum(first_token_ms), 0)
from usage_records
group by 1, 2, 3;

-- The credit side of all accounts, newest first: there is a key for each entry that is not usage.
create index entry_keys_created on entry_keys (created_at, account_id, seq);

-- Lists of accounts by status; nearly all are active.
create index accounts_status on accounts (status, id) where status <> 'active';
create index accounts_name_prefix on accounts (lower(name) text_pattern_ops);

-- What administrators have set of a model's price, over the configuration: the keys of a model's row that are prices.
create table model_prices (
    model text primary key check (length(model) between 1 and 200),
    prices jsonb not null check (jsonb_typeof(prices) = 'object'),
    updated_at timestamptz not null default now(),
    updated_by bigint
);
