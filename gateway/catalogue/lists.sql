-- What providers say about their models: see gateway/surveyor.py for when they are asked.

-- know: a row for each provider that can be asked
insert into model_lists (provider) select unnest($1::text[]) on conflict do nothing;

-- claim: whose turn it is; nobody else's for $2 seconds
update model_lists set next_at = now() + make_interval(secs => $2)
where provider in (
    select provider from model_lists
    where provider = any($1::text[]) and next_at <= now()
    order by next_at limit 4
    for update skip locked
)
returning provider, digest, failures;

-- put: it said something else than before
update model_lists
set digest = $2, models = $3, facts = $4, model_count = $5, listed_at = now(),
    next_at = now() + make_interval(secs => $6), failures = 0, error = ''
where provider = $1;

-- keep: it said the same
update model_lists
set listed_at = now(), next_at = now() + make_interval(secs => $2), failures = 0, error = ''
where provider = $1;

-- postpone: it could not be asked, or said nothing that can be read
update model_lists
set failures = failures + 1, error = $2, next_at = now() + make_interval(secs => $3)
where provider = $1;

-- doubt: all are asked again, soon
update model_lists set next_at = now() where next_at > now();

-- read_facts: in short, for the data plane
select provider, facts from model_lists where facts is not null order by provider;

-- read_digests: what there is, to find out what changed
select provider, digest from model_lists where models is not null order by provider;

-- read_states: for people, what became of asking
select provider, model_count, extract(epoch from listed_at)::float8 as listed_s, failures, error
from model_lists order by provider;

-- read_list: all that one said
select models from model_lists where provider = $1;
