-- Statements about what all accounts did on a day.

-- sum_day: what all accounts did on a day, and how many did anything
select count(distinct account_id) as accounts, coalesce(sum(requests), 0)::bigint as requests,
       coalesce(sum(failures), 0)::bigint as failures, coalesce(sum(input_tokens), 0)::bigint as input_tokens,
       coalesce(sum(output_tokens), 0)::bigint as output_tokens, coalesce(sum(cost_nanos), 0)::bigint as cost_nanos
from activity_days
where day = $1;

-- top_accounts: who used most on a day; the other sums are made of these alone
select d.account_id, a.name, s.requests, d.tokens, s.cost_nanos
from (
    select account_id, sum(input_tokens + output_tokens)::bigint as tokens
    from activity_days
    where day = $1
    group by account_id
    order by tokens desc, account_id
    limit 10
) d
join accounts a on a.id = d.account_id
cross join lateral (
    select sum(requests)::bigint as requests, sum(cost_nanos)::bigint as cost_nanos
    from activity_days
    where day = $1 and account_id = d.account_id
) s
order by d.tokens desc, d.account_id;

-- list_busiest: accounts with a plan that limits them, by what they asked for. Looked up one by one, in that
-- order, until there are enough: joined as a whole, all accounts there are would be read
select d.account_id as id, a.name, a.plan, d.requests, s.tokens
from (
    select account_id, sum(requests)::bigint as requests
    from activity_days
    where day = $1
    group by account_id
    order by requests desc, account_id
) d
cross join lateral (
    select name, plan from accounts where id = d.account_id and status = 'active' and plan <> $2 offset 0
) a
cross join lateral (
    select sum(input_tokens + output_tokens)::bigint as tokens
    from activity_days
    where day = $1 and account_id = d.account_id
) s
order by d.requests desc, d.account_id
limit $3;
