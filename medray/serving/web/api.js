// The service: requests, its problems, uploads with progress, jobs that are waited for.

/** What the service refused, as RFC 9457 says. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.title = body.title || (status ? `HTTP ${status}` : "no connection");
    this.detail = body.detail || "";
    this.hint = body.hint || "";
    this.requestId = body.request_id || "";
  }
}

let key = "";
let askForKey = async () => "";

export const useKey = (value) => { key = value; };
export const hasKey = () => key !== "";
/** `ask` is awaited when the service wants a key; it gives one, or "" to give up. */
export const onMissingKey = (ask) => { askForKey = ask; };

const auth = () => (key ? { "X-API-Key": key } : {});
const OFFLINE = { title: "no connection", detail: "The service does not answer.", hint: "See whether medray serve still runs." };

async function problemOf(response) {
  let body = {};
  try { body = await response.json(); } catch { /* a proxy's page, not the service's words */ }
  const id = response.headers.get("X-Request-Id");
  return new Problem(response.status, { request_id: id, ...body });
}

/** The response, or a Problem; a 401 asks for a key once. */
export async function call(path, { method = "GET", json, signal } = {}, again = true) {
  const headers = { ...auth(), ...(json ? { "Content-Type": "application/json" } : {}) };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: json ? JSON.stringify(json) : undefined });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, OFFLINE);
  }
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (response.status === 401 && again && (await renewed(problem))) return call(path, { method, json, signal }, false);
  throw problem;
}

async function renewed(problem) {
  const given = await askForKey(problem);
  if (given) key = given;
  return Boolean(given);
}

export const get = async (path, options) => (await call(path, options)).json();

/** A picture of the service, ready to be drawn. */
export async function bitmap(path, signal) {
  const content = await (await call(path, { signal })).blob();
  return createImageBitmap(content, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
}

/** Send an image and wait for its answer. `say(text, share)` hears how far it is; share is null where unknown. */
export async function predict(content, query, say, signal) {
  const path = `/v1/predict?${new URLSearchParams(query)}`;
  const { status, body, location } = await upload(path, content, say, signal);
  return status === 202 ? awaited(location || body.links.self, say, signal) : body;
}

// XMLHttpRequest, since fetch does not tell how much of a body is sent.
function upload(path, content, say, signal, again = true) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.responseType = "json";
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(auth())) request.setRequestHeader(name, value);
    const abort = () => request.abort();
    signal.addEventListener("abort", abort, { once: true });
    const end = (finish) => (...values) => { signal.removeEventListener("abort", abort); finish(...values); };
    request.upload.onprogress = (event) => event.lengthComputable && say("Sending", event.loaded / event.total);
    request.upload.onload = () => say("The model is looking at it", null);
    request.onabort = end(() => reject(new DOMException("cancelled", "AbortError")));
    request.onerror = end(() => reject(new Problem(0, OFFLINE)));
    request.onload = end(async () => {
      const { status, response: body } = request;
      if (status < 300 && body) return resolve({ status, body, location: request.getResponseHeader("Location") });
      const problem = new Problem(status, { request_id: request.getResponseHeader("X-Request-Id"), ...body });
      if (status === 401 && again && (await renewed(problem))) return resolve(upload(path, content, say, signal, false));
      return reject(problem);
    });
    say("Sending", 0);
    request.send(content);
  });
}

const STATES = { pending: "Waiting for its turn", running: "The model is looking at it" };

async function awaited(place, say, signal) {
  const stop = () => call(place, { method: "DELETE" }).catch(() => {});
  signal.addEventListener("abort", stop, { once: true });
  try {
    for (let pause = 300; ; pause = Math.min(pause * 1.3, 2000)) {
      const job = await get(place, { signal });
      if (job.state === "completed") return job.result ?? (await get(job.links.result, { signal }));
      if (job.state === "failed") throw new Problem(job.problem?.status ?? 500, job.problem ?? { title: "the job failed" });
      if (job.state === "cancelled") throw new DOMException("cancelled", "AbortError");
      say(STATES[job.state] ?? job.state, job.state === "running" && job.progress ? job.progress : null);
      await new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, pause);
        signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("cancelled", "AbortError")); }, { once: true });
      });
    }
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** Save a file of the service under its own name; the key goes along, which a plain link could not do. */
export async function download(path, fallback) {
  const response = await call(path);
  const said = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "");
  save(await response.blob(), said ? said[1] : fallback);
}

export function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
