-- Statements of commands on the machine.

-- list_accounts: in the order of their ids, after one
select a.id, a.name, a.status, a.plan,
       (select count(*) from keys k where k.account_id = a.id and k.revoked_at is null) as keys,
       (select count(*) from memberships m where m.account_id = a.id) as members
from accounts a
where a.id > $1
order by a.id limit $2;
