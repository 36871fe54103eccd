-- The life of one request: its hold, and the tombstone after it.

-- The state of a request: its hold, or its tombstone, or nil. A tombstone is dead by its own clock, not only by TTL.
local function find(now)
  local text = call('GET', KEYS[HOLD])
  if not text then return nil end
  local h = cmsgpack.unpack(text)
  if h[1] == 'ended' and h[2] <= now then return nil end
  return h
end

-- {'ended', until, verb, first answer}
local function bury(now, verb, answer, for_us)
  for_us = for_us or TOMB_US
  call('SET', KEYS[HOLD], cmsgpack.pack({ 'ended', now + for_us, verb, answer }), 'PX', for_us / 1000)
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

local function forget(request)
  call('ZREM', KEYS[LEASES], request)
  call('HDEL', KEYS[PROGRESS], request)
end

-- Appends a record to the usage stream. Under injected time the entry is dated by it.
local function append(now, given, ...)
  local id = '*'
  if given and given ~= '' then id = string.format('%.0f-*', floor(now / 1000)) end
  call('XADD', KEYS[USAGE], id, ...)
end
