// Requests to the service. All URLs are relative to the page, so that they work below any prefix of a proxy.

export const base = new URL("..", import.meta.url);
const octets = { "Content-Type": "application/octet-stream" };
let key = ""; // in memory only

export function setKey(value) {
  key = value;
}

export const usesKey = () => key !== "";

/** A request that failed: `status` is 0 if there was no response, `wait` the seconds after which to retry. */
export class ServiceError extends Error {
  constructor(status, code, message, wait = 0) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("X-API-Key", key);
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch {
    throw new ServiceError(0, "unreachable", "The service does not respond.", 1);
  }
  if (response.ok) return response;
  const wait = Number(response.headers.get("Retry-After")) || 0;
  let error = { code: "http", message: `Status ${response.status}` };
  try {
    const body = await response.json();
    error = typeof body.error === "string" ? { code: "v2", message: body.error } : body.error;
  } catch {
    // a proxy's own page
  }
  throw new ServiceError(response.status, error.code, error.message, wait);
}

/** Return what the service answers of itself, and its models with their manifests. */
export async function describe() {
  const service = await (await request("page/service.json")).json();
  return { ...service, ...(await (await request("models")).json()) };
}

/** Convert a picture to the 784 ink values that the models see. */
export async function convert(picture) {
  const options = { method: "POST", body: picture, headers: { "Content-Type": picture.type || octets["Content-Type"] } };
  const answer = await (await request("predict?include=input", options)).json();
  return Uint8Array.from(answer.predictions[0].input.flat());
}

/** Classify 28×28 images: N · 784 ink values. `trip` is the round trip in milliseconds, `id` that of the request. */
export async function predict(model, pixels) {
  const start = performance.now();
  const response = await request(`predict/${model}`, { method: "POST", body: pixels, headers: octets });
  const answer = await response.json();
  return { ...answer, id: response.headers.get("X-Request-ID"), trip: performance.now() - start };
}

/** Send the digit that the image of each of these requests shows. */
export async function sendLabels(ids, digit) {
  const body = JSON.stringify({ labels: ids.map((id) => ({ id, digit })) });
  return (await request("feedback", { method: "POST", body, headers: { "Content-Type": "application/json" } })).json();
}

/** Return the logits of N · 784 ink values, ten of each image, from a binary response of the Open Inference Protocol. */
export async function infer(model, pixels) {
  const length = "Inference-Header-Content-Length";
  const response = await request(`v2/models/${model}/infer`, { method: "POST", body: pixels, headers: { ...octets, [length]: "0" } });
  const bytes = await response.arrayBuffer();
  let start = Number(response.headers.get(length));
  const { outputs } = JSON.parse(new TextDecoder().decode(bytes.slice(0, start)));
  const at = outputs.findIndex((output) => output.name === "logits");
  for (const { parameters } of outputs.slice(0, at)) start += parameters.binary_data_size;
  const data = new Float32Array(bytes.slice(start, start + outputs[at].parameters.binary_data_size));
  return Array.from({ length: data.length / 10 }, (_, row) => Array.from(data.slice(10 * row, 10 * row + 10)));
}

/** Read the number in a picture of a line of digits. */
export async function readNumber(picture) {
  const options = { method: "POST", body: picture, headers: { "Content-Type": picture.type || octets["Content-Type"] } };
  return (await request("read", options)).json();
}
