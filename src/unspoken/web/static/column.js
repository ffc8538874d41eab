// One column: a strategy, its settings, and a run of it.
import { el, fresh, say } from "./dom.js";
import { apply, emptyState, foldTo, gradeOf, PHASES, status, strategyOf, summary, verdict, verdicts } from "./fold.js";
import { SettingsForm } from "./form.js";
import { splitErrors } from "./schema.js";
import { Spark, thresholdOf } from "./spark.js";
import { StepsView } from "./steps.js";
import { call, stream } from "./stream.js";
import { num } from "./tokens.js";

const NODES = 25; // elements made in one frame
const BUDGET = 6; // milliseconds of a frame for reading messages
const MARKS = 40; // moves whose marks are shown
const CLOSE_AFTER = 2000; // milliseconds that a stopped run may take to end by itself
const MOVES = { accepted: "✓", rejected: "✗", unchanged: "=" };
const SIGNS = { correct: "✓", wrong: "✗", unparsed: "?", truncated: "…", ungraded: "–" };

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(10)), (b) => b.toString(16).padStart(2, "0")).join("");

export class Column {
  /** @param {object} lab gives `strategies`, `request()`, `endIds`, `draw()`, `follow()`, `theme()`, `remove(column)`, `details(column)`,
   *   `lens(column)` and `refused(error, column)` */
  constructor(lab, name, fields = {}) {
    this.lab = lab;
    this.build();
    this.steps = new StepsView(this.body, lab.endIds);
    this.form = new SettingsForm(this.settings, () => this.configured());
    this.reset();
    this.choose(name, fields);
  }

  build() {
    const id = fresh("column");
    const button = (text, label, onclick, more = {}) =>
      el("button", { type: "button", className: "quiet", title: label, "aria-label": label, onclick, ...more }, text);
    this.menu = el("select", { "aria-label": "Strategy", onchange: () => this.choose(this.menu.value) });
    for (const s of this.lab.strategies) this.menu.append(el("option", { value: s.name }, s.title || s.name));
    this.gear = button("Settings", "Settings of this strategy", () => this.open(this.settings.hidden), {
      "aria-expanded": "false", "aria-controls": `${id}-settings`,
    });
    this.removeButton = button("✕", "Remove this column", () => this.lab.remove(this));
    this.formula = el("p", { className: "formula" });
    this.settings = el("div", { className: "settings", id: `${id}-settings`, hidden: true });
    this.message = el("p", { className: "problem", role: "alert" });
    this.fitted = el("p", { className: "fitted" });
    this.line = el("p", { className: "status" });
    this.movesLine = el("p", { className: "moves", hidden: true });
    this.body = el("div", {
      className: "body", tabIndex: 0, role: "group", "aria-label": "Steps; arrow keys move from one to the next",
    });
    const again = () => {
      this.drawn = "";
      this.lab.draw();
    };
    this.entropy = new Spark("entropy", "--entropy", again);
    this.ending = new Spark("end p", "--ending", again);
    this.sum = new Spark("Σ log p", "--ending", again);
    this.sum.root.hidden = true;
    this.result = el("p", { className: "result" });
    this.lensButton = button("Lens", "Read the chosen steps at every layer", () => this.lab.lens(this), { disabled: true });
    this.infoButton = button("Details", "Prompt, parameters and notes of this run", () => this.lab.details(this), { disabled: true });
    this.root = el("article", { className: "column", id },
      el("header", {}, this.menu, this.gear, this.removeButton), this.formula, this.settings, this.message,
      this.fitted, this.line, this.movesLine, this.body,
      el("div", { className: "sparks" }, this.entropy.root, this.ending.root, this.sum.root),
      el("footer", {}, this.result, el("span", { className: "buttons" }, this.lensButton, this.infoButton)));
    this.root.column = this;
  }

  reset() {
    this.queue = [];
    this.events = [];
    this.total = 0;
    this.state = emptyState();
    this.view = null; // another state, while one is looked back at
    this.span = null;
    this.running = false;
    this.stopped = false;
    this.painted = null;
    this.drawn = "";
    this.steps.clear();
  }

  /** Tokens that end thinking or the text: those that may print nothing. */
  get endIds() {
    return this.steps.endIds;
  }

  /** Take a strategy; its settings start from the defaults. */
  choose(name, fields = {}) {
    const known = this.lab.strategies.find((s) => s.name === name);
    const strategy = known || this.lab.strategies[0];
    this.strategy = strategy;
    this.menu.value = strategy.name;
    this.menu.title = strategy.summary || "";
    this.formula.textContent = strategy.formula || strategy.summary || "";
    this.formula.title = strategy.summary || "";
    this.form.use(strategy, fields);
    const odd = Object.keys(fields).filter((field) => !this.form.fields.some((f) => f.name === field));
    if (!known) this.message.textContent = `There is no strategy ${name} here; this is ${strategy.name}.`;
    else this.message.textContent = odd.length ? `${strategy.name} has no setting ${odd.join(", ")} here.` : "";
    this.configured();
  }

