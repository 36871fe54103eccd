-- Ends a hold: takes it off, gives its slot back, corrects the token buckets from the estimate to `tokens`, and
-- charges `cost` (nil for a void) to the balance and the budgets. `recorded` says that a record is kept of it, so that
-- it counts as a request. Appends soft budgets that were reached to `answer` as scope, window, limit, spent.
--
-- What was estimated too high is given back, unless the bucket stood empty since: then none of it is in there any
-- more, and giving it back would take away from what others used.
local function release(h, now, cost, tokens, recorded, answer)
  local L = cmsgpack.unpack(h[8])
  local amount, delta, admitted = h[2], tokens - h[3], h[4]
  local ids
  local p = 2
  for s = 1, KEYS[MODEL] and 3 or 2 do
    local key = s == 3 and KEYS[MODEL] or KEYS[s]
    local v, u = read(key, L, p, now)
    if v[5] then -- else the hash is gone, and with it all that could be corrected
      if delta ~= 0 then
        for i = p + 2, budgets_at(L, p) - 1, 3 do
          local b = L[i]
          if b > 4 then
            local used = u[b + 1]
            if delta > 0 then
              u[b + 1] = used + delta
            elseif u[b + 5] <= admitted then
              u[b + 1] = used + delta > 0 and used + delta or 0
            end
          end
        end
      end
      local command, n = { 'HSET', key }, 2
      if s < 3 then
        local slot = L[p] == NO_SLOT and 0 or 1
        local held, conc = tonumber(v[2] or 0) - amount, tonumber(v[3] or 0) - slot
        command = { 'HSET', key, 'held', held > 0 and held or 0, 'conc', conc > 0 and conc or 0 }
        n = 6
        if cost and s == 1 and v[1] then
          command[7], command[8] = 'bal', whole(tonumber(v[1]) - cost)
          n = 8
        end
        if recorded and v[4] then
          local spent = cmsgpack.unpack(v[4])
          count_request(spent)
          if cost then
            ids = ids or window_ids(now)
            roll(spent, ids)
            spend(spent, cost)
            local from = budgets_at(L, p)
            for i = from + 1, from + 3 * L[from], 3 do
              local w = 3 * L[i]
              if L[i + 2] == 0 and spent[w - 1] >= L[i + 1] and spent[w] < L[i + 1] then
                spent[w] = L[i + 1]
                local m = #answer
                answer[m + 1], answer[m + 2], answer[m + 3], answer[m + 4] = s, L[i], L[i + 1], spent[w - 1]
              end
            end
          end
          command[n + 1], command[n + 2] = 'spent', cmsgpack.pack(spent)
          n = n + 2
        end
      end
      write(command, n, L, p, v, u)
    end
    p = next_scope(L, p)
  end
  return answer
end
