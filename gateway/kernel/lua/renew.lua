-- Extends leases, and writes down what was delivered so far: the record that is to be kept if the worker dies.
--
-- KEYS: leases, progress
-- ARGV: lease (ms), now (us) or '', then for each hold: request, cost (nanos), tokens, record or '' for no news
-- Answers with the requests that have no lease (any more).

local lease_ms = whole(ARGV[1])
local now = clock(ARGV[2])
local unknown = {}
for i = 3, #ARGV, 4 do
  whole(ARGV[i + 1])
  whole(ARGV[i + 2])
end
for i = 3, #ARGV, 4 do
  local request = ARGV[i]
  if call('ZSCORE', KEYS[1], request) then
    call('ZADD', KEYS[1], floor(now / 1000) + lease_ms, request)
    if ARGV[i + 3] ~= '' then
      local news = { tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3] }
      call('HSET', KEYS[2], request, cmsgpack.pack(news))
    end
  else
    unknown[#unknown + 1] = request
  end
end
return unknown
