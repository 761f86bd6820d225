-- Checks every account of one request and, if all agree, holds its estimate on each. Runs as one step in Redis.
-- KEYS[1] the fingerprint of the request or "", KEYS[2..] one base key per account.
-- ARGV[1] JSON {id, tower, now (0: the server's clock), requests, tokens, images, money, retry, month, limits = [...]}.
-- Reply: JSON {state = "ok" | "refused" | "unseeded", at = index of the account, now, retry, accounts = [...]}.
local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = ask.now > 0 and ask.now or (tonumber(clock[1]) + tonumber(clock[2]) / 1000000)
local WINDOWS = { rm = 60, tm = 60, td = 86400, id = 86400 }
local alive = {}

-- cjson keeps 14 digits of a number; the towers compute with all of them.
local function exact(number) return string.format('%.17g', number) end

-- A window is a hash of 60 slices; a slice counts until its END is older than the window, so never too short.
local function used(base, name)
  local key, seconds = base .. ':' .. name, WINDOWS[name]
  local grain = seconds / 60
  local slices, sum, found = redis.call('HGETALL', key), 0, {}
  for i = 1, #slices, 2 do
    local ends = (tonumber(slices[i]) + 1) * grain
    if ends + seconds <= now then
      redis.call('HDEL', key, slices[i])
    else
      sum = sum + tonumber(slices[i + 1])
      found[#found + 1] = { ends, tonumber(slices[i + 1]) }
    end
  end
  return sum, found
end

-- What runs now; what a tower held that has not been heard of for ten seconds is dropped.
local function held(base)
  local key = base .. ':held'
  local all, sum = redis.call('HGETALL', key), { 0, 0, 0, 0 }
  for i = 1, #all, 2 do
    local one = cjson.decode(all[i + 1])
    if alive[one[1]] == nil then alive[one[1]] = redis.call('EXISTS', 'lmtower:tower:' .. one[1]) == 1 end
    if alive[one[1]] then
      sum = { sum[1] + 1, sum[2] + one[2], sum[3] + one[3], sum[4] + one[4] }
    else
      redis.call('HDEL', key, all[i])
    end
  end
  return sum
end

local retry = false
if KEYS[1] ~= '' and ask.retry then
  local seen = redis.call('GET', KEYS[1])
  retry = seen and tonumber(seen) < ask.max_retries or false
end
local requests = retry and 0 or ask.requests
local accounts, refused = {}, 0
for index = 2, #KEYS do
  local base, limits = KEYS[index], ask.limits[index - 1]
  if redis.call('EXISTS', base .. ':seeded') == 0 then
    return cjson.encode({ state = 'unseeded', at = index - 2, now = exact(now), retry = retry, accounts = {} })
  end
  local runs = held(base)
  local rm, rm_slices = used(base, 'rm')
  local tm, tm_slices = used(base, 'tm')
  local td, td_slices = used(base, 'td')
  local images, image_slices = used(base, 'id')
  local spent = tonumber(redis.call('GET', base .. ':spent:' .. ask.month) or '0')
  if (limits.parallel and runs[1] >= limits.parallel)
    or (limits.money_per_month and (spent >= limits.money_per_month or spent + runs[4] + ask.money > limits.money_per_month))
    or (limits.requests_per_minute and requests > 0 and rm + requests > limits.requests_per_minute)
    or (limits.tokens_per_minute and tm + runs[2] + ask.tokens > limits.tokens_per_minute)
    or (limits.tokens_per_day and td + runs[2] + ask.tokens > limits.tokens_per_day)
    or (limits.images_per_day and ask.images > 0 and images + runs[3] + ask.images > limits.images_per_day) then
    refused = refused + 1
  end
  runs[4] = exact(runs[4])
  accounts[#accounts + 1] = { rm = rm_slices, tm = tm_slices, td = td_slices, id = image_slices, held = runs, spent = exact(spent) }
end
if refused == 0 then
  for index = 2, #KEYS do
    local base = KEYS[index]
    redis.call('HSET', base .. ':held', ask.id, cjson.encode({ ask.tower, ask.tokens, ask.images, ask.money }))
    redis.call('EXPIRE', base .. ':held', 172800)
    if requests > 0 then
      redis.call('HINCRBY', base .. ':rm', string.format('%d', math.floor(now)), requests)
      redis.call('EXPIRE', base .. ':rm', 180)
    end
    redis.call('EXPIRE', base .. ':seeded', 3456000)
  end
  if KEYS[1] ~= '' then
    if retry then redis.call('INCR', KEYS[1]) else redis.call('SET', KEYS[1], 0, 'EX', 600) end
  end
end
return cjson.encode({ state = refused == 0 and 'ok' or 'refused', at = 0, now = exact(now), retry = retry, accounts = accounts })
