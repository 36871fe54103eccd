-- The last step of a sweep: ends one hold whose lease has run out, because its worker died. What the last renewal said
-- was delivered is charged, and its record kept; where it said nothing, the hold is voided. A worker that was only slow
-- and settles later is told of the conflict, and what was charged.
--
-- ARGV: request, [now (us)]
-- Answers:
--   {1, cost, notices as in settle}   expired, and charged
--   {2, 0}                            expired, nothing was delivered
--   {3, 0}                            a lease without a hold, removed
--   {4, 0}                            not due (any more)

local request = ARGV[1]
local now = clock(ARGV[2])

local ends_ms = call('ZSCORE', KEYS[LEASES], request)
if not ends_ms or tonumber(ends_ms) > floor(now / 1000) then return { 4, 0 } end
local h = find(now)
if not h or h[1] ~= 'held' or not matches(h) then
  forget(request)
  return { 3, 0 }
end

local answer
local news = call('HGET', KEYS[PROGRESS], request)
if news then
  news = cmsgpack.unpack(news)
  answer = release(h, now, news[1], news[2], true, { 1, news[1] })
  append(now, ARGV[2], 'r', news[3])
else
  answer = release(h, now, nil, 0, false, { 2, 0 })
end
forget(request)
bury(now, 'expire', answer, news and ORPHAN_US)
return answer
