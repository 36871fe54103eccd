-- Statements about the provider keys that an account brings itself. Each asks for a key and its account together.

-- lock_account: so that of two who add at once neither passes the bound; by `create_provider_key`
select id from accounts where id = $1 for no key update;

-- count_provider_keys: of an account; by `create_provider_key`
select count(*) from provider_keys where account_id = $1;

-- create_provider_key: a new one; refused by the unique constraint where the account has the same already
insert into provider_keys (
    id, account_id, provider, name, mode, enabled, last_four, fingerprint, master_id, nonce, sealed
) values ($1::text::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- list_provider_keys: of an account, in the order in which they were added
select id, provider, name, mode, enabled, last_four, master_id, created_at, updated_at
from provider_keys
where account_id = $1
order by created_at, id;

-- read_provider_key: one of them
select id, provider, name, mode, enabled, last_four, master_id, created_at, updated_at
from provider_keys
where id = $1 and account_id = $2;

-- lock_provider_key: the same, until the transaction is over
select id, provider, name, mode, enabled, last_four, master_id, created_at, updated_at
from provider_keys
where id = $1 and account_id = $2
for no key update;

-- update_provider_key: what may change of one
update provider_keys set name = $3, mode = $4, enabled = $5, updated_at = now() where id = $1 and account_id = $2;

-- delete_provider_key: for good; nothing of it is left
delete from provider_keys where id = $1 and account_id = $2;

-- gateway_keys: the living gateway keys of an account, whose holders are told of a change
select id from keys where account_id = $1 and revoked_at is null;
