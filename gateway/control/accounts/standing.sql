-- Statements about people and accounts that are shut out or let in again.

-- lock_admins: all active administrators, one after the other, so that two can't be the last one at once
select id from users where role = 'admin' and status = 'active' order by id for no key update;

-- lock_person: until the transaction ends
select status from users where id = $1 for no key update;

-- set_person_status: suspended, or active again
update users set status = $2, updated_at = now() where id = $1;

-- end_sessions: of somebody, all of them
update sessions set revoked_at = now() where user_id = $1 and revoked_at is null;

-- keys_of_person: the living keys that somebody made
select id from keys where user_id = $1 and revoked_at is null;

-- lock_account: until the transaction ends
select status from accounts where id = $1 for no key update;

-- set_account_status: suspended, or active again
update accounts set status = $2 where id = $1;

-- keys_of_account: the living ones
select id from keys where account_id = $1 and revoked_at is null;
