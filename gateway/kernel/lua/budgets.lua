-- Calendar windows and the counters of budgets.

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

-- Budget counters: {id, spent, noticed} for each of the four windows, and the same of the requests that ended with a
-- record: a window without end, of which only the middle is ever used. A window that is over starts again at nothing.
local LIFETIME = 5
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

local function count_request(spent)
  spent[14] = spent[14] + 1
end
