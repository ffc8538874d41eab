// A stream of events folded into what a column shows. Pure; the same code serves live runs, replay and history.
//
// Rewound steps are not forgotten: each goes to a mark at the place to which the row went back.

/** @returns an empty state; `apply` changes it in place. */
export function emptyState() {
  return {
    start: null,
    done: null,
    steps: [],
    marks: new Map(), // place -> {to, count, runs: [{steps, why}]}
    notes: {},
    moves: [], // the `mcmc` notes
    received: 0, // step events so far, rewound ones included
    rewinds: 0,
    dirty: 0, // steps before this place are as they were at the last look
    cut: null, // the text a move has taken away and not yet decided about
    next: "cut", // why what the next rewind takes back is gone
  };
}

/** Take one more message, O(1) but for a rewind, which is O(what it takes back). */
export function apply(state, name, value) {
  if (name === "step") {
    state.steps.push(value);
    state.received += 1;
  } else if (name === "rewind") rewind(state, value.to);
  else if (name === "note") note(state, value);
  else if (name === "start") state.start = value;
  else if (name === "done") state.done = value;
  return state;
}

function rewind(state, to) {
  const steps = state.steps.splice(to);
  if (!steps.length) return;
  state.rewinds += 1;
  state.dirty = Math.min(state.dirty, to);
  const mark = state.marks.get(to) || { to, count: 0, runs: [] };
  for (const [place, other] of state.marks) {
    if (place <= to) continue; // marks inside what goes are part of it now
    mark.count += other.count;
    mark.runs.push(...other.runs);
    state.marks.delete(place);
  }
  const run = { steps, why: state.next };
  mark.runs.push(run);
  mark.count += 1;
  state.marks.set(to, mark);
  state.cut = state.next === "rejected" ? state.cut : { mark, run };
  state.next = "cut";
}

function note(state, { name, value }) {
  state.notes[name] = value;
  if (name !== "mcmc") return;
  state.moves.push(value);
  const { cut } = state;
  state.cut = null;
  const how = verdict(value);
  if (how === "accepted") {
    if (cut) cut.run.why = "replaced";
    return;
  }
  if (!cut && how === "unchanged") return; // known to be the same before it was written
  state.next = how;
  if (!cut) return;
  // The text that was cut is there again: it was not given up, so no mark may strike it.
  const { mark, run } = cut;
  mark.runs.splice(mark.runs.indexOf(run), 1);
  mark.count -= 1;
  state.dirty = Math.min(state.dirty, mark.to);
  if (!mark.count) state.marks.delete(mark.to);
}

/** What became of a move: "accepted", "rejected", or "unchanged" where the proposal was the present text itself. */
export function verdict({ accepted, apart, length, log_ratio: ratio }) {
  if (!accepted) return "rejected";
  return ratio === 0 && apart >= length ? "unchanged" : "accepted";
}

/** How many moves ended in each way, in words: "2 accepted", "8 unchanged". */
export function verdicts(moves) {
  const found = { accepted: 0, rejected: 0, unchanged: 0 };
  for (const move of moves) found[verdict(move)] += 1;
  return Object.entries(found).filter(([, n]) => n).map(([how, n]) => `${n} ${how}`);
}

/** The number of places at which a record can be looked at: one after each step event. */
export function ticks(events) {
  let count = 0;
  for (const event of events) if (event.name === "step") count += 1;
  return count;
}

/**
 * The state after `tick` step events and the notes that follow them; all of it from the last tick on.
 * @param {{name: string, value: object}[]} events
 */
export function foldTo(events, tick, last = ticks(events)) {
  const state = emptyState();
  let left = tick;
  for (const { name, value } of events) {
    if (tick < last && left <= 0 && (name === "step" || name === "rewind" || name === "done")) break;
    apply(state, name, value);
    if (name === "step") left -= 1;
  }
  state.dirty = 0;
  return state;
}

/** How many leading steps two lists share, as the very same objects. */
export function shared(a, b) {
  const n = Math.min(a.length, b.length);
  let i = 0;
  while (i < n && a[i] === b[i]) i += 1;
  return i;
}

/** A run's strategy as {name, fields}. */
export function strategyOf(start) {
  const { name, ...fields } = start.strategy;
  return { name, fields };
}

/** How many blocks a power-sampling run has: the lengths at which blocks end, counted. */
export function blocks(fields, total) {
  if (!total) return null;
  const size = fields.block_size || (fields.num_blocks ? Math.ceil(total / fields.num_blocks) : 192);
  return Math.max(1, Math.ceil(total / size));
}

/** How many steps of each kind there are, in words: "57 steps", "15 soft", "36 said". */
export function counts(steps) {
  const found = new Map();
  for (const { kind } of steps) found.set(kind, (found.get(kind) || 0) + 1);
  const kinds = [...found].map(([kind, n]) => `${n} ${kind === "token" ? "said" : kind}`);
  return [`${steps.length} ${steps.length === 1 ? "step" : "steps"}`, ...(kinds.length > 1 ? kinds : [])];
}

/** What a column says of its state in one line, as parts. */
export function status(state) {
  const { steps, start, done, moves } = state;
  if (!start) return [];
  const { fields } = strategyOf(start);
  const parts = [];
  const step = steps[steps.length - 1];
  if (moves.length) {
    const move = moves[moves.length - 1];
    const of = blocks(fields, start.max_new_tokens);
    parts.push(`block ${move.block + 1}${of ? `/${of}` : ""}`, `move ${move.move + 1}`);
  }
  if (!step) return parts.length || done ? parts : ["reading the prompt"];
  if (done) return [...parts, ...counts(steps)];
  if (!moves.length) {
    let inPhase = 0;
    for (let i = steps.length - 1; i >= 0 && steps[i].phase === step.phase; i -= 1) inPhase += 1;
    const limit = step.phase === "think" ? fields.T_e : null;
    parts.push(`step ${inPhase}${limit ? ` of at most ${limit}` : ""}`);
  }
  if (typeof step.entropy === "number") parts.push(`H ${step.entropy.toFixed(2)}`);
  if (typeof step.end_prob === "number") parts.push(`end ${step.end_prob.toFixed(3)}`);
  return parts;
}

export const PHASES = { think: "Thinking", transition: "Transition", answer: "Answering" };
export const REASONS = {
  eos: "ended by itself",
  stop: "stop string",
  length: "budget used up",
  context: "no positions left",
  cancelled: "stopped",
};

/** The grade's status, whether the server sends a word or a record; null without a gold answer. */
export function gradeOf(done) {
  const grade = done && done.grade;
  if (!grade) return null;
  return typeof grade === "string" ? grade : grade.status || null;
}

/** The footer's figures: answer, grade, passes, latent steps, seconds. */
export function summary(done) {
  const usage = done.usage || {};
  const grade = gradeOf(done);
  const graded = done.grade && typeof done.grade === "object" ? done.grade.answer : null;
  return {
    answer: done.answer ?? graded ?? null,
    grade,
    reason: REASONS[done.reason] || done.reason,
    tokens: usage.tokens ?? 0,
    passes: usage.forward_passes ?? 0,
    latent: usage.latent_steps ?? 0,
    seconds: usage.seconds ?? 0,
  };
}
