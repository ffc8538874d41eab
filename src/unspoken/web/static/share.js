// The page's parameters in an address: after the #, so that they are sent to nobody. Pure.

const COLUMNS = 4;
const TEXTS = ["prompt", "system", "gold", "stop", "depth"];
const NUMBERS = ["seed", "max_new_tokens"];

/** The fragment that says all of `state`: {prompt, system, ..., columns: [{name, fields}]}. */
export function encode(state) {
  const out = {};
  for (const name of TEXTS) if (state[name]) out[name] = state[name];
  for (const name of NUMBERS) if (Number.isSafeInteger(state[name])) out[name] = state[name];
  out.columns = (state.columns || []).slice(0, COLUMNS).map(({ name, fields }) => ({ name, ...fields }));
  return `#lab=${encodeURIComponent(JSON.stringify(out))}`;
}

/** What a fragment says; null if it says nothing that can be read. Whatever does not fit is left out. */
export function decode(fragment) {
  const match = /^#lab=(.*)$/s.exec(fragment || "");
  if (!match) return null;
  let raw;
  try {
    raw = JSON.parse(decodeURIComponent(match[1]));
  } catch {
    return null;
  }
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) return null;
  const out = { columns: [] };
  for (const name of TEXTS) if (typeof raw[name] === "string") out[name] = raw[name];
  for (const name of NUMBERS) if (Number.isSafeInteger(raw[name])) out[name] = raw[name];
  for (const column of Array.isArray(raw.columns) ? raw.columns.slice(0, COLUMNS) : []) {
    if (!column || typeof column !== "object" || typeof column.name !== "string") continue;
    const { name, ...fields } = column;
    out.columns.push({ name, fields });
  }
  return out;
}
