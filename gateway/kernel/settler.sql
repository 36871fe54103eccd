-- Statements of the settler.

-- seed_cursors: a row for each partition that has none yet; by `Settler`
insert into settle_cursors (partition) select unnest($1::smallint[]) on conflict do nothing;

-- read_cursors: how far each partition is; by `Settler`
select partition, last_id from settle_cursors where partition = any($1::smallint[]);

-- lock_cursors: the same, and nobody else may move them until this transaction ends; by `Settler`
select partition, last_id from settle_cursors
where partition = any($1::smallint[]) order by partition for no key update;

-- move_cursors: in the transaction of the records up to there; by `Settler`
update settle_cursors c set last_id = m.last_id
from unnest($1::smallint[], $2::text[]) as m (partition, last_id)
where c.partition = m.partition;

-- rewind_cursor: the stream is another one; by `Settler`
update settle_cursors set last_id = '0-0', rewinds = rewinds + 1 where partition = $1 and last_id = $2;

-- lock_balances: the accounts that are known, locked in the order of their ids against deadlock; by `Settler`
select account_id from balances where account_id = any($1::bigint[]) order by account_id for no key update;

-- settle_batch: records, entries and sums of what is new; answers with the accounts of charges that were not new
with batch as materialized (
    select *,
        timestamptz 'epoch' + made_ms * interval '1 millisecond' as created_at,
        timestamptz 'epoch' + settled_ms * interval '1 millisecond' as settled_at
    from json_to_recordset($1::json) as r (
        n integer, made_ms bigint, settled_ms bigint,
        request_id uuid, account_id bigint, key_id text, cost_nanos bigint, hold_nanos bigint, model text,
        provider text, upstream_model text, dialect text, route text, status integer, outcome text, error_type text,
        stream boolean, latency_ms bigint, first_token_ms bigint, usage_source text, input_tokens bigint,
        output_tokens bigint, input_cached_tokens bigint, input_cache_write_tokens bigint,
        input_cache_write_1h_tokens bigint, input_audio_tokens bigint, input_image_tokens bigint,
        output_reasoning_tokens bigint, output_audio_tokens bigint, output_image_tokens bigint, images bigint,
        audio_ms bigint, characters bigint, searches bigint, provider_cost_nanos bigint, service_tier text,
        input_mtok_nanos bigint, output_mtok_nanos bigint, markup_permille integer, attempts jsonb, tags jsonb,
        own_key_id uuid, fee_permille integer
    )
), fresh as (
    insert into usage_records (
        request_id, created_at, account_id, key_id, cost_nanos, hold_nanos, model, provider, upstream_model, dialect,
        route, status, outcome, error_type, stream, latency_ms, first_token_ms, usage_source, input_tokens,
        output_tokens, input_cached_tokens, input_cache_write_tokens, input_cache_write_1h_tokens,
        input_audio_tokens, input_image_tokens, output_reasoning_tokens, output_audio_tokens, output_image_tokens,
        images, audio_ms, characters, searches, provider_cost_nanos, service_tier, input_mtok_nanos,
        output_mtok_nanos, markup_permille, attempts, tags, own_key_id, fee_permille, settled_at
    )
    select
        request_id, created_at, account_id, coalesce(key_id, ''), coalesce(cost_nanos, 0), coalesce(hold_nanos, 0),
        coalesce(model, ''), coalesce(provider, ''), coalesce(upstream_model, ''), coalesce(dialect, ''),
        coalesce(route, ''), coalesce(status, 0), coalesce(outcome, ''), coalesce(error_type, ''),
        coalesce(stream, false), coalesce(latency_ms, 0), first_token_ms, coalesce(usage_source, ''),
        coalesce(input_tokens, 0), coalesce(output_tokens, 0), coalesce(input_cached_tokens, 0),
        coalesce(input_cache_write_tokens, 0), coalesce(input_cache_write_1h_tokens, 0),
        coalesce(input_audio_tokens, 0), coalesce(input_image_tokens, 0), coalesce(output_reasoning_tokens, 0),
        coalesce(output_audio_tokens, 0), coalesce(output_image_tokens, 0), coalesce(images, 0),
        coalesce(audio_ms, 0), coalesce(characters, 0), coalesce(searches, 0), provider_cost_nanos, service_tier,
        coalesce(input_mtok_nanos, 0), coalesce(output_mtok_nanos, 0), coalesce(markup_permille, 0),
        coalesce(attempts, '[]'), coalesce(tags, '{}'), own_key_id, fee_permille, settled_at
    from batch
    on conflict do nothing
    returning request_id, created_at, account_id, key_id, model, input_tokens, output_tokens, cost_nanos, settled_at
), charged as (
    select f.request_id, f.created_at, f.account_id, f.cost_nanos,
        row_number() over chain as n, sum(f.cost_nanos) over chain as spent_nanos
    from fresh f
    join batch b on b.request_id = f.request_id
    where f.cost_nanos > 0
    window chain as (partition by f.account_id order by b.n)
), entered as (
    insert into entries (account_id, seq, type, amount_nanos, balance_after_nanos, request_id, created_at)
    select c.account_id, b.last_seq + c.n, 'api_usage', -c.cost_nanos, b.balance_nanos - c.spent_nanos, c.request_id,
        c.created_at
    from charged c
    join balances b on b.account_id = c.account_id
), days as (
    insert into usage_days (account_id, day, key_id, model, requests, input_tokens, output_tokens, cost_nanos)
    select account_id, (settled_at at time zone 'UTC')::date, key_id, model, count(*), sum(input_tokens),
        sum(output_tokens), sum(cost_nanos)
    from fresh
    group by 1, 2, 3, 4
    on conflict (account_id, day, key_id, model) do update set
        requests = usage_days.requests + excluded.requests,
        input_tokens = usage_days.input_tokens + excluded.input_tokens,
        output_tokens = usage_days.output_tokens + excluded.output_tokens,
        cost_nanos = usage_days.cost_nanos + excluded.cost_nanos
), totals as (
    insert into usage_totals (account_id, key_id, requests, cost_nanos, last_used_at)
    select account_id, key_id, count(*), sum(cost_nanos), max(settled_at) from fresh group by 1, 2
    on conflict (account_id, key_id) do update set
        requests = usage_totals.requests + excluded.requests,
        cost_nanos = usage_totals.cost_nanos + excluded.cost_nanos,
        last_used_at = greatest(usage_totals.last_used_at, excluded.last_used_at)
)
select distinct b.account_id
from batch b
where b.cost_nanos > 0 and not exists (select from fresh f where f.request_id = b.request_id);

-- reject: what is no record of ours, for people to look at; by `Settler`
insert into settle_rejects (partition, stream_id, record, reason) values ($1, $2, $3, $4);

-- known_requests: which of these ended requests are in the books, for `Unsettled`
select request_id from usage_records
where request_id = any($1::uuid[]) and created_at between $2 and $3;
