-- The second step of a sweep: the holds behind those leases, which name the keys that ending them takes.
--
-- KEYS: holds
return redis.call('MGET', unpack(KEYS))
