-- What every script of the ledger shares; put in front of each of them when they are loaded.
--
-- One partition lives in one hash slot: every key carries the tag {p<N>} and every key is passed in KEYS.
--   {pN}:a:<account>          hash   bal, held, cseq (last credit applied), conc (holds in flight), spent, ts, buckets
--   {pN}:k:<key id>           hash   held, conc, spent, ts, buckets
--   {pN}:m:<account>:<model>  hash   ts, buckets; only where such limits exist
--   {pN}:h:<request>          string the hold, or for TOMB_US after its end the first answer to whatever ended it
--   {pN}:leases               zset   request -> end of its lease (ms)
--   {pN}:progress             hash   request -> what the last renewal said was delivered
--   {pN}:usage                stream one entry (field r) for each ended request: its usage record
--
--   absent --admit--> held --settle--> ended; held --void--> ended; held --expire--> ended
-- The same verb again returns the first answer; any other edge is a conflict and changes nothing.
--
-- A script that fails half-way is not undone, so every check stands before the first write.
-- Time is an argument in tests only; else it is Redis' own, in microseconds.
-- Limits: see pack_limits in limits.py. Scope numbers in answers: 1 account, 2 key, 3 model in account.

local MAX = 9007199254740991 -- 2^53 - 1: up to here a Lua number is exact
local DAY_US = 86400000000
local TOMB_US = 120000000
local IDLE_MS = 40 * 86400000 -- a key's or model's hash goes when it was not used for so long
local SLACK = 0.001 -- of a request or token: forgives the rounding of fractions, so that exactly the limit passes
local ACCOUNT, KEY, HOLD, LEASES, PROGRESS, USAGE, MODEL = 1, 2, 3, 4, 5, 6, 7 -- KEYS of every verb on a hold
local CONFLICT = 7
local floor, ceil = math.floor, math.ceil
local call = redis.call

local function whole(text)
  local n = tonumber(text)
  if not n or n ~= floor(n) or n > MAX or n < -MAX then
    error('LEDGER not a whole number within 2^53: ' .. tostring(text))
  end
  return n
end

local function clock(given)
  if given and given ~= '' then return tonumber(given) end
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Appends a record to the usage stream. Under injected time the entry is dated by it.
local function append(now, given, ...)
  local id = '*'
  if given and given ~= '' then id = string.format('%.0f-*', floor(now / 1000)) end
  call('XADD', KEYS[USAGE], id, ...)
end

-- Numbers of the day, week (from Monday), month and eternity that `now` is in. Months are counted from March of
-- year 0, so that the leap day is the last day of its year (proleptic Gregorian calendar, UTC).
local function window_ids(now)
  local day = floor(now / DAY_US)
  local shifted = day + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  return { day, floor((day + 3) / 7), (era * 400 + year) * 12 + floor((5 * of_year + 2) / 153), 0 }
end

local function window_end_ms(window, id)
  local day = id + 1
  if window == 2 then
    day = (id + 1) * 7 - 3
  elseif window == 3 then
    local year, month = floor((id + 1) / 12), (id + 1) % 12
    day = 365 * year + floor(year / 4) - floor(year / 100) + floor(year / 400) + floor((153 * month + 2) / 5) - 719468
  elseif window == 4 then
    return -1
  end
  return day * 86400000
end

-- Budget counters: {id, spent, noticed} for each of the four windows. A window that is over starts again at nothing.
local function roll(spent, ids)
  for w = 1, 4 do
    local at = 3 * w - 2
    if ids[w] > spent[at] then
      spent[at], spent[at + 1], spent[at + 2] = ids[w], 0, 0
    end
  end
end

local function spend(spent, cost)
  for at = 2, 11, 3 do
    spent[at] = math.min(spent[at] + cost, MAX)
  end
end

