-- Ends a hold at no cost, because nothing was delivered: the hold comes off, the slot and the estimated tokens are
-- given back (the request itself is not). A record may still be appended, for the log.
--
-- ARGV: request, record or '', [now (us)]
-- Answers: {1, 0} voided; {2, 0} there is no such hold; {7, verb, cost} the request ended by another verb

local request, record = ARGV[1], ARGV[2]
local now = clock(ARGV[3])

local h = find(now)
if not h then return { 2, 0 } end
if h[1] == 'ended' then return ended(h, 'void') end
if not matches(h) then return { CONFLICT, 'admit', 0 } end

local answer = release(h, now, nil, 0, record ~= '', { 1, 0 })
if record ~= '' then append(now, ARGV[3], 'r', record) end
forget(request)
bury(now, 'void', answer)
return answer