  configured() {
    const count = Object.keys(this.form.changes).length;
    this.gear.replaceChildren(el("span", { className: "word" }, "Settings"), count ? ` · ${count}` : "");
  }

  open(yes) {
    this.settings.hidden = !yes;
    this.gear.setAttribute("aria-expanded", String(yes));
  }

  get config() {
    return { name: this.strategy.name, fields: this.form.changes };
  }

  // -- running ----------------------------------------------------------------------------------

  async run() {
    this.abandon();
    if (!this.form.valid) {
      this.open(true);
      this.form.focusFirstError();
      return;
    }
    this.reset();
    this.form.clearErrors();
    this.message.textContent = "";
    this.running = true;
    const abort = new AbortController();
    this.abort = abort;
    const { name, fields } = this.config;
    this.id = newId();
    const body = { id: this.id, ...this.lab.request(), strategy: { name, ...fields }, trace: "full" };
    this.lab.draw();
    try {
      await stream(body, abort.signal, (event, data) => {
        if (this.abort === abort) this.take(event, data);
      });
    } catch (error) {
      if (this.abort === abort && error.name !== "AbortError") this.refused(error);
    }
    if (this.abort !== abort) return;
    this.running = false;
    this.lab.draw();
  }

  /** End the run at its next step, and keep what it has; without an answer the connection is closed. */
  stop() {
    if (!this.running) return;
    const { abort } = this;
    const close = () => {
      if (this.abort === abort) this.abandon();
    };
    this.stopped = true;
    call("/api/cancel", { id: this.id }).catch(close);
    setTimeout(close, CLOSE_AFTER);
  }

  /** Close the connection, which cancels the run. */
  abandon() {
    if (!this.running) return;
    this.abort.abort();
    this.running = false;
    this.lab.draw();
  }

  take(name, data) {
    this.queue.push([name, data]);
    this.lab.follow();
  }

  refused(error) {
    const names = this.form.fields.map((f) => f.name);
    const { mine, general, rest } = splitErrors(error.fields, names);
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    const placed = Object.keys(mine).length + Object.keys(general).length > 0;
    const said = placed ? rest.join(" ") : error.message;
    const hint = error.status === 401 ? "Give the key, then run again." : error.hint || "";
    this.message.textContent = `${said} ${said ? hint : ""}${wait}`.trim();
    if (this.form.explain(mine)) {
      this.open(true);
      this.form.focusFirstError();
    }
    this.lab.refused(error, general);
  }

  /** Show a kept run: messages as `records.js` gives them. */
  load(messages) {
    this.abandon();
    this.reset();
    this.abort = null;
    for (const { name, value } of messages) this.queue.push([name, value]);
    this.lab.draw();
  }

  // -- drawing ----------------------------------------------------------------------------------

  /** Read what has come, for some milliseconds; whether all is read. */
  drain() {
    const until = performance.now() + BUDGET;
    let read = 0;
    for (; read < this.queue.length; read += 1) {
      if (read % 16 === 15 && performance.now() > until) break;
      const [name, data] = this.queue[read];
      this.receive(name, typeof data === "string" ? JSON.parse(data) : data);
    }
    if (read) this.queue = this.queue.slice(read);
    return this.queue.length === 0;
  }

  receive(name, value) {
    if (name === "error") {
      const error = value.error || value;
      this.message.textContent = `${error.message || "The run failed."} ${error.hint || ""}`.trim();
      return;
    }
    this.events.push({ name, value });
    apply(this.state, name, value);
    if (name === "step") this.total += 1;
    if (name === "done") {
      const end = summary(value);
      if (String(value.reason).startsWith("error")) this.message.textContent = value.reason.replace(/^error: ?/, "");
      say(`${this.strategy.name}: ${end.grade || end.reason}, answer ${end.answer ?? "not read"}, ${end.passes} passes`);
    }
  }

  /** After all columns have been written: keep the newest step in view. */
  settle() {
    this.steps.scrollOn();
  }

  /** One frame's writing, with or without what is not the steps themselves; whether nothing is left to do. */
  frame(figures) {
    let finished = this.drain();
    const state = this.view || this.state;
    const live = !this.view && this.running;
    const from = this.painted === state ? state.dirty : null;
    finished = this.steps.sync(state, { from, limit: NODES, live }) && finished;
    state.dirty = this.steps.steps.length;
    this.painted = state;
    if (figures || this.figured !== state.start) {
      this.paintStatus(state);
      this.paintSparks(state);
      this.figured = state.start;
    }
    if (finished || !state.done) this.paintResult(state); // the result comes when all of its steps are there
    return finished;
  }

