// What one step says about itself: numbers, shades, captions. Pure functions of a step event.

const ENTROPY_FULL = 4; // nats at which a token has the strongest shade
const RANK_FULL = 50; // the rank at which it has
export const TOP_SHOWN = 20;

/** Text with its blanks and control characters visible. */
export function glyphs(text) {
  return text.replace(/[\u0000-\u0020\u007f\u00a0]/g, (c) => {
    if (c === " ") return "␣";
    if (c === "\u00a0") return "⍽";
    if (c === "\n") return "↵";
    if (c === "\u007f") return "␡";
    return String.fromCharCode(0x2400 + c.charCodeAt(0));
  });
}

/** A number for people: three digits, no noise; "–" for none. */
export function num(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  if (size !== 0 && (size < 10 ** -digits || size >= 1e6)) return x.toExponential(1).replace("-", "−");
  const text = Number.isInteger(x) ? String(x) : x.toFixed(size >= 100 ? 1 : digits);
  return text.replace("-", "−");
}

/** Whether a step was read as a vector and has no word of its own. */
export const wordless = (step) => step.kind === "soft" || step.kind === "latent";

/** The model's own probability of the token at temperature 1; null where there is no token. */
export function prob(step) {
  return typeof step.logprob === "number" ? Math.exp(step.logprob) : null;
}

/** The token's place among the candidates: {rank, beyond}; `beyond` if it is not among those that were kept. */
export function rank(step) {
  if (!step.top || step.token_id === undefined || step.token_id === null) return null;
  const place = step.top.ids.indexOf(step.token_id);
  return place < 0 ? { rank: step.top.ids.length + 1, beyond: true } : { rank: place + 1, beyond: false };
}

/** Three shades of a token, 0 (certain) to 1 (uncertain); null where the number is missing. */
export function shades(step) {
  const p = prob(step);
  const place = rank(step);
  return {
    p: p === null ? null : 1 - p,
    h: typeof step.entropy === "number" ? Math.min(1, step.entropy / ENTROPY_FULL) : null,
    r: place === null ? null : Math.min(1, Math.log(place.rank) / Math.log(RANK_FULL)),
  };
}

/** The same three as short texts. */
export function figures(step) {
  const place = rank(step);
  return {
    p: prob(step) === null ? "" : num(prob(step), 2),
    h: typeof step.entropy === "number" ? num(step.entropy, 2) : "",
    r: place === null ? "" : `${place.beyond ? ">" : ""}${place.beyond ? place.rank - 1 : place.rank}`,
  };
}

/**
 * Candidates as rows {id, text, p, w}, best first; those beyond `limit`, and those that the server has counted
 * instead of sending, are added up in a last row {rest}.
 */
export function candidates(step, limit = TOP_SHOWN) {
  if (!step.top) return [];
  const { ids, probs, weights, texts } = step.top;
  const rows = ids.map((id, i) => ({
    id,
    text: texts && texts[i] !== undefined ? texts[i] : `#${id}`,
    p: probs[i],
    w: weights ? weights[i] : null,
  }));
  const unsent = step.top.rest;
  if (rows.length <= limit && !unsent) return rows;
  // The probability of what was not sent is not known, and a sum without it would be wrong.
  const rest = { rest: 0, id: null, text: "", p: unsent ? null : 0, w: 0 };
  if (unsent) {
    rest.rest += unsent.count;
    rest.w += unsent.weight;
  }
  for (const row of rows.slice(limit)) {
    rest.rest += 1;
    rest.p = rest.p === null ? null : rest.p + row.p;
    rest.w += row.w || 0;
  }
  return [...rows.slice(0, limit), rest];
}

/** The parts of a soft step's column: what was fed, as shares of the column's height. */
export function fedParts(step, limit = TOP_SHOWN) {
  const fed = candidates(step, limit).filter((row) => row.w > 0);
  const whole = Math.max(1, fed.reduce((sum, row) => sum + row.w, 0));
  return fed.map((row) => ({ ...row, share: row.w / whole })).sort((a, b) => b.share - a.share);
}

/** What a token's box shows: its text, or a sign where it has none. */
export function face(step, endIds = []) {
  if (step.text) return step.text;
  if (endIds.includes(step.token_id)) return "∎";
  return "◌"; // part of a character, or a token that prints nothing
}

const KINDS = {
  token: "said",
  soft: "soft mixture, not said",
  latent: "latent state, not said",
  forced: "forced text",
  filler: "filler",
  prompt: "prompt",
};

/** The card's lines: [label, value] pairs. */
export function facts(step, endIds = []) {
  const out = [];
  const place = rank(step);
  if (!wordless(step)) {
    out.push(["Token", step.text ? glyphs(step.text) : face(step, endIds)], ["Id", num(step.token_id)]);
    if (prob(step) !== null) out.push(["Probability", num(prob(step), 4)]);
    if (typeof step.logprob === "number") out.push(["Log-probability", num(step.logprob)]);
    if (typeof step.sampled_logprob === "number") {
      out.push(["Sampled with", num(Math.exp(step.sampled_logprob), 4)]);
    }
    if (place) out.push(["Rank", place.beyond ? `beyond ${place.rank - 1}` : String(place.rank)]);
  }
  if (typeof step.entropy === "number") out.push(["Entropy", `${num(step.entropy)} nats`]);
  if (typeof step.end_prob === "number") out.push(["End probability", num(step.end_prob, 4)]);
  if (typeof step.norm_ratio === "number") out.push(["Norm", `${num(step.norm_ratio)} of its parts`]);
  for (const [name, value] of Object.entries(step.notes || {})) {
    if (typeof value === "number") out.push([name, num(value)]);
    else if (typeof value === "string" || typeof value === "boolean") out.push([name, String(value)]);
  }
  return out;
}

/** A step's title: "Step 12 · soft mixture, not said". */
export const title = (step) => `Step ${step.index + 1} · ${KINDS[step.kind] || step.kind}`;

/** A step in words, for a screen reader. */
export function caption(step, endIds = []) {
  const parts = [title(step)];
  if (step.kind === "soft") {
    const fed = fedParts(step, 5).map((row) => `${glyphs(row.text)} ${num(row.w, 2)}`);
    parts.push(`fed ${fed.join(", ") || "a mixture"}`);
  } else if (step.kind === "latent") {
    const read = candidates(step, 3).map((row) => `${glyphs(row.text)} ${num(row.p, 2)}`);
    parts.push(read.length ? `lens reads ${read.join(", ")}` : "a hidden state");
  } else parts.push(`"${glyphs(face(step, endIds))}"`);
  if (prob(step) !== null) parts.push(`probability ${num(prob(step), 3)}`);
  if (typeof step.entropy === "number") parts.push(`entropy ${num(step.entropy, 2)}`);
  return parts.join(", ");
}

/** How a step is drawn: `strip` (a column), `chips` (text fed between the phases) or `text`. */
export function form(step) {
  if (wordless(step)) return "strip";
  return step.phase === "transition" || step.kind === "filler" ? "chips" : "text";
}
