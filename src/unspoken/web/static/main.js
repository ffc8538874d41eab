// The page: loads what the server offers, and connects the parts.
import { makeAsk } from "./ask.js";
import { watch } from "./card.js";
import { Column } from "./column.js";
import { $, download, el, frames, say } from "./dom.js";
import { strategyOf } from "./fold.js";
import { makeHistory } from "./history.js";
import { askForKey } from "./key.js";
import { watchKeys } from "./keys.js";
import * as lens from "./lens.js";
import { picture } from "./png.js";
import { toCsv, toJson } from "./records.js";
import { makeScrub } from "./scrub.js";
import { decode, encode, remark } from "./share.js";
import { call } from "./stream.js";
import { makeTheme, seenTheme } from "./theme.js";

const MOST_COLUMNS = 4;
const FIGURES = 1000; // milliseconds between two drawings of figures and charts in a run
const WRITING = 12; // milliseconds of a frame in which columns are drawn
const FIRST = ["soft", "cot"]; // the columns of a new page

class Lab {
  constructor() {
    this.columns = [];
    this.strategies = [];
    this.endIds = [];
    this.session = Math.random().toString(36).slice(2, 12);
    this.turn = 0; // the column that is drawn first
    this.asked = 0; // how often drawing was asked for; each column knows when it was last drawn
    this.hasty = false; // whether the next drawing is one that the user waits for
    this.figured = 0; // when figures and charts were last drawn
    this.drawing = frames(() => this.frame());
    this.theme = seenTheme;
    this.ask = makeAsk(this);
    this.scrub = makeScrub(this);
    makeTheme(() => this.draw());
    makeHistory(this);
    watch($("columns"), (node) => node.closest(".column").column);
    watchKeys($("columns"), this);
    addEventListener("hashchange", () => this.open(decode(location.hash)));
  }

  /** Draw at once, for what the user does. */
  draw() {
    this.asked += 1;
    this.hasty = true;
    this.drawing.now();
  }

  /** Draw what has come, when the processor can be spared. */
  follow() {
    this.asked += 1;
    this.drawing.soon();
  }

  async begin() {
    $("retry").hidden = true;
    try {
      const [status, strategies] = await Promise.all([call("/api/model-status"), call("/api/strategies")]);
      this.model = status.name;
      $("model").textContent = [status.name, status.dtype, status.device].filter(Boolean).join(" · ");
      this.endIds = status.eos_ids || [];
      this.strategies = Array.isArray(strategies) ? strategies : strategies.strategies;
    } catch (error) {
      $("model").textContent = "no model";
      if (error.status === 401) askForKey(() => this.begin());
      else {
        $("general-error").textContent = `${error.message} ${error.hint}`.trim();
        $("retry").hidden = false;
      }
      return;
    }
    $("general-error").textContent = "";
    this.open(decode(location.hash) || { columns: [] });
    document.documentElement.dataset.ready = "yes";
  }

  /** Take the parameters of a shared address. */
  open(state) {
    if (!state) return;
    const whole = state.left && !state.damaged; // an address leaves out what is empty
    this.ask.fill(whole ? { system: "", gold: "", stop: [], depth: "", ...state } : state);
    for (const column of [...this.columns]) this.remove(column, true);
    const known = this.strategies.map((s) => s.name);
    const columns = state.columns.length ? state.columns : FIRST.filter((n) => known.includes(n)).map((name) => ({ name }));
    for (const { name, fields } of columns.length ? columns : [{ name: known[0] }]) this.add(name, fields);
    $("general-error").textContent = state.left ? remark(state, this.model) : "";
  }

  add(name, fields) {
    if (this.columns.length >= MOST_COLUMNS) return null;
    const column = new Column(this, name, fields);
    column.reading = (i) => lens.read(column.state.done.run, i, i);
    this.columns.push(column);
    $("columns").append(column.root);
    this.arranged();
    return column;
  }

  remove(column, even = false) {
    if (this.columns.length === 1 && !even) return;
    column.abandon();
    const at = this.columns.indexOf(column);
    this.columns.splice(at, 1);
    column.root.remove();
    this.arranged();
    if (!even) this.columns[Math.max(0, at - 1)].menu.focus();
  }

  arranged() {
    $("columns").style.setProperty("--columns", String(this.columns.length));
    this.columns.forEach((column, i) => {
      column.root.setAttribute("aria-label", `Column ${i + 1}`);
      column.removeButton.disabled = this.columns.length === 1;
    });
    $("add").disabled = this.columns.length >= MOST_COLUMNS;
    this.draw();
  }

  get running() {
    return this.columns.some((column) => column.running);
  }

  request() {
    return { ...this.shared, session: this.session };
  }

  run() {
    if (!this.strategies.length) {
      this.begin(); // the server could not be asked before; perhaps it can now
      return;
    }
    this.shared = this.ask.check();
    if (!this.shared) return;
    this.scrub.live();
    lens.close();
    say("Running");
    for (const column of this.columns) column.run();
  }

  stop() {
    for (const column of this.columns) column.stop();
    say("Stopping");
  }

  refused(error, general) {
    if (error.status === 401) askForKey(() => {});
    if (Object.keys(general).length) this.ask.explain(general);
  }

  lens(column) {
    lens.show(column);
  }

