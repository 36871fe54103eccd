-- Statements of the audit log.

-- record: a change, in the transaction that makes it
insert into audit_log (actor_kind, actor_user_id, actor_key_id, account_id, action, object_kind, object_id, before, after,
                       reason, ip, user_agent, request_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::inet, $12, $13);
