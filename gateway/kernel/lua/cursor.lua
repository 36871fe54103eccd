-- Whether everything beyond a cursor is still in the stream. Whoever trims the stream keeps the entry at the committed
-- cursor. So if it is not there, then the stream was trimmed beyond our cursor, or it is not the stream that the cursor
-- was in: of a Redis that was emptied, or of a replica that had not heard of that entry. Without a cursor, nothing may
-- have been removed yet.
local function continues(stream, cursor)
  if not string.match(cursor, '^%d+-%d+$') then error('LEDGER not a stream id: ' .. tostring(cursor)) end
  if cursor ~= '0-0' then return #call('XRANGE', stream, cursor, cursor) > 0 end
  if call('EXISTS', stream) == 0 then return true end
  local info, reply = {}, call('XINFO', 'STREAM', stream)
  for i = 1, #reply, 2 do
    info[reply[i]] = reply[i + 1]
  end
  return info['entries-added'] == info['length']
end