-- One scope's hash with its buckets drained to `now`: the values in the order of the packed fields, that is
-- bal, held, conc, spent, ts (as they are), a level for each request bucket, a level and the time it last stood
-- empty for each token bucket.
local function read(key, scope, now)
  local v = call('HMGET', key, unpack(scope[2]))
  local elapsed = now - (tonumber(v[5] or now))
  if elapsed < 0 then elapsed = 0 end -- the clock of a promoted replica may be behind
  local numbers = scope[4]
  local tokens_from = 3 * scope[3]
  local at = 6
  for i = 1, #numbers, 3 do
    local used = tonumber(v[at] or 0)
    if used > 0 then
      used = used - elapsed * numbers[i] / numbers[i + 1]
      if used < 0 then used = 0 end
    end
    v[at] = used
    if i <= tokens_from then
      at = at + 1
    else
      v[at + 1] = used == 0 and now or tonumber(v[at + 1] or 0)
      at = at + 2
    end
  end
  return v
end

-- Writes a scope back: its buckets, the time, and whatever pairs of field and value `more` holds.
local function write(key, scope, v, now, more)
  local fields = scope[2]
  local n = #more
  more[n + 1], more[n + 2] = 'ts', now
  n = n + 2
  for i = 6, #fields do
    more[n + 1], more[n + 2] = fields[i], v[i]
    n = n + 2
  end
  call('HSET', key, unpack(more))
end

-- The state of a request: its hold, or its tombstone, or nil. A tombstone is dead by its own clock, not only by TTL.
local function find(now)
  local text = call('GET', KEYS[HOLD])
  if not text then return nil end
  local h = cmsgpack.unpack(text)
  if h[1] == 'ended' and h[2] <= now then return nil end
  return h
end

-- {'ended', until, verb, first answer}
local function bury(now, verb, answer)
  call('SET', KEYS[HOLD], cmsgpack.pack({ 'ended', now + TOMB_US, verb, answer }), 'PX', TOMB_US / 1000)
end

-- Answer of a verb that meets a tombstone.
local function ended(h, verb)
  if h[3] == verb then return h[4] end
  return { CONFLICT, h[3], h[4][2] }
end

-- Whether this call names the scopes that the hold was taken on.
local function matches(h)
  return h[5] == KEYS[ACCOUNT] and h[6] == KEYS[KEY] and h[7] == (KEYS[MODEL] or '')
end

-- Ends a hold: takes it off, gives its slot back, corrects the token buckets from the estimate to `tokens`, and
-- charges `cost` (nil for a void) to the balance and the budgets. Appends soft budgets that were reached to `answer`
-- as scope, window, limit, spent.
--
-- What was estimated too high is given back, unless the bucket stood empty since: then none of it is in there any
-- more, and giving it back would take away from what others used.
local function release(h, now, cost, tokens, answer)
  local limits = cmsgpack.unpack(h[8])
  local amount, delta, admitted = h[2], tokens - h[3], h[4]
  local ids
  for s = 1, 3 do
    local key = s == 3 and KEYS[MODEL] or s < 3 and KEYS[s] or nil
    local scope = limits[s + 1]
    local v = key and read(key, scope, now)
    if v and v[5] then -- else the hash is gone, and with it all that could be corrected
      local at = 6 + scope[3]
      while at <= #scope[2] do
        if delta > 0 then
          v[at] = v[at] + delta
        elseif v[at + 1] <= admitted then
          v[at] = math.max(0, v[at] + delta)
        end
        at = at + 2
      end
      local more = {}
      if s < 3 then
        more = { 'held', math.max(0, tonumber(v[2] or 0) - amount), 'conc', math.max(0, tonumber(v[3] or 0) - 1) }
        if cost and s == 1 and v[1] then
          more[5], more[6] = 'bal', whole(tonumber(v[1]) - cost)
        end
        if cost and v[4] then
          ids = ids or window_ids(now)
          local spent = cmsgpack.unpack(v[4])
          roll(spent, ids)
          spend(spent, cost)
          local budgets = scope[5]
          for i = 1, #budgets, 3 do
            local w = 3 * budgets[i]
            if budgets[i + 2] == 0 and spent[w - 1] >= budgets[i + 1] and spent[w] < budgets[i + 1] then
              spent[w] = budgets[i + 1]
              local n = #answer
              answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = s, budgets[i], budgets[i + 1], spent[w - 1]
            end
          end
          more[#more + 1] = 'spent'
          more[#more + 1] = cmsgpack.pack(spent)
        end
      end
      write(key, scope, v, now, more)
    end
  end
  return answer
end

local function forget(request)
  call('ZREM', KEYS[LEASES], request)
  call('HDEL', KEYS[PROGRESS], request)
end
