-- Statements about trials.

-- sum_trials: how many there are of each kind, and what was used on their days; $1 is how long one lasts, $2 now. Of
-- trials and purchases there is an index, so those alone are read.
select t.state, count(*) as trials, coalesce(sum(u.requests), 0)::bigint as requests,
       coalesce(sum(u.tokens), 0)::bigint as tokens, coalesce(sum(u.cost_nanos), 0)::bigint as cost_nanos
from (
    select e.account_id, e.created_at,
           case when exists (
                    select from entries p where p.account_id = e.account_id and p.type = 'purchase'
                ) then 'converted'
                when e.created_at + $1::interval > $2::timestamptz then 'active'
                else 'expired' end as state
    from (
        select distinct on (account_id) account_id, created_at
        from entries
        where type = 'trial'
        order by account_id, seq
    ) e
) t
left join lateral (
    select sum(requests) as requests, sum(input_tokens + output_tokens) as tokens, sum(cost_nanos) as cost_nanos
    from activity_days d
    where d.account_id = t.account_id
        and d.day between (t.created_at at time zone 'UTC')::date and ((t.created_at + $1::interval) at time zone 'UTC')::date
) u on true
group by t.state;
