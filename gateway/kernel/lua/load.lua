-- Makes the hot balance from a snapshot of PostgreSQL: its balance, less what the usage stream still holds of this
-- account beyond the snapshot's cursor. The same for the budget counters of the account and of one key.
--
-- The stream is read in pieces of bounded size. It only grows at its end, so a piece that was read stays true; only the
-- last piece, read in the same call that writes, has to be atomic with it.
--
-- KEYS: account, usage stream, [key]
-- ARGV: account id, balance, cseq, cursor (stream id), 1 to force, entries in a piece,
--       budget counters of the account or '', key id, budget counters of the key or ''
-- Answers:
--   {1, balance}   loaded
--   {2, balance}   everything was there already; nothing is changed
--   {3, cursor, balance, counters, counters}   not at the end yet: call again with these
--   {4, cseq}      the snapshot is not of this moment: a later credit is known, or its cursor is not in the stream

local account, key_id = whole(ARGV[1]), ARGV[8]
local balance, cseq, piece = whole(ARGV[2]), whole(ARGV[3]), whole(ARGV[6])
local force = ARGV[5] == '1'
local stored = call('HMGET', KEYS[1], 'bal', 'cseq', 'spent')
local wants_balance = force or not stored[1]
local wants_spent = ARGV[7] ~= '' and (force or not stored[3])
local wants_key = KEYS[3] and ARGV[9] ~= '' and (force or not call('HGET', KEYS[3], 'spent'))
if not (wants_balance or wants_spent or wants_key) then return { 2, tonumber(stored[1]) } end
if tonumber(stored[2] or 0) > cseq then return { 4, tonumber(stored[2]) } end

local cursor = ARGV[4]
if not continues(KEYS[2], cursor) then return { 4, tonumber(stored[2] or 0) } end

-- What was charged in a window that is over by now is in none that counts.
local function count(counters, id, cost)
  local ids = window_ids(string.match(id, '^(%d+)-') * 1000)
  roll(counters, ids)
  for w = 1, 4 do
    local at = 3 * w - 2
    if ids[w] == counters[at] then counters[at + 1] = math.min(counters[at + 1] + cost, MAX) end
  end
  count_request(counters)
end

local spent = ARGV[7] ~= '' and cmsgpack.unpack(ARGV[7]) or nil
local key_spent = ARGV[9] ~= '' and cmsgpack.unpack(ARGV[9]) or nil
local entries = call('XRANGE', KEYS[2], '(' .. cursor, '+', 'COUNT', piece)
for _, entry in ipairs(entries) do
  cursor = entry[1]
  -- version, request, account, key, cost, ...; what is no record is set aside by the settler
  local is_record, record = pcall(cmsgpack.unpack, entry[2][2])
  if is_record and type(record) == 'table' and record[3] == account then
    balance = whole(balance - record[5])
    if spent then count(spent, cursor, record[5]) end
    if key_spent and record[4] == key_id then count(key_spent, cursor, record[5]) end
  end
end
if #entries == piece then
  return { 3, cursor, balance, spent and cmsgpack.pack(spent) or '', key_spent and cmsgpack.pack(key_spent) or '' }
end

if wants_balance then
  call('HSET', KEYS[1], 'bal', balance, 'cseq', cseq)
  call('PERSIST', KEYS[1])
else
  balance = tonumber(stored[1])
end
if wants_spent then call('HSET', KEYS[1], 'spent', cmsgpack.pack(spent)) end
if wants_key then
  call('HSET', KEYS[3], 'spent', cmsgpack.pack(key_spent))
  if call('PTTL', KEYS[3]) < 0 then call('PEXPIRE', KEYS[3], IDLE_MS) end
end
return { 1, balance }
