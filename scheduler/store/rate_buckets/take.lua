-- Takes from all buckets of a tenant or from none; a negative amount is given back.
--
-- A bucket holds what its limit allows in a minute and fills at that rate, so a minute without a
-- call fills it, and one that is missing is full. Levels are in sixty-thousandths: a millisecond
-- adds exactly `limit` of them, and all numbers are integers far below 2^53.
--
-- KEYS[1]  the tenant's hash: the level of each kind, and `ms`, when they were written
-- ARGV     of each bucket: kind, limit, amount
-- returns  1 if it was taken, else 0; then the level of each bucket

local MINUTE_MS = 60000

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local stored_ms = tonumber(redis.call("HGET", KEYS[1], "ms")) or now_ms
local elapsed_ms = math.min(math.max(now_ms - stored_ms, 0), MINUTE_MS)

local function filled(kind, limit)
  local full = limit * MINUTE_MS
  local level = tonumber(redis.call("HGET", KEYS[1], kind)) or full
  return math.min(level + limit * elapsed_ms, full)
end

local levels, granted = {}, 1
for i = 1, #ARGV, 3 do
  local level = filled(ARGV[i], ARGV[i + 1])
  if level < ARGV[i + 2] * MINUTE_MS then
    granted = 0
  end
  table.insert(levels, level)
end

redis.call("DEL", KEYS[1])
redis.call("HSET", KEYS[1], "ms", now_ms)
for bucket, level in ipairs(levels) do
  local i = 3 * bucket - 2
  local taken = granted * ARGV[i + 2] * MINUTE_MS
  levels[bucket] = math.min(level - taken, ARGV[i + 1] * MINUTE_MS)
  redis.call("HSET", KEYS[1], ARGV[i], levels[bucket])
end
redis.call("PEXPIRE", KEYS[1], MINUTE_MS)

return { granted, unpack(levels) }
