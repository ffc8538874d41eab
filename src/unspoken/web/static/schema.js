// From a strategy's JSON schema to form fields and back. Pure.

/** One field of a form. `nullable`: empty means null. */
export function describe(name, schema) {
  const options = schema.anyOf || schema.oneOf || [schema];
  const types = options.flatMap((o) => (o.enum ? ["enum"] : o.type || []));
  const nullable = types.includes("null") || options.some((o) => o.const === null);
  const main = options.find((o) => o.type !== "null" && o.const !== null) || schema;
  const values = (schema.enum || main.enum || []).filter((v) => v !== null);
  let type = [main.type].flat().find((t) => t && t !== "null") || "json";
  if (values.length) type = "enum";
  else if (types.includes("object") || !["integer", "number", "boolean", "string"].includes(type)) type = "json";
  const bound = (key) => schema[key] ?? main[key] ?? null;
  return {
    name,
    type,
    values,
    nullable: nullable || (schema.enum || []).includes(null),
    default: schema.default ?? null,
    minimum: bound("minimum") ?? bound("exclusiveMinimum"),
    maximum: bound("maximum") ?? bound("exclusiveMaximum"),
    above: bound("exclusiveMinimum") !== null && bound("minimum") === null,
    below: bound("exclusiveMaximum") !== null && bound("maximum") === null,
    help: schema.description || main.description || "",
  };
}

/** All fields of a strategy, in the order of its declaration. */
export function fieldsOf(strategy) {
  const properties = (strategy.schema && strategy.schema.properties) || {};
  return Object.entries(properties).map(([name, schema]) => describe(name, schema));
}

/** The step of a slider: whole numbers, or about a hundredth of the range, rounded to 1, 2 or 5. */
export function stepOf(field) {
  if (field.type === "integer") return 1;
  const span = field.maximum - field.minimum;
  if (!Number.isFinite(span) || span <= 0) return 0.01;
  const rough = span / 100;
  const power = 10 ** Math.floor(Math.log10(rough));
  const lead = rough / power;
  return Number(((lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10) * power).toPrecision(1));
}

/**
 * The range of a field's slider: that of the field, or where it is open or very wide, some way beyond the default.
 * The box beside it takes all that is allowed. Null where there is nothing to slide.
 */
export function sliderRange(field) {
  if ((field.type !== "integer" && field.type !== "number") || field.minimum === null || field.default === null) return null;
  const far = nice(4 * Math.max(field.default, field.type === "integer" ? 4 : 0.5));
  const maximum = field.maximum !== null && field.maximum <= 4 * far ? field.maximum : far;
  const range = { ...field, maximum };
  return { minimum: field.minimum, maximum, step: stepOf(range) };
}

function nice(x) {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 2.5, 4, 5, 8, 10].find((n) => n * power >= x - 1e-9) * power;
}

/**
 * What was typed, as a value.
 * @returns {{value: *}|{problem: string}}
 */
export function parse(field, text) {
  if (field.type === "boolean") return { value: Boolean(text) };
  if (field.type === "enum") return { value: field.values.find((v) => String(v) === text) ?? null };
  if (field.type === "string") return { value: text === "" && field.nullable ? null : text };
  const trimmed = text.trim();
  if (trimmed === "") {
    return field.nullable ? { value: null } : { problem: `Give a value; the default is ${show(field, field.default)}.` };
  }
  if (field.type === "json") return parseJson(trimmed);
  const value = Number(trimmed);
  if (!Number.isFinite(value)) return { problem: "This must be a number." };
  if (field.type === "integer" && !Number.isInteger(value)) return { problem: "This must be a whole number." };
  const { minimum, maximum } = field;
  if (minimum !== null && (field.above ? value <= minimum : value < minimum)) {
    return { problem: `This must be ${field.above ? "above" : "at least"} ${minimum}.` };
  }
  if (maximum !== null && (field.below ? value >= maximum : value > maximum)) {
    return { problem: `This must be ${field.below ? "below" : "at most"} ${maximum}.` };
  }
  return { value };
}

function parseJson(text) {
  if (!/^[[{"]/.test(text)) return { value: text }; // a name, such as an inner strategy's
  try {
    return { value: JSON.parse(text) };
  } catch {
    return { problem: "This is neither a name nor valid JSON." };
  }
}

/** A value as it stands in its box. */
export function show(field, value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

/** Only what differs from the defaults: what is sent, and what a shared address holds. */
export function changed(fields, values) {
  const out = {};
  for (const field of fields) {
    if (field.name in values && !same(values[field.name], field.default)) out[field.name] = values[field.name];
  }
  return out;
}

/** The preset that these values are, or "". */
export function presetOf(presets, fields, values) {
  const mine = changed(fields, values);
  for (const [name, preset] of Object.entries(presets || {})) {
    const theirs = changed(fields, preset);
    const keys = new Set([...Object.keys(mine), ...Object.keys(theirs)]);
    if (keys.size && [...keys].every((k) => same(mine[k], theirs[k]))) return name;
  }
  return "";
}

/** Sentences by field from the server: about the strategy's fields, about the request's, and about neither. */
export function splitErrors(errors, names) {
  const mine = {};
  const general = {};
  const rest = [];
  for (const [key, sentences] of Object.entries(errors || {})) {
    const name = key.replace(/^strategy\./, "");
    const list = [sentences].flat().map(String);
    if (names.includes(name) && (key !== name || !GENERAL.includes(name))) mine[name] = list;
    else if (GENERAL.includes(name)) general[name] = list;
    else rest.push(...list);
  }
  return { mine, general, rest };
}

export const GENERAL = ["prompt", "system", "max_new_tokens", "seed", "stop", "gold", "depth"];
