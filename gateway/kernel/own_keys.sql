-- Statements about accounts' own provider keys; the control plane's are in `control/accounts/provider_keys.sql`.

-- find_own_keys: of an account at a provider, those that are switched on; by `find_own_key`
select id::text, provider, mode, fingerprint, master_id, nonce, sealed
from provider_keys
where account_id = $1 and provider = $2 and fingerprint = $3 and enabled;

-- has_own_key: whether there is one, on or off; by `find_own_key`
select exists (select from provider_keys where account_id = $1 and provider = $2 and fingerprint = $3);

-- count_by_master: how many are encrypted under which master key; by `count_by_master`
select master_id, count(*) as keys from provider_keys group by master_id order by master_id;

-- lock_old: the next ones that are not encrypted under the active master key; those that somebody changes right now are
-- left to a later turn; by `reseal_batch`
select id::text, account_id, provider, master_id, nonce, sealed
from provider_keys
where master_id <> $1 and id > $2::uuid
order by id
limit $3
for no key update skip locked;

-- reseal: the same key under another master key; nothing else of it changes; by `reseal_batch`
update provider_keys set master_id = $2, nonce = $3, sealed = $4 where id = $1::uuid;
