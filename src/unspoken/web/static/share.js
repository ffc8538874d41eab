// The page's parameters in an address: after the #, so that they are sent to nobody. Pure.

const COLUMNS = 4;
const text = (value) => typeof value === "string";
const KINDS = {
  prompt: text,
  system: text,
  gold: text,
  depth: text,
  model: text,
  stop: (value) => Array.isArray(value) && value.every(text),
  seed: Number.isSafeInteger,
  max_new_tokens: Number.isSafeInteger,
};

/** The fragment that says all of `state`: {prompt, system, ..., model, columns: [{name, fields}]}. */
export function encode(state) {
  const out = {};
  for (const [name, fits] of Object.entries(KINDS)) {
    const value = state[name];
    if (fits(value) && value.length !== 0) out[name] = value;
  }
  out.columns = (state.columns || []).slice(0, COLUMNS).map(({ name, fields }) => ({ name, ...fields }));
  return `#lab=${encodeURIComponent(JSON.stringify(out))}`;
}

/**
 * What a fragment says; null if it is not the lab's.
 * @returns {?object} the state, and as `left` the names of what was left out because it cannot be read; with
 *   `damaged: true` that is all of it
 */
export function decode(fragment) {
  const match = /^#lab=(.*)$/s.exec(fragment || "");
  if (!match) return null;
  let raw = null;
  try {
    raw = JSON.parse(decodeURIComponent(match[1]));
  } catch {
    // damaged, as below
  }
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) return { columns: [], left: [], damaged: true };
  const { columns = [], ...rest } = raw;
  const out = { columns: [], left: [] };
  for (const [name, value] of Object.entries(rest)) {
    if (Object.hasOwn(KINDS, name) && KINDS[name](value)) out[name] = value;
    else out.left.push(name);
  }
  if (!Array.isArray(columns)) out.left.push("columns");
  for (const [i, column] of (Array.isArray(columns) ? columns : []).entries()) {
    if (i < COLUMNS && column && text(column.name)) {
      const { name, ...fields } = column;
      out.columns.push({ name, fields });
    } else out.left.push(`column ${i + 1}`);
  }
  return out;
}

/** What must be said of an address that was opened on the server of `model`, or "". */
export function remark({ damaged, left, model: meant }, model) {
  if (damaged) return "This address is damaged: its parameters cannot be read. Ask for a new one, or go on from here.";
  const said = [];
  if (left.length) said.push(`A part of this address cannot be read and was left out: ${left.join(", ")}.`);
  if (meant && meant !== model) said.push(`This address was made with the model ${meant}; here it is ${model}.`);
  return said.join(" ");
}
