-- What every script of the ledger shares; put in front of each of them when they are loaded. (Buckets, budgets and the
-- end of a hold are in files of their own: making a function costs a script a tenth of a microsecond.)
--
-- One partition lives in one hash slot: every key carries the tag {p<N>} and every key is passed in KEYS.
--   {pN}:a:<account>          hash   bal, held, cseq (last credit applied), conc (holds in flight), spent
--                                    (budget counters), br and bt (buckets)
--   {pN}:k:<key id>           hash   held, conc, spent, br, bt
--   {pN}:m:<account>:<model>  hash   br, bt; only where such limits exist
--   {pN}:h:<request>          string the hold, or for TOMB_US after its end the first answer to whatever ended it
--   {pN}:leases               zset   request -> end of its lease (ms)
--   {pN}:progress             hash   request -> what the last renewal said was delivered
--   {pN}:usage                stream one entry (field r) for each ended request: its usage record
--
--   absent --admit--> held --settle--> ended; held --void--> ended; held --expire--> ended
-- The same verb again returns the first answer; any other edge is a conflict and changes nothing, but for a settle
-- after a sweep that charged nothing.
--
-- A script that fails half-way is not undone, so every check stands before the first write.
-- Time is an argument in tests only; else it is Redis' own, in microseconds.
-- Limits: see pack_limits in limits.py. Scope numbers in answers: 1 account, 2 key, 3 model in account.

local MAX = 9007199254740991 -- 2^53 - 1: up to here a Lua number is exact
local DAY_US = 86400000000
local TOMB_US = 120000000
local ORPHAN_US = 2 * DAY_US -- the same of a request that a sweep charged: its worker may be heard of very late
local IDLE_MS = 40 * 86400000 -- a key's or model's hash goes when it was not used for so long
local SLACK = 0.001 -- of a request or token: forgives the rounding of fractions, so that exactly the limit passes
local ACCOUNT, KEY, HOLD, LEASES, PROGRESS, USAGE, MODEL = 1, 2, 3, 4, 5, 6, 7 -- KEYS of every verb on a hold
local CONFLICT = 7
local NO_SLOT = -2 -- as a limit of concurrency: takes no slot at all, see detach_limits in limits.py
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
