-- Statements about requests that may be sent again.

-- claim: whether this is the first request with the key
insert into idempotency_keys (scope, key, request_hash) values ($1, $2, $3)
on conflict do nothing
returning true;

-- find: what became of the first one
select request_hash, status, answer from idempotency_keys where scope = $1 and key = $2;

-- keep: the first answer
update idempotency_keys set status = $3, answer = $4 where scope = $1 and key = $2 and status is null;

-- give_up: the claim of a request that failed here
delete from idempotency_keys where scope = $1 and key = $2 and status is null;
