-- Statements that remove what is over: $1 is for how many seconds, $2 how many rows. Rows that somebody has locked are
-- left for the next time.

-- sweep_sessions: by when they would have ended
delete from sessions where id = any (array(
    select id from sessions where expires_at < now() - make_interval(secs => $1) limit $2 for update skip locked
));

-- sweep_tokens: what mails can't prove any more
delete from tokens where digest = any (array(
    select digest from tokens where expires_at < now() - make_interval(secs => $1) limit $2 for update skip locked
));

-- sweep_invitations: whatever became of them
delete from invitations where id = any (array(
    select id from invitations where expires_at < now() - make_interval(secs => $1) limit $2 for update skip locked
));

-- sweep_answers: of requests that nobody repeats any more
delete from idempotency_keys
where ctid = any (array(
    select ctid from idempotency_keys where created_at < now() - make_interval(secs => $1) limit $2
    for update skip locked
));
