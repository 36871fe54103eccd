-- Statements that carry entries of the credit side to Redis.

-- read_outbox: what is on its way, each account's in order; by `Courier`
select account_id, seq, previous_seq, amount_nanos from credit_outbox order by account_id, seq limit $1;

-- clear_outbox: what Redis has; by `Courier`
delete from credit_outbox o
using unnest($1::bigint[], $2::bigint[]) as d (account_id, seq)
where o.account_id = d.account_id and o.seq = d.seq;
