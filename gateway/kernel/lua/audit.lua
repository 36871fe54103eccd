-- Looks at accounts and at what the usage stream holds of them beyond a cursor, all in one moment.
--
-- KEYS: usage stream, accounts. ARGV: cursor, most entries to look at, ids of the accounts
-- Answers:
--   {1, loaded (1) or not (0), balance, cseq, sum of costs in the stream, ...}   four numbers for each account
--   {2}   more entries than that beyond the cursor
--   {4}   what is beyond the cursor is not all there

local cursor, most = ARGV[1], whole(ARGV[2])
if not continues(KEYS[1], cursor) then return { 4 } end
local entries = call('XRANGE', KEYS[1], '(' .. cursor, '+', 'COUNT', most + 1)
if #entries > most then return { 2 } end

local sums = {}
for i = 3, #ARGV do
  sums[whole(ARGV[i])] = 0
end
for _, entry in ipairs(entries) do
  local is_record, record = pcall(cmsgpack.unpack, entry[2][2])
  if is_record and type(record) == 'table' and sums[record[3]] then
    sums[record[3]] = whole(sums[record[3]] + record[5])
  end
end

local answer = { 1 }
for i = 3, #ARGV do
  local v = call('HMGET', KEYS[i - 1], 'bal', 'cseq')
  answer[#answer + 1] = v[1] and 1 or 0
  answer[#answer + 1] = tonumber(v[1] or 0)
  answer[#answer + 1] = tonumber(v[2] or 0)
  answer[#answer + 1] = sums[whole(ARGV[i])]
end
return answer
