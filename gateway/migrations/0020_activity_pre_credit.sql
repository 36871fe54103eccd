-- What an account was given, bought or lost, among all that it used: for lists by type and for sums of all its entries.

create index entries_credit on entries (account_id, seq) where type <> 'api_usage';

-- Keys with limits of their own, which few have.
create index keys_limited on keys (account_id) where limits is not null and revoked_at is null;
