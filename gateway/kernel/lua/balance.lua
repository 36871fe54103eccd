-- Looks at an account without touching it. KEYS: account
local v = redis.call('HMGET', KEYS[1], 'bal', 'held', 'cseq', 'conc')
if not v[1] then return {} end
return { tonumber(v[1]), tonumber(v[2] or 0), tonumber(v[3] or 0), tonumber(v[4] or 0) }
