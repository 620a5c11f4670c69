-- wrk's side of `benchmarks.load`: wrk -s wrk.lua URL -- REQUEST_FILE...
-- Each file is one complete HTTP request; they are sent cyclically. There is no `response` function on purpose:
-- with one, wrk parses every response in Lua and becomes slower than the service.

local requests, turn = {}, 0

function init(files)
  for _, path in ipairs(files) do
    local file = assert(io.open(path, "rb"))
    requests[#requests + 1] = file:read("*a")
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

-- `latency` counts the responses by their microseconds; print all of it as one line of JSON.
function done(summary, latency)
  local counts, errors = {}, {}
  for i = 1, #latency do
    counts[i] = string.format("[%d, %d]", latency(i))
  end
  for kind, count in pairs(summary.errors) do
    errors[#errors + 1] = string.format('"%s": %d', kind, count)
  end
  io.write(string.format(
    '\nRESULT {"requests": %d, "duration_us": %d, "errors": {%s}, "latency": [%s]}\n',
    summary.requests, summary.duration, table.concat(errors, ", "), table.concat(counts, ", ")
  ))
end