  /** Look at the state after so many steps; null goes on with the present. */
  look(tick) {
    this.view = tick === null || tick >= this.total ? null : foldTo(this.events, tick, this.total);
  }

  paintStatus(state) {
    const last = state.steps[state.steps.length - 1];
    const phase = state.moves.length ? "Moving" : last ? PHASES[last.phase] : "";
    const parts = status(state);
    if (this.running && !state.start) parts.push("waiting for the model");
    if (!this.running && !state.start) parts.push(this.stopped ? "stopped" : "not run yet");
    const text = parts.join(" · ");
    if (text !== this.line.shown || phase !== this.line.phase) {
      this.line.replaceChildren(el("b", {}, state.done ? "Done" : phase), phase || state.done ? " " : "", text);
      this.line.shown = text;
      this.line.phase = phase;
    }
    const fitted = (state.start?.fitted || []).join(" ");
    if (this.fitted.textContent !== fitted) this.fitted.textContent = fitted;
    const moves = state.moves.length;
    // The line is there before the first move, so that nothing shifts when it comes.
    const moving = moves > 0 || Boolean(state.start && "mcmc_steps" in strategyOf(state.start).fields);
    this.movesLine.hidden = !moving;
    this.root.classList.toggle("moving", moving);
    if (moves === this.movesLine.count) return;
    this.movesLine.count = moves;
    const signs = state.moves.slice(-MARKS).map((m) => {
      const how = verdict(m);
      const said = how === "unchanged" ? "unchanged, the proposal was the same text" : `${how}, log ratio ${num(m.log_ratio)}`;
      const title = `block ${m.block + 1}, move ${m.move + 1}: ${said}`;
      return el("i", { className: how, title, "aria-hidden": "true" }, MOVES[how]);
    });
    const said = el("span", { className: "verdicts" }, el("span", { className: "sr" }, "Moves: "), verdicts(state.moves).join(" · "));
    this.movesLine.replaceChildren(said, el("span", { className: "signs" }, ...signs));
  }

  paintSparks(state) {
    const { steps, start, moves } = state;
    const theme = this.lab.theme();
    const drawn = [this.events.length, steps.length, Boolean(this.view), theme].join();
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const thresholds = start ? start.thresholds : {};
    const cursor = this.view ? Math.max(0, steps.length - 1) : null;
    const all = this.view ? this.state.steps : steps;
    const series = this.view && this.state.steps.length >= steps.length && all[0] === steps[0] ? all : steps;
    this.entropy.draw(series.map((s) => s.entropy), {
      threshold: thresholdOf(thresholds, ["entropy", "tau"]), top: 1, cursor, theme,
    });
    const ends = series.map((s) => s.end_prob);
    const moving = !this.movesLine.hidden;
    this.sum.root.hidden = !moving;
    this.ending.root.hidden = moving;
    if (!moving) {
      this.ending.draw(ends, { threshold: thresholdOf(thresholds, ["end"]), top: 0.02, cursor, theme });
      return;
    }
    const sums = moves.map((m) => m.logprob);
    const low = sums.reduce((a, b) => Math.min(a, b), Infinity);
    this.sum.draw(sums, { base: low - 1, text: num(sums[sums.length - 1], 1), theme });
  }

  paintResult(state) {
    const { done } = state;
    const key = done || (this.running ? "running" : "idle");
    if (this.result.shown === key) return;
    this.result.shown = key;
    this.infoButton.disabled = !state.start;
    this.lensButton.disabled = !done || !done.run;
    this.result.replaceChildren();
    this.result.className = "result";
    if (!done) return;
    const end = summary(done);
    const grade = gradeOf(done);
    this.result.classList.add(grade || "plain");
    const parts = [...(grade ? [grade] : []), `${end.passes} passes`];
    if (end.latent) parts.push(`${end.latent} latent`);
    parts.push(`${num(end.seconds, 1)} s`);
    if (!grade || grade === "truncated" || done.reason !== "eos") parts.push(end.reason);
    this.result.append(
      el("b", {}, `${grade ? `${SIGNS[grade] || ""} ` : ""}${end.answer ?? "no answer read"}`),
      el("span", { className: "muted" }, ...parts.flatMap((part, i) => [i ? " · " : "", el("span", {}, part)])));
  }

  // -- for others -------------------------------------------------------------------------------

  /** The run as a record, or null. */
  get record() {
    const { start, done, steps } = this.state;
    if (!start) return null;
    return { start, done, steps, events: this.events.filter((e) => e.name !== "start" && e.name !== "done") };
  }
}
