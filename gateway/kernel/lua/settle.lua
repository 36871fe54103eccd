-- Ends a hold with its real cost, and appends the usage record. After the call the gateway only accounts, so this
-- never refuses: without a hold (Redis lost it, or a sweep ended it for nothing) the cost is charged all the same, and
-- the entry says so (field u).
--
-- ARGV: request, cost (nanos), tokens (real), record, [now (us)]
-- Answers:
--   {1, cost, [scope, window, limit, spent] of each soft budget that this reached}   settled
--   {2, cost}          settled without a hold
--   {7, verb, cost}    the request ended by another verb

local request, record = ARGV[1], ARGV[4]
local cost, tokens = whole(ARGV[2]), whole(ARGV[3])
if cost < 0 or tokens < 0 then error('LEDGER a cost can not be negative') end
local now = clock(ARGV[5])

local h = find(now)
if h and h[1] == 'ended' then
  -- {2, 0} of a sweep: it charged nothing, so what was delivered is still to be charged.
  if h[3] ~= 'expire' or h[4][1] ~= 2 then return ended(h, 'settle') end
  h = nil
end
if h and not matches(h) then return { CONFLICT, 'admit', 0 } end

local answer
if h then
  answer = release(h, now, cost, tokens, true, { 1, cost })
  append(now, ARGV[5], 'r', record)
else
  answer = { 2, cost }
  local ids = window_ids(now)
  for s = 1, 2 do
    local v = call('HMGET', KEYS[s], 'bal', 'spent')
    if s == 1 and v[1] then call('HSET', KEYS[s], 'bal', whole(tonumber(v[1]) - cost)) end
    if v[2] then
      local spent = cmsgpack.unpack(v[2])
      roll(spent, ids)
      spend(spent, cost)
      count_request(spent)
      call('HSET', KEYS[s], 'spent', cmsgpack.pack(spent))
    end
  end
  append(now, ARGV[5], 'r', record, 'u', '1')
end
forget(request)
bury(now, 'settle', answer)
return answer
