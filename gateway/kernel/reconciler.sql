-- Statements that compare the books with each other and with Redis.

-- read_page: accounts of a partition, with its cursor and what is on its way to them; one view; by `Reconciler`
select
    b.account_id, b.balance_nanos, b.credit_seq,
    coalesce((select last_id from settle_cursors where partition = $1), '0-0') as cursor,
    coalesce(o.seqs, '{}') as sent_seqs,
    coalesce(o.amounts, '{}') as sent_amounts
from balances b
left join lateral (
    select array_agg(seq order by seq) as seqs, array_agg(amount_nanos order by seq) as amounts
    from credit_outbox
    where account_id = b.account_id
) o on true
where b.account_id % $2 = $1 and b.account_id > $3
order by b.account_id
limit $4;

-- sum_books: accounts whose balance is not the sum of their entries, or whose numbers have gaps; by `check_books`
select b.account_id, b.balance_nanos, coalesce(e.total_nanos, 0)::bigint as total_nanos,
       b.last_seq, coalesce(e.count, 0)::bigint as count
from balances b
full join (
    select account_id, sum(amount_nanos) as total_nanos, count(*) as count, max(seq) as seq from entries group by 1
) e on e.account_id = b.account_id
where b.balance_nanos is distinct from coalesce(e.total_nanos, 0)
    or b.last_seq is distinct from coalesce(e.count, 0)
    or b.last_seq is distinct from coalesce(e.seq, 0);
