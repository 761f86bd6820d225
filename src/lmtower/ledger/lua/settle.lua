-- Ends one reservation: frees what it held and books what was used, or takes its request back. Once only.
-- KEYS as in reserve.lua. ARGV[1] JSON {id, now, tokens, images, money, month, released (requests to take back), began}.
local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = ask.now > 0 and ask.now or (tonumber(clock[1]) + tonumber(clock[2]) / 1000000)

local function book(base, name, seconds, amount)
  if amount ~= 0 then
    redis.call('HINCRBY', base .. ':' .. name, string.format('%d', math.floor(now / (seconds / 60))), amount)
    redis.call('EXPIRE', base .. ':' .. name, seconds * 3)
  end
end

-- A tower that got no answer sends again.
if not redis.call('SET', 'lmtower:settled:' .. ask.id, 1, 'NX', 'EX', 600) then return 0 end
for index = 2, #KEYS do
  local base = KEYS[index]
  redis.call('HDEL', base .. ':held', ask.id)
  book(base, 'tm', 60, ask.tokens)
  book(base, 'td', 86400, ask.tokens)
  book(base, 'id', 86400, ask.images)
  if ask.money ~= 0 then
    redis.call('INCRBYFLOAT', base .. ':spent:' .. ask.month, ask.money)
    redis.call('EXPIRE', base .. ':spent:' .. ask.month, 3456000)
  end
  local slice = string.format('%d', math.floor(ask.began))
  if ask.released > 0 and redis.call('HEXISTS', base .. ':rm', slice) == 1 then
    redis.call('HINCRBY', base .. ':rm', slice, -ask.released)
  end
end
if ask.released > 0 and KEYS[1] ~= '' then redis.call('DEL', KEYS[1]) end
return 1
