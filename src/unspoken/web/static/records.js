// Records of runs as files: JSON with every event, CSV with a line a step. Pure.
import { prob, rank } from "./tokens.js";

/** All that was received, as one JSON text. */
export function toJson(runs) {
  const out = runs.map(({ start, events, done }) => ({
    start,
    events: events.map(({ name, value }) => (value.event ? value : { event: name, ...value })),
    done,
  }));
  return JSON.stringify({ format: "unspoken-lab-1", runs: out }, null, 1);
}

const COLUMNS = [
  "column", "strategy", "seed", "index", "phase", "kind", "token_id", "text", "probability", "logprob",
  "sampled_logprob", "rank", "entropy", "end_prob", "norm_ratio", "fed",
];

const FORMULA = /^[=+\-@\t\r].*[(!|]/s; // what a spreadsheet may compute, or call a program by; "=" and "+5" are texts
const cell = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  return `"${(FORMULA.test(value) ? `'${value}` : value).replaceAll('"', '""')}"`;
};

/**
 * The steps that were kept, one line each, texts as they are (RFC 4180). `fed` alone is JSON: text and weight of what a
 * soft step was made of.
 */
export function toCsv(runs) {
  const lines = [COLUMNS.join(",")];
  runs.forEach(({ start, steps }, i) => {
    for (const step of steps) {
      const place = rank(step);
      const fed = step.top && step.kind === "soft" ? fedOf(step.top) : null;
      lines.push(
        [
          i + 1, start.strategy.name, start.seed, step.index, step.phase, step.kind, step.token_id, step.text || null,
          prob(step), step.logprob, step.sampled_logprob, place && !place.beyond ? place.rank : null, step.entropy,
          step.end_prob, step.norm_ratio, fed,
        ].map(cell).join(","),
      );
    }
  });
  return `${lines.join("\r\n")}\r\n`;
}

function fedOf({ ids, weights, texts }) {
  const parts = ids.map((id, i) => [texts && texts[i] !== undefined ? texts[i] : `#${id}`, weights[i]]);
  return JSON.stringify(parts.filter(([, w]) => w > 0));
}

/** The messages of a kept run (`/api/run/ID`) as the page keeps them. */
export function messages(run) {
  const out = [{ name: "start", value: run.start }];
  for (const event of run.events || []) out.push({ name: event.event, value: event });
  const last = out[out.length - 1];
  if (run.done && last.name === "done") out.pop();
  if (run.done) out.push({ name: "done", value: run.done });
  return out;
}
