-- Puts into a new account what SQL and the journal know of its use; the first tower to come does it, once.
-- KEYS[1] base key of the account. ARGV[1] JSON {month, money, rm = [[slice, amount]...], tm, td, id}.
local ask = cjson.decode(ARGV[1])
local base = KEYS[1]
if redis.call('SET', base .. ':seeded', 1, 'NX', 'EX', 3456000) then
  for name, seconds in pairs({ rm = 60, tm = 60, td = 86400, id = 86400 }) do
    for _, slice in ipairs(ask[name]) do
      redis.call('HINCRBY', base .. ':' .. name, string.format('%d', slice[1]), slice[2])
    end
    redis.call('EXPIRE', base .. ':' .. name, seconds * 3)
  end
  if ask.money ~= 0 then redis.call('INCRBYFLOAT', base .. ':spent:' .. ask.month, ask.money) end
end
return 1
