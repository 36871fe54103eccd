-- What the last renewal said of a request: {cost, tokens, record}, or nothing. KEYS: progress. ARGV: request
local news = redis.call('HGET', KEYS[1], ARGV[1])
if not news then return {} end
return cmsgpack.unpack(news)
