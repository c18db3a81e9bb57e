-- Counts, for each Envoy cluster, what its endpoints answered and the retries that followed an answer, second by second.
-- Where the retries have had their share, an answer is marked as one that Envoy's router never retries.
--
-- This runs at every try, where only what an endpoint answers passes: a try whose connection failed is not seen, and is
-- retried whatever was counted. There is one state a worker thread, so that nothing here is shared.
local clusters = {}

-- The answers of one cluster in the last SECONDS seconds, the present one included, and the retries in those and one
-- before: whichever SECONDS seconds one looks at, these retries are all in there, and these answers are no others.
local function window(cluster)
  local now = os.time()
  local w = clusters[cluster]
  if w == nil then
    for other, o in pairs(clusters) do
      if o.at < now - SECONDS then clusters[other] = nil end
    end
    w = {at = now, answers = 0, retries = 0, answered = {}, retried = {}}
    for i = 0, SECONDS do w.answered[i], w.retried[i] = 0, 0 end
    clusters[cluster] = w
  end
  w.at = math.max(w.at, now - SECONDS - 1)
  while w.at < now do
    w.at = w.at + 1
    local present, left = w.at % (SECONDS + 1), (w.at - SECONDS) % (SECONDS + 1)
    w.retries, w.retried[present] = w.retries - w.retried[present], 0
    w.answers, w.answered[left] = w.answers - w.answered[left], 0
  end
  return w, w.at % (SECONDS + 1)
end

-- How many retries a request was granted is noted at the request, through all its tries.
local NOTES, GRANTED = "isthmus.retries", "granted"

function envoy_on_response(handle)
  local context, headers = handle:filterContext(), handle:headers()
  local cluster = context:get("cluster")
  if cluster == nil then return end
  local w, second = window(cluster)
  local status, grpc = headers:get(":status"), headers:get("grpc-status")
  local limited = headers:get(REFUSED) ~= nil
  local retried = context:get(status) or context:get(status:sub(1, 1) .. "xx") or grpc ~= nil and context:get("grpc " .. grpc)
  if limited then retried = context:get("limited") end
  if retried and (headers:get(UNREACHED) ~= nil or headers:get(CUT) ~= nil) then return end
  w.answers, w.answered[second] = w.answers + 1, w.answered[second] + 1
  if not retried then return end
  local notes = handle:streamInfo():dynamicMetadata()
  local note = notes:get(NOTES)
  local granted = note and note[GRANTED] or 0
  if granted >= context:get("attempts") then return end
  if w.retries >= LEAST and 100 * (w.retries + 1) > PERCENT * w.answers then
    headers:replace(REFUSED, "1")
    return
  end
  notes:set(NOTES, GRANTED, granted + 1)
  w.retries, w.retried[second] = w.retries + 1, w.retried[second] + 1
  if limited then
    headers:remove(REFUSED)
    headers:add(UNREACHED, "1")
  end
end