  details(column) {
    const { start, notes, done } = column.state;
    const { model, seed, max_new_tokens, thresholds, end_ids } = start;
    const about = { model, seed, max_new_tokens, thresholds, end_ids, run: done?.run };
    const part = (title, text) => [el("h3", {}, title), el("pre", { tabIndex: 0 }, text)];
    $("details-body").replaceChildren(
      ...part(`Prompt, ${start.prompt_tokens} tokens`, start.prompt_text || ""),
      ...part("Strategy", JSON.stringify(start.strategy, null, 2)),
      ...part("Run", JSON.stringify(about, null, 2)),
      ...part("Notes", JSON.stringify(notes, null, 2)));
    $("details").showModal();
  }

  /** Show a kept run in a column that has none, or in a new one, or in the last. */
  reopen(run, messages) {
    const { name, fields } = strategyOf(run.start);
    const free = this.columns.find((c) => !c.events.length && !c.running);
    const column = free || this.add(name) || this.columns[this.columns.length - 1];
    column.choose(name, fields);
    const { prompt, seed, max_new_tokens: steps, stop, depth } = run.start;
    const asked = prompt && typeof prompt === "object" ? { prompt: prompt.user, system: prompt.system || "" } : {};
    if (free && this.columns.every((c) => c === column || !c.events.length)) {
      this.ask.fill({ ...asked, seed, max_new_tokens: steps, stop, depth: depth || "" });
    }
    this.scrub.live();
    column.load(messages);
    column.root.scrollIntoView({ block: "nearest" });
    column.body.focus({ preventScroll: true });
  }

  get runs() {
    return this.columns.map((column) => column.record).filter(Boolean);
  }

  async save(kind) {
    const { runs } = this;
    if (!runs.length) {
      $("general-error").textContent = "There is nothing to export yet: run something first.";
      return;
    }
    const name = `unspoken-${runs.map((r) => r.start.strategy.name).join("-")}.${kind}`;
    if (kind === "json") download(name, new Blob([toJson(runs)], { type: "application/json" }));
    else if (kind === "csv") download(name, new Blob([toCsv(runs)], { type: "text/csv" }));
    else download(name, await picture(runs, document.documentElement.dataset.colour));
  }

  async share() {
    const shared = this.ask.shared();
    if (!shared) return;
    const fragment = encode({ ...shared, model: this.model, columns: this.columns.map((c) => c.config) });
    history.replaceState(null, "", fragment);
    let said = "The address has it";
    try {
      await navigator.clipboard.writeText(location.href);
      said = "Copied";
    } catch {
      // no clipboard here: the address bar has it
    }
    $("share").textContent = said;
    say("The address of this page now holds all parameters");
    setTimeout(() => ($("share").textContent = "Share"), 1800);
  }

  /** One frame's writing; whether more is to be done in the next. */
  frame() {
    let more = this.scrub.advance();
    const figures = this.hasty || !this.running || performance.now() - this.figured > FIGURES;
    // As many columns as fit into a part of the frame, the next ones first in the next: no frame lays out all of them
    // when each has much to show.
    const until = performance.now() + WRITING;
    const due = this.columns.map((_, i) => this.columns[(this.turn + i) % this.columns.length]);
    let written = 0;
    for (const column of due) {
      if (written && performance.now() > until) break;
      written += 1;
      column.pending = !column.frame(figures);
      column.seen = this.asked;
    }
    for (const column of due.slice(0, written)) column.settle(); // reads the layout: once all of them are written
    this.turn = (this.turn + written) % Math.max(1, this.columns.length);
    more = more || this.columns.some((column) => column.pending || column.seen !== this.asked);
    if (figures) {
      this.scrub.paint();
      if (!more) this.hasty = false;
      if (!more) this.figured = performance.now();
    } else {
      this.later ||= setTimeout(() => {
        this.later = 0;
        this.follow();
      }, FIGURES);
    }
    const running = this.running;
    if (running !== this.wasRunning) {
      this.wasRunning = running;
      $("stop-all").disabled = !running;
      document.documentElement.classList.toggle("running", running);
    }
    return more;
  }
}

function menus(lab) {
  const button = $("export");
  const menu = $("export-menu");
  const items = [...menu.children];
  const open = (yes) => {
    menu.hidden = !yes;
    button.setAttribute("aria-expanded", String(yes));
    if (yes) items[0].focus();
  };
  button.addEventListener("click", () => open(menu.hidden));
  menu.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      open(false);
      button.focus();
    } else if (by) {
      event.preventDefault();
      items[(items.indexOf(document.activeElement) + by + items.length) % items.length].focus();
    }
  });
  menu.addEventListener("focusout", (event) => {
    if (!menu.parentNode.contains(event.relatedTarget)) open(false);
  });
  for (const item of items) {
    item.addEventListener("click", () => {
      lab.save(item.dataset.kind);
      open(false);
      button.focus();
    });
  }
  $("share").addEventListener("click", () => lab.share());
  $("retry").addEventListener("click", () => lab.begin());
  $("add").addEventListener("click", () => {
    const used = lab.columns.map((c) => c.strategy.name);
    const next = lab.strategies.find((s) => !used.includes(s.name)) || lab.strategies[0];
    const column = next && lab.add(next.name);
    if (column) column.menu.focus();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
  }
}

const lab = new Lab();
menus(lab);
lab.begin();
