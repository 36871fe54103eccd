-- Statements about the roles of people.

-- find_role: somebody's role, locked until it is changed
select id, role, status from users where id = $1 and status <> 'deleted' for no key update;

-- read_role: somebody's role
select id, role, status, email, username from users where id = $1 and status <> 'deleted';

-- set_role: of somebody
update users set role = $2, updated_at = now() where id = $1;

-- list_by_role: in the order of their ids
select id, email, username, name, role, status, created_at
from users where role = $1 and status <> 'deleted' and id > $2
order by id limit $3 offset $4;

-- count_by_role: how many there are
select count(*) from users where role = $1 and status <> 'deleted';

-- list_role_changes: from the audit log, newest first; null is anybody's
select id, at, actor_kind, actor_user_id, actor_key_id, object_id, before, after, reason, host(ip) as ip, request_id
from audit_log
where action = 'roles.update' and ($1::text is null or (object_kind = 'user' and object_id = $1))
    and id < coalesce($2::bigint, 9223372036854775807)
order by id desc limit $3 offset $4;

-- find_by_address: whom a command on the machine means
select id, role, status from users where lower(email) = lower($1) for no key update;

-- make_admin: by `gateway users create --admin`, of somebody who is here already
update users set role = $2, password_hash = coalesce($3, password_hash), verified_at = coalesce(verified_at, now()),
                 updated_at = now()
where id = $1;

-- list_people: by `gateway users list`, in the order of their ids
select u.id, u.email, u.username, u.role, u.status, u.verified_at is not null as verified, u.created_at, u.last_login_at
from users u
where u.id > $1 and u.status <> 'deleted'
order by u.id limit $2;
