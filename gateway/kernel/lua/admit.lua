-- Takes everything a request needs, or nothing: a place in every bucket and under every concurrency limit, and a hold
-- on the balance and the hard budgets, under a lease.
--
-- ARGV: request, packed limits, hold (nanos), tokens (estimate), lease (ms), [now (us)]
-- Answers. `rates` is limit, remaining, ms until full, of the tightest request bucket and of the tightest token
-- bucket; -1, -1, 0 where there is none.
--   {1, rates}                                                           admitted
--   {2, rates, scope, field, limit, wanted, retry ms}                    a bucket is full; -1: it can never hold this
--   {3, rates, scope, limit}                                             too many in flight
--   {4, rates, scope, window, limit, spent, in flight (1) or not (2), end of window ms}   a hard budget
--   {5, rates, in flight (1) or not (2)}   not enough credit: holds in flight use it up, or it is not there
--   {6, scope}                                                           balance or budget counters are not loaded
--   {7, verb, cost}                                                      the request has ended

local request = ARGV[1]
local amount, tokens, lease_ms = whole(ARGV[3]), whole(ARGV[4]), whole(ARGV[5])
if amount < 0 or tokens < 0 then error('LEDGER a hold can not be negative') end
local now = clock(ARGV[6])

local h = find(now)
if h then
  if h[1] == 'held' then return h[9] end
  return { CONFLICT, h[3], h[4][2] }
end

local limits = cmsgpack.unpack(ARGV[2])
local scopes = KEYS[MODEL] and 3 or 2
local keys = { KEYS[ACCOUNT], KEYS[KEY], KEYS[MODEL] }
local values = {}
for s = 1, scopes do
  values[s] = read(keys[s], limits[s + 1], now)
end

-- 1. Every bucket; of several that are full, the one that takes longest.
local full, longest = nil, -2
for s = 1, scopes do
  local v, scope = values[s], limits[s + 1]
  local numbers, tokens_from, at = scope[4], 3 * scope[3], 6
  for i = 1, #numbers, 3 do
    local wanted = i <= tokens_from and 1 or tokens
    if wanted > 0 and v[at] + wanted > numbers[i + 2] + SLACK and longest ~= -1 then
      local wait_ms = -1
      if wanted <= numbers[i + 2] then
        wait_ms = ceil((v[at] + wanted - numbers[i + 2]) * numbers[i + 1] / numbers[i] / 1000)
      end
      if wait_ms == -1 or wait_ms > longest then
        longest = wait_ms
        full = { s, scope[2][at], numbers[i], wanted, wait_ms }
      end
    end
    at = at + (i <= tokens_from and 1 or 2)
  end
end

local answer = { 1, -1, -1, 0, -1, -1, 0 }
local function rate(taken)
  for s = 1, scopes do
    local v, scope = values[s], limits[s + 1]
    local numbers, tokens_from, at = scope[4], 3 * scope[3], 6
    for i = 1, #numbers, 3 do
      local is_request = i <= tokens_from
      if taken then v[at] = v[at] + (is_request and 1 or tokens) end
      local left = math.max(0, floor(numbers[i + 2] - v[at] + SLACK))
      local slot = is_request and 2 or 5
      if answer[slot] == -1 or left < answer[slot + 1] then
        answer[slot], answer[slot + 1] = numbers[i], left
        answer[slot + 2] = v[at] > 0 and ceil(v[at] * numbers[i + 1] / math.max(1, numbers[i]) / 1000) or 0
      end
      at = at + (is_request and 1 or 2)
    end
  end
end

local function refuse(code, ...)
  rate(false)
  answer[1] = code
  for i = 1, select('#', ...) do
    answer[7 + i] = select(i, ...)
  end
  return answer
end

if full then return refuse(2, unpack(full)) end

-- 2. Concurrency.
for s = 1, 2 do
  local limit = limits[s + 1][1]
  if limit >= 0 and tonumber(values[s][3] or 0) + 1 > limit then return refuse(3, s, limit) end
end

-- 3. Money. What is free needs neither a balance nor room in a budget.
if amount > 0 then
  local ids
  for s = 1, 2 do
    local v, budgets = values[s], limits[s + 1][5]
    if #budgets > 0 then
      if not v[4] then return { 6, s } end
      ids = ids or window_ids(now)
      local spent, held = cmsgpack.unpack(v[4]), tonumber(v[2] or 0)
      roll(spent, ids)
      for i = 1, #budgets, 3 do
        local w, limit = budgets[i], budgets[i + 1]
        local used = spent[3 * w - 1]
        if budgets[i + 2] == 1 and used + held + amount > limit then
          return refuse(4, s, w, limit, used, used + amount > limit and 2 or 1, window_end_ms(w, spent[3 * w - 2]))
        end
      end
    end
  end
  local v = values[1]
  if not v[1] then return { 6, 1 } end
  local room = tonumber(v[1]) + limits[1]
  if tonumber(v[2] or 0) + amount > room then return refuse(5, amount > room and 2 or 1) end
end

-- Admitted: from here on only writes.
rate(true)
for s = 1, scopes do
  local v, more = values[s], {}
  local idle = not (s == 1 and v[1]) and (not v[5] or floor(tonumber(v[5]) / DAY_US) ~= floor(now / DAY_US))
  if s < 3 then more = { 'held', tonumber(v[2] or 0) + amount, 'conc', tonumber(v[3] or 0) + 1 } end
  write(keys[s], limits[s + 1], v, now, more)
  -- Once a day is enough to keep alive what is in use. A hash with a balance stays.
  if idle then call('PEXPIRE', keys[s], IDLE_MS) end
end
call('SET', KEYS[HOLD], cmsgpack.pack({
  'held', amount, tokens, now, KEYS[ACCOUNT], KEYS[KEY], KEYS[MODEL] or '', ARGV[2], answer,
}))
call('ZADD', KEYS[LEASES], floor(now / 1000) + lease_ms, request)
return answer
