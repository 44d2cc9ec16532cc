"""What Redis does for a fleet in one step, so that no two gateways come between each other: scripts in Lua."""

from hashlib import sha1


class Script:
    """One that Redis has once its `text` was loaded, and runs when EVALSHA names its `digest`."""

    def __init__(self, text: str):
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


# In one step: how much the owner's rows sum up to, whether what is claimed fits, and the row itself. Numbers are floats
# in Lua, so beyond 9 PB a count may be off by a kilobyte.
USE = Script("""
local gateway, claimed = ARGV[1], ARGV[2] == '1'
local function number(value) return string.format('%.0f', value) end
local function read(key, field)
  local text = redis.call('HGET', key, field)
  if not text then return 0, 0, 0 end
  local used, granted, resets = string.match(text, '^(%d+) (%d+) (%d+)$')
  return tonumber(used), tonumber(granted), tonumber(resets)
end
local rows, fits = {}, true
for i = 3, #KEYS do
  local a = 3 + (i - 3) * 8
  local row = {key = KEYS[i], owner = ARGV[a], span = ARGV[a + 1], ends = ARGV[a + 2], used = tonumber(ARGV[a + 3])}
  local needed, limit = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
  row.granted, row.resets = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7])
  local used, granted, resets = read(row.key, 't ' .. row.owner)
  local own_used, own_granted, own_resets = read(row.key, 'g ' .. gateway .. ' ' .. row.owner)
  row.others_granted = granted - own_granted
  if own_resets == resets then row.others_used = used - own_used else row.others_used = used end
  if row.resets > resets then
    row.others_used = 0
  elseif row.resets < resets then
    row.stale, row.resets, fits = true, resets, false
  end
  if claimed and limit >= 0 then
    local most = limit + row.others_granted + row.granted - row.others_used
    if needed > most then fits = false end
    row.used = math.max(needed, math.min(row.used, most))
  end
  rows[#rows + 1] = row
end
local written = fits or not claimed
local answer, spans = {written and '1' or '0'}, {}
for i, row in ipairs(rows) do
  if written and not row.stale then
    redis.call('HSET', row.key,
      't ' .. row.owner, number(row.others_used + row.used) .. ' ' ..
        number(row.others_granted + row.granted) .. ' ' .. number(row.resets),
      'g ' .. gateway .. ' ' .. row.owner, number(row.used) .. ' ' .. number(row.granted) .. ' ' .. number(row.resets))
    redis.call('EXPIREAT', row.key, number(tonumber(row.ends) + tonumber(ARGV[#ARGV])))
    redis.call('HSET', KEYS[2], row.span, row.ends)
    redis.call('EXPIRE', KEYS[2], ARGV[#ARGV - 2])
    spans[#spans + 1] = row.span
  end
  if #spans > 0 and (i == #rows or rows[i + 1].owner ~= row.owner) then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[#ARGV - 1], '*',
      'by', gateway, 'what', 'use', 'of', row.owner, 'is', table.concat(spans, ' '))
    spans = {}
  end
  for _, value in ipairs({row.others_used, row.others_granted, row.resets, row.used}) do
    answer[#answer + 1] = number(value)
  end
end
return answer
""")

# Of two locks of a target the newer one stays, by the rule of fleet.is_newer.
LOCK = Script("""
local function order(text)
  local at, locks, rest = string.match(text, '^(%d+) ([01]) (.*)$')
  return tonumber(at), tonumber(locks), rest
end
local before = redis.call('HGET', KEYS[2], ARGV[2])
if before then
  local at, locks, rest = order(ARGV[3])
  local before_at, before_locks, before_rest = order(before)
  if at < before_at or (at == before_at and (locks < before_locks or (locks == before_locks and rest <= before_rest)))
  then return before end
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'by', ARGV[1], 'what', 'lock', 'of', ARGV[2], 'is', ARGV[3])
return ARGV[3]
""")

# An id belongs to who said so last, for as long as that one goes on saying it.
HOLD = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return holder and 1 or 2
""")

# Nobody may have locked again since it was looked at.
FORGET = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
""")

ALL = (USE, LOCK, HOLD, FORGET)
