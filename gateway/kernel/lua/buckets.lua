-- The token buckets of one scope. `L` is the packed limits, `p` where the scope begins in it: concurrency, number of
-- buckets n, (bucket, limit, capacity) x n, number of budgets m, (window, limit, hard) x m.
--
-- Buckets 1 to 4 count requests by minute, hour, day and month (30 days), 5 to 8 tokens. What is used stands in two
-- binary fields of the scope's hash, each small enough for a compact hash, and a third of the cost of as many numbers
-- in text: `br`, the time of the last write (us) and the levels 1 to 4; `bt`, the levels 5 to 8, and when each of
-- them last stood empty. A bucket without a limit is not counted.

local WINDOW_US = {
  60000000, 3600000000, 86400000000, 2592000000000, 60000000, 3600000000, 86400000000, 2592000000000,
}

-- Where the scope's budgets begin, and where the next scope.
local function budgets_at(L, p)
  return p + 2 + 3 * L[p + 1]
end

local function next_scope(L, p)
  local at = budgets_at(L, p)
  return at + 1 + 3 * L[at]
end

-- Answers {bal, held, conc, spent, ...} as they stand in the hash, and the buckets drained to `now`: {now, level of
-- bucket b at b + 1, time at which token bucket b last stood empty at b + 5}.
local function read(key, L, p, now)
  local v = call('HMGET', key, 'bal', 'held', 'conc', 'spent', 'br', 'bt')
  local u = { now, 0, 0, 0, 0, 0, 0, 0, 0, now, now, now, now }
  local n = L[p + 1]
  if n > 0 and v[5] then
    local from, to, elapsed = p + 2, p + 3 * n - 1, nil
    elapsed, u[2], u[3], u[4], u[5] = struct.unpack('<ddddd', v[5])
    elapsed = now - elapsed
    if elapsed < 0 then elapsed = 0 end -- the clock of a promoted replica may be behind
    if L[to] > 4 and v[6] then
      u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13] = struct.unpack('<dddddddd', v[6])
    end
    local b = 0
    for i = from, to, 3 do
      for unlimited = b + 1, L[i] - 1 do
        u[unlimited + 1] = 0
      end
      b = L[i]
      local used = u[b + 1]
      if used > 0 then
        used = used - elapsed * L[i + 1] / WINDOW_US[b]
        if used < 0 then used = 0 end
        u[b + 1] = used
      end
      if b > 4 and used == 0 then u[b + 5] = now end
    end
    for unlimited = b + 1, 8 do
      u[unlimited + 1] = 0
    end
  end
  return v, u
end

-- Writes buckets, and what else `command`, a HSET of `n` words, says already. Token levels of a time when there were
-- limits are wiped out.
local function write(command, n, L, p, v, u)
  command[n + 1], command[n + 2] = 'br', struct.pack('<ddddd', u[1], u[2], u[3], u[4], u[5])
  if v[6] or (L[p + 1] > 0 and L[p + 3 * L[p + 1] - 1] > 4) then
    command[n + 3] = 'bt'
    command[n + 4] = struct.pack('<dddddddd', u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13])
  end
  call(unpack(command))
end
