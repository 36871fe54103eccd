-- Statements about usage records that could not be settled.

-- list_rejects: oldest first, after an id
select id, partition, stream_id, record, reason, created_at from settle_rejects where id > $1 order by id limit $2;

-- count_rejects: how many there are
select count(*) from settle_rejects;

-- lock_reject: until it was dealt with
select id, partition, stream_id, record, reason, created_at from settle_rejects where id = $1 for update;

-- delete_reject: it was dealt with
delete from settle_rejects where id = $1;
