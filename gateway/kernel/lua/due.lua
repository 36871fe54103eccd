-- The first step of a sweep: which leases have run out, oldest first.
--
-- KEYS: leases. ARGV: at most so many, [now (us)]
local now = clock(ARGV[2])
return call('ZRANGE', KEYS[1], '-inf', floor(now / 1000), 'BYSCORE', 'LIMIT', 0, whole(ARGV[1]))
