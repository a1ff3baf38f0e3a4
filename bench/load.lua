-- wrk: posts every file of a folder in turn, and tells what came back as one line of JSON.
-- Arguments: the folder, and optionally the mean pause of a connection between an answer and its next request, in
-- milliseconds. With a pause each answer is timed by itself, told from others by the request's id, which the server must
-- send back; without one wrk's own times are used, which costs the client less.

local folder, pause
local requests, bodies, at = {}, {}, 0
local headers = { ["Content-Type"] = "image/jpeg" }
local threads = {}
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long seconds; long nanoseconds; } timespec_t;
  int clock_gettime(int clock, timespec_t *time);
]])
local time, MONOTONIC = ffi.new("timespec_t"), 1

local function milliseconds()
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

function setup(thread)
  thread:set("number", #threads)
  threads[#threads + 1] = thread
end

function init(arguments)
  folder, pause = arguments[1], tonumber(arguments[2])
  local list = assert(io.popen('ls "' .. folder .. '"'))
  for name in list:lines() do
    local file = assert(io.open(folder .. "/" .. name, "rb"))
    bodies[#bodies + 1] = file:read("*a")
    requests[#requests + 1] = wrk.format("POST", nil, headers, bodies[#bodies])
    file:close()
  end
  list:close()
  -- Globals, for `done` reads them from outside.
  began = milliseconds()
  counts, waits, wave = {}, {}, {}
  math.randomseed(number + 1)
  if pause then
    delay = function() return math.floor(pause * 2 * math.random()) end
  end
end

function request()
  at = at % #requests + 1
  if not pause then return requests[at] end
  headers["x-request-id"] = string.format("%.3f", milliseconds())
  return wrk.format("POST", nil, headers, bodies[at])
end

local function outcome(status, body)
  if status == 200 then return "200" end
  local code = body:match('"code":%s*"([%w_]+)"')
  return status .. (code and " " .. code or "")
end

function response(status, sent, body)
  local name = outcome(status, body)
  counts[name] = (counts[name] or 0) + 1
  if not pause then return end
  local now = milliseconds()
  local id = tonumber(sent["x-request-id"])
  if status == 200 then
    local second = math.floor((now - began) / 1e3)
    wave[second] = (wave[second] or 0) + 1
    -- In steps of 2 %, so that a long run takes no memory.
    if id then
      local step = math.floor(math.log(math.max(now - id, 0.01)) / math.log(1.02))
      waits[step] = (waits[step] or 0) + 1
    end
  end
end

local function sum(name)
  local total = {}
  for _, thread in ipairs(threads) do
    for key, value in pairs(thread:get(name) or {}) do total[key] = (total[key] or 0) + value end
  end
  return total
end

local function json(values)
  local parts = {}
  for key, value in pairs(values) do parts[#parts + 1] = string.format('"%s": %.10g', key, value) end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    'RESULT {"seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "outcomes": %s, "waits": %s, "each_second": %s, '
      .. '"connect_errors": %d, "read_errors": %d, "write_errors": %d, "timeouts": %d}',
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    json(sum("counts")), json(sum("waits")), json(sum("wave")),
    errors.connect, errors.read, errors.write, errors.timeout
  ))
end
