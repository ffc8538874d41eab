// Talking to the server: JSON calls, and one stream of events.
import { createParser } from "./sse.js";

const KEY = "unspoken.key";
const READING = 8; // milliseconds of reading after which others have their turn

/** What the server refused: its sentence, its hint, and sentences by field. */
export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    const error = (body && body.error) || {};
    super(error.message || `The server answered ${status}.`);
    this.status = status;
    this.hint = error.hint || "";
    this.fields = error.fields || {};
    this.retryAfter = retryAfter ? Number(retryAfter) : null;
  }
}

let key = ""; // for a server that asks for one; kept for this tab, where there is storage
try {
  key = sessionStorage.getItem(KEY) || "";
} catch {
  // no storage, or no browser
}

/** Whether a key was given. */
export const hasKey = () => key !== "";

/** Send this key from now on; an empty one sends none. */
export function setKey(value) {
  key = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // no storage: the key is asked for again when the page is loaded again
  }
}

function headers(body) {
  const out = {};
  if (body !== undefined) out["Content-Type"] = "application/json";
  if (key) out.Authorization = `Bearer ${key}`;
  return out;
}

async function refuse(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // not JSON: the status is all there is
  }
  throw new ApiError(response.status, body, response.headers.get("Retry-After"));
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const message = "The server cannot be reached.";
    throw new ApiError(0, { error: { message, hint: "Is `unspoken lab` still running?" } });
  }
}

/** One JSON call; `body` makes it a POST unless `method` says otherwise. */
export async function call(path, body, method) {
  const response = await send(path, {
    method: method || (body === undefined ? "GET" : "POST"),
    headers: headers(body),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) await refuse(response);
  return response.status === 204 ? null : response.json();
}

/**
 * Run a request and hand on each message as soon as it is here.
 * @param {object} body of /api/stream
 * @param {AbortSignal} signal ends it: closing the connection cancels the run
 * @param {(name: string, data: string) => void} onMessage is given JSON that is yet to be read
 */
export async function stream(body, signal, onMessage) {
  const response = await send("/api/stream", {
    method: "POST",
    headers: { ...headers(body), Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) await refuse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = createParser();
  let since = performance.now();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    for (const { event, data } of parser.feed(value)) onMessage(event, data);
    if (performance.now() - since < READING || document.hidden) continue;
    await new Promise((resolve) => setTimeout(resolve)); // a flood of messages leaves time for the page
    since = performance.now();
  }
}
