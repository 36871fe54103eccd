-- Statements about objects that providers keep; see `objects.py`.

-- remember: an object with its owner; nothing for an id that somebody else has. A deleted one may come again
insert into objects as o (
    id, kind, account_id, key_id, provider, fingerprint, created_at, expires_at, document,
    charge_id, charge_state, model, upstream_model, hold_nanos, terms, poll_at
)
select
    n.id, n.kind, n.account_id, n.key_id, n.provider, n.fingerprint, to_timestamp(n.created_s),
    to_timestamp(n.expires_s), n.document, n.charge_id, case when n.charge_id is null then null else 'pending' end,
    coalesce(n.model, ''), coalesce(n.upstream_model, ''), coalesce(n.hold_nanos, 0), n.terms,
    case when n.charge_id is null then null else to_timestamp(n.poll_s) end
from jsonb_to_recordset($1::text::jsonb) as n (
    id text, kind text, account_id bigint, key_id text, provider text, fingerprint text, created_s float8,
    expires_s float8, document text, charge_id uuid, model text, upstream_model text, hold_nanos bigint, terms jsonb,
    poll_s float8
)
on conflict (id) do update set
    kind = excluded.kind,
    account_id = excluded.account_id,
    key_id = case when o.account_id = excluded.account_id then o.key_id else excluded.key_id end,
    provider = excluded.provider,
    fingerprint = excluded.fingerprint,
    expires_at = coalesce(excluded.expires_at, o.expires_at),
    deleted_at = null,
    document = coalesce(excluded.document, o.document),
    charge_id = coalesce(o.charge_id, excluded.charge_id),
    charge_state = coalesce(o.charge_state, excluded.charge_state),
    model = case when o.charge_id is null then excluded.model else o.model end,
    upstream_model = case when o.charge_id is null then excluded.upstream_model else o.upstream_model end,
    hold_nanos = case when o.charge_id is null then excluded.hold_nanos else o.hold_nanos end,
    terms = case when o.charge_id is null then excluded.terms else o.terms end,
    poll_at = coalesce(o.poll_at, excluded.poll_at)
where (o.account_id = excluded.account_id and o.provider = excluded.provider)
    or (o.deleted_at is not null and o.charge_state is distinct from 'pending')
returning o.id;

-- find: whose it is
select id, kind, account_id, key_id, provider, fingerprint, extract(epoch from created_at)::float8 as created_s,
    extract(epoch from expires_at)::float8 as expires_s, charge_state = 'pending' as pending
from objects
where id = $1 and deleted_at is null and (expires_at is null or expires_at > now());

-- describe: what the provider says of it now
update objects set document = $2 where id = $1 and deleted_at is null and document is not null;

-- forget: it was deleted; what is still to be charged stays
update objects set deleted_at = now(), document = null where id = $1 and deleted_at is null;

-- newest: of an account and a kind, newest first, after a given one
select o.id, o.document
from objects o
where o.account_id = $1 and o.kind = $2 and o.document is not null and o.deleted_at is null
    and (o.expires_at is null or o.expires_at > now())
    and ($3::text is null or o.document::jsonb ->> 'purpose' = $3)
    and ($4::text is null
        or (o.created_at, o.id) < (select c.created_at, c.id from objects c where c.id = $4 and c.account_id = $1))
order by o.created_at desc, o.id desc
limit $5;

-- oldest: the same, oldest first
select o.id, o.document
from objects o
where o.account_id = $1 and o.kind = $2 and o.document is not null and o.deleted_at is null
    and (o.expires_at is null or o.expires_at > now())
    and ($3::text is null or o.document::jsonb ->> 'purpose' = $3)
    and ($4::text is null
        or (o.created_at, o.id) > (select c.created_at, c.id from objects c where c.id = $4 and c.account_id = $1))
order by o.created_at, o.id
limit $5;

-- lock_charge: what is still to be charged for an object, until this transaction ends
select id, kind, account_id, key_id, provider, fingerprint, charge_id::text, model, upstream_model, hold_nanos,
    extract(epoch from created_at)::float8 as created_s, polls, delivered_input_tokens, delivered_output_tokens,
    terms::text,
    (select p.id::text from provider_keys p
     where p.account_id = objects.account_id and p.provider = objects.provider
         and p.fingerprint = objects.fingerprint) as own_key_id
from objects where id = $1 and charge_state = 'pending' for no key update;

-- delivered: what callers got of objects that are still to be charged
update objects o
set delivered_input_tokens = greatest(o.delivered_input_tokens, d.input_tokens),
    delivered_output_tokens = greatest(o.delivered_output_tokens, d.output_tokens)
from unnest($1::text[], $2::bigint[], $3::bigint[]) as d (id, input_tokens, output_tokens)
where o.id = d.id and o.charge_state = 'pending';

-- uncharged_batch: of an account, the one whose answers are in this file, while it is still to be charged
select id from objects
where account_id = $1 and kind = 'batch' and charge_state = 'pending' and deleted_at is null
    and document is not null and document::jsonb ->> 'output_file_id' = $2
limit 1;

-- end_charge: it is charged, or will never be
update objects set charge_state = $2, poll_at = null where id = $1;

-- hasten_charge: ask for it soon, in so many seconds at the most
update objects set poll_at = least(poll_at, now() + make_interval(secs => $2::float8))
where id = $1 and charge_state = 'pending';

-- claim_charges: what is to be asked for now; asked again later each time, up to $3 seconds
update objects o
set polls = o.polls + 1,
    poll_at = now() + make_interval(secs => least($3::float8, $2::float8 * power(1.5, least(o.polls, 40))))
from (
    select id from objects where charge_state = 'pending' and poll_at <= now()
    order by poll_at limit $1 for no key update skip locked
) due
where o.id = due.id
returning o.id, o.kind, o.account_id, o.key_id, o.provider, o.fingerprint, o.charge_id::text, o.model,
    o.upstream_model, o.hold_nanos, extract(epoch from o.created_at)::float8 as created_s, o.polls,
    o.delivered_input_tokens, o.delivered_output_tokens;

-- purge: what has expired, and what was deleted a day ago
delete from objects where id in (
    select id from objects
    where charge_state is distinct from 'pending'
        and (expires_at < now() or deleted_at < now() - interval '1 day')
    limit $1
);
