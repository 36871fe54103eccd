-- Forgets the budget counters of keys: whoever is admitted next under one of them has them loaded. What is charged
-- meanwhile is in the usage stream, and so in that load. KEYS: keys
for i = 1, #KEYS do
  redis.call('HDEL', KEYS[i], 'spent')
end
return #KEYS
