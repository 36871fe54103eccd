-- Statements about entries, balances and usage.

-- lock_balance: puts the entries of an account in one order, and says where they ended; by `post`
select balance_nanos, last_seq, credit_seq from balances where account_id = $1 for no key update;

-- find_posted: the entry that an idempotency key already stands for; by `post`
select e.account_id, e.seq, e.type, e.amount_nanos, e.balance_after_nanos, e.request_id, e.idempotency_key,
       e.payment_id, e.reason, e.created_at
from entry_keys k
join entries e on e.account_id = k.account_id and e.seq = k.seq and e.created_at = k.created_at
where k.idempotency_key = $1;

-- add_entry: an entry of the credit side, its key, and its way to Redis; by `post`
with entry as (
    insert into entries (account_id, seq, type, amount_nanos, balance_after_nanos, idempotency_key, payment_id, reason)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
    returning account_id, seq, type, amount_nanos, balance_after_nanos, request_id, idempotency_key, payment_id,
              reason, created_at
), key as (
    insert into entry_keys (idempotency_key, account_id, seq, created_at)
    select idempotency_key, account_id, seq, created_at from entry
), sent as (
    insert into credit_outbox (account_id, seq, previous_seq, amount_nanos)
    select account_id, seq, $9, amount_nanos from entry
)
select * from entry;

-- list_entries: the latest entries of an account before a number, newest first; by `list_entries`
select account_id, seq, type, amount_nanos, balance_after_nanos, request_id, idempotency_key, payment_id, reason,
       created_at
from entries
where account_id = $1 and seq < $2
order by seq desc
limit $3;

-- read_balance: what an account has, and its name; by `read_balance`
select b.account_id, a.name, b.balance_nanos, b.last_seq, b.credit_seq, b.overdraft_nanos
from balances b
join accounts a on a.id = b.account_id
where b.account_id = $1;

-- list_balances: what all accounts have, from one id on; by `list_balances`
select b.account_id, a.name, b.balance_nanos, b.last_seq, b.credit_seq, b.overdraft_nanos
from balances b
join accounts a on a.id = b.account_id
where b.account_id > $1
order by b.account_id
limit $2;

-- find_key: a key by public id, or by the name of a living one; by `find_account` and `find_key_id`
select id, account_id from keys where id = $1 or (name = $1 and revoked_at is null) order by id <> $1 limit 2;

-- find_usage: one request of a key; by `find_usage`
select request_id, created_at, account_id, key_id, model, provider, upstream_model, dialect, route, status, outcome,
       error_type, stream, latency_ms, first_token_ms, usage_source, input_tokens, output_tokens, input_cached_tokens,
       input_cache_write_tokens, output_reasoning_tokens, cost_nanos, provider_cost_nanos, service_tier,
       input_mtok_nanos, output_mtok_nanos, markup_permille, attempts, tags, own_key_id::text, fee_permille
from usage_records
where request_id = $1 and created_at = $2 and key_id = $3;

-- sum_usage: usage by account, key and model since a day; null is any account or key; by `sum_usage`
select account_id, key_id, model, sum(requests)::bigint as requests, sum(input_tokens)::bigint as input_tokens,
       sum(output_tokens)::bigint as output_tokens, sum(cost_nanos)::bigint as cost_nanos
from usage_days
where day >= $1 and ($2::bigint is null or account_id = $2) and ($3::text is null or key_id = $3)
group by account_id, key_id, model
order by cost_nanos desc, requests desc, account_id, key_id, model
limit $4;
