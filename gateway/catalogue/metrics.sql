-- What Hugging Face says about open models.

-- know: models to be asked about
insert into model_metrics (hugging_face_id) select unnest($1::text[]) on conflict do nothing;

-- claim: whose turn it is; nobody else's for $1 seconds
update model_metrics set next_at = now() + make_interval(secs => $1)
where hugging_face_id in (
    select hugging_face_id from model_metrics where next_at <= now()
    order by next_at limit 10
    for update skip locked
)
returning hugging_face_id;

-- put: what is known now
update model_metrics set metrics = $2, next_at = now() + make_interval(secs => $3) where hugging_face_id = $1;

-- doubt: all are asked about again, soon
update model_metrics set next_at = now() where next_at > now();

-- count: what is known, what Hugging Face does not know, and what it is asked next; of who was never asked the time is due
select count(metrics) as known, count(*) filter (where metrics is null and next_at > now()) as unknown,
       count(*) filter (where next_at <= now()) as due
from model_metrics;

-- read: of these models
select hugging_face_id, metrics from model_metrics
where hugging_face_id = any($1::text[]) and metrics is not null;
