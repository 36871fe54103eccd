-- Takes everything a request needs, or nothing: a place in every bucket and under every concurrency limit, and a hold
-- on the balance and the hard budgets, under a lease.
--
-- ARGV: request, packed limits, hold (nanos), tokens (estimate), lease (ms), [now (us)]
-- Answers. `rates` is limit, remaining, ms until full, of the tightest request bucket and of the tightest token
-- bucket; -1, -1, 0 where there is none.
--   {1, rates}                                                           admitted
--   {2, rates, scope, bucket, limit, wanted, retry ms}                   a bucket is full; -1: it can never hold this
--   {3, rates, scope, limit}                                             too many in flight
--   {4, rates, scope, window, limit, spent, in flight (1) or not (2), end of window ms, room}   a hard budget
--   {5, rates, in flight (1) or not (2), room}   not enough credit: holds in flight use it up, or it is not there
--   {8, rates, scope, limit, in flight (1) or not (2)}                   all requests of its life were made
--   {6, scope}                                                           balance or budget counters are not loaded
--   {7, verb, cost}                                                      the request has ended
-- `room` is the largest hold that the balance and all hard budgets have room for: the caller may do with less. So what
-- no smaller hold could mend is told before what one could.

local request = ARGV[1]
local amount, tokens, lease_ms = whole(ARGV[3]), whole(ARGV[4]), whole(ARGV[5])
if amount < 0 or tokens < 0 then error('LEDGER a hold can not be negative') end
local now = clock(ARGV[6])

local h = find(now)
if h then
  if h[1] == 'held' then return h[9] end
  return { CONFLICT, h[3], h[4][2] }
end

local L = cmsgpack.unpack(ARGV[2])
local scopes = KEYS[MODEL] and 3 or 2
local keys = { KEYS[ACCOUNT], KEYS[KEY], KEYS[MODEL] }
local values, buckets, starts = {}, {}, {}

-- 1. Every bucket; of several that are full, the one that takes longest.
local full, longest = nil, -2
local p = 2
for s = 1, scopes do
  local v, u = read(keys[s], L, p, now)
  values[s], buckets[s], starts[s] = v, u, p
  for i = p + 2, budgets_at(L, p) - 1, 3 do
    local b, capacity = L[i], L[i + 2]
    local wanted = b > 4 and tokens or 1
    local over = u[b + 1] + wanted - capacity
    if over > SLACK and wanted > 0 and longest ~= -1 then
      local wait_ms = -1
      if wanted <= capacity then wait_ms = ceil(over * WINDOW_US[b] / L[i + 1] / 1000) end
      if wait_ms == -1 or wait_ms > longest then
        longest = wait_ms
        full = { s, b, L[i + 1], wanted, wait_ms }
      end
    end
  end
  p = next_scope(L, p)
end

-- Takes a request and the tokens from every bucket (or nothing, if refused) and says how much is left.
local answer = { 1, -1, -1, 0, -1, -1, 0 }
local function take(requests, estimate)
  for s = 1, scopes do
    local u = buckets[s]
    for i = starts[s] + 2, budgets_at(L, starts[s]) - 1, 3 do
      local b = L[i]
      local slot = b > 4 and 5 or 2
      local used = u[b + 1] + (b > 4 and estimate or requests)
      u[b + 1] = used
      local left = floor(L[i + 2] - used + SLACK)
      if left < 0 then left = 0 end
      if answer[slot] == -1 or left < answer[slot + 1] then
        answer[slot], answer[slot + 1], answer[slot + 2] = L[i + 1], left, 0
        if used > 0 and L[i + 1] > 0 then answer[slot + 2] = ceil(used * WINDOW_US[b] / L[i + 1] / 1000) end
      end
    end
  end
end

local function refuse(code, ...)
  take(0, 0)
  answer[1] = code
  for i = 1, select('#', ...) do
    answer[7 + i] = select(i, ...)
  end
  return answer
end

if full then return refuse(2, unpack(full)) end

-- 2. Concurrency.
for s = 1, 2 do
  local limit = L[starts[s]]
  if limit >= 0 and tonumber(values[s][3] or 0) + 1 > limit then return refuse(3, s, limit) end
end

-- 3. Money, and the requests of a life. What is free needs neither a balance nor room in a budget.
local ids, over
local room = MAX
for s = 1, 2 do
  local v, from = values[s], budgets_at(L, starts[s])
  local last = from + 3 * L[from] - 2
  if last > from and (amount > 0 or L[last] == LIFETIME) then
    if not v[4] then return { 6, s } end
    ids = ids or window_ids(now)
    local spent, held = cmsgpack.unpack(v[4]), tonumber(v[2] or 0)
    roll(spent, ids)
    for i = from + 1, last, 3 do
      local w, limit = L[i], L[i + 1]
      local used = spent[3 * w - 1]
      if w == LIFETIME then
        if used + tonumber(v[3] or 0) + 1 > limit then return refuse(8, s, limit, used + 1 > limit and 2 or 1) end
      elseif amount > 0 and L[i + 2] == 1 then
        local left = limit - used - held
        if left < room then room = left end
        if left < amount and not over then
          over = { s, w, limit, used, used + amount > limit and 2 or 1, window_end_ms(w, spent[3 * w - 2]) }
        end
      end
    end
  end
end
if amount > 0 then
  local v = values[1]
  if not v[1] then return { 6, 1 } end
  local credit = tonumber(v[1]) + L[1]
  local left = credit - tonumber(v[2] or 0)
  if left < room then room = left end
  if over then
    over[7] = room
    return refuse(4, unpack(over))
  end
  if left < amount then return refuse(5, amount > credit and 2 or 1, room) end
end

-- Admitted: from here on only writes.
take(1, tokens)
for s = 1, scopes do
  local v = values[s]
  local idle = not (s == 1 and v[1]) and (not v[5] or floor(struct.unpack('<d', v[5]) / DAY_US) ~= floor(now / DAY_US))
  if s < 3 then
    local slot = L[starts[s]] == NO_SLOT and 0 or 1
    local held, conc = tonumber(v[2] or 0) + amount, tonumber(v[3] or 0) + slot
    write({ 'HSET', keys[s], 'held', held, 'conc', conc, nil, nil, nil, nil }, 6, L, starts[s], v, buckets[s])
  else
    write({ 'HSET', keys[s], nil, nil, nil, nil }, 2, L, starts[s], v, buckets[s])
  end
  -- Once a day is enough to keep alive what is in use. A hash with a balance stays.
  if idle then call('PEXPIRE', keys[s], IDLE_MS) end
end
call('SET', KEYS[HOLD], cmsgpack.pack({
  'held', amount, tokens, now, KEYS[ACCOUNT], KEYS[KEY], KEYS[MODEL] or '', ARGV[2], answer,
}))
call('ZADD', KEYS[LEASES], floor(now / 1000) + lease_ms, request)
return answer
