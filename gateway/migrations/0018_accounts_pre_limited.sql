-- How many keys have limits of their own: counted by this, not by looking at every key.
create index keys_limited on keys (account_id) where limits is not null and revoked_at is null;
