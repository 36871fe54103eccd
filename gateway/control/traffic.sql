-- Statements about how providers and models do.

-- read_traffic: since an hour; names that only wildcards match are among them
select provider, model, sum(requests)::bigint as requests, sum(failures)::bigint as failures,
       sum(latency_ms)::bigint as latency_ms, sum(begun)::bigint as begun,
       sum(first_token_ms)::bigint as first_token_ms
from traffic_hours
where hour >= $1
group by provider, model
order by requests desc, provider, model
limit 10000;
