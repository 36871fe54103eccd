-- Applies one entry of the credit side (purchase, grant, refund: any sign) to the hot balance, once and in sequence.
--
-- KEYS: account. ARGV: sequence number of the entry, that of the entry before it, amount (nanos)
-- Answers:
--   {1, balance}   applied
--   {2, balance}   was applied before
--   {3, cseq}      entries in between are missing: load
--   {4, cseq}      not loaded: the next load brings it along; remembered, so that no older snapshot is loaded

local seq, previous, amount = whole(ARGV[1]), whole(ARGV[2]), whole(ARGV[3])
local v = call('HMGET', KEYS[1], 'bal', 'cseq')
local balance, stored = tonumber(v[1] or 0), tonumber(v[2] or 0)
if not v[1] then
  if seq > stored then
    call('HSET', KEYS[1], 'cseq', seq)
    stored = seq
  end
  -- Long enough for any load that has read its snapshot already; an account that is in use lives on.
  if call('PTTL', KEYS[1]) < 3600000 then call('PEXPIRE', KEYS[1], 3600000) end
  return { 4, stored }
end
if seq <= stored then return { 2, balance } end
if previous ~= stored then return { 3, stored } end
balance = whole(balance + amount)
call('HSET', KEYS[1], 'bal', balance, 'cseq', seq)
return { 1, balance }
