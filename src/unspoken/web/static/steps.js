// The body of a column: one element a step, kept in line with a folded state at a cost of what has changed.
import { el } from "./dom.js";
import { PHASES, shared } from "./fold.js";
import { candidates, face, fedParts, figures, form, glyphs, shades } from "./tokens.js";

const TEXT_SHARE = 0.17; // of a column's height: less has no room for its text
const SLIVER = 0.02; // parts below this are drawn as one
const FOLD_AFTER = 900; // milliseconds for which rewound text stays open
const WHY = {
  cut: "taken back",
  rejected: "proposal rejected",
  replaced: "replaced by an accepted proposal",
  unchanged: "proposed again, the same text",
};

export class StepsView {
  /** @param {HTMLElement} body the scrolling element that holds the steps @param {number[]} endIds tokens that end a text */
  constructor(body, endIds) {
    this.body = body;
    this.endIds = endIds;
    this.clear();
    this.stick = true;
    body.addEventListener("scroll", () => {
      this.stick = body.scrollTop + body.clientHeight >= body.scrollHeight - 24;
    }, { passive: true });
  }

  clear() {
    this.steps = [];
    this.nodes = [];
    this.segments = []; // {key, phase, section, holder, from}
    this.marks = new Map();
    this.stick = true;
    this.grown = false;
    this.body.replaceChildren();
  }

  /**
   * Show these steps and marks.
   * @param {object} state as `fold.js` makes it
   * @param {object} options `from`: the steps before are unchanged; `limit`: most elements to make now; `live`:
   *   whether new marks open for a moment
   * @returns {boolean} whether all is shown
   */
  sync(state, { from = null, limit = Infinity, live = false } = {}) {
    const keep = Math.min(from ?? shared(this.steps, state.steps), this.nodes.length);
    const cutting = keep < this.nodes.length;
    this.truncate(keep);
    if (cutting || this.marks.size || state.marks.size) this.syncMarks(state, live);
    const end = Math.min(state.steps.length, this.nodes.length + limit);
    for (let i = this.nodes.length; i < end; i += 1) {
      this.append(state.steps[i]);
      if (state.marks.has(i) && !this.marks.has(i)) this.addMark(state.marks.get(i), live);
    }
    this.grown = this.grown || end > keep;
    return end === state.steps.length;
  }

  /** Keep the end in view, if it was. Reads the layout: to be called when all writing of a frame is done. */
  scrollOn() {
    if (!this.stick || !this.grown) return;
    this.grown = false;
    const last = this.segments[this.segments.length - 1];
    if (last && last.key.endsWith("strip")) last.holder.scrollLeft = last.holder.scrollWidth;
    this.body.scrollTop = this.body.scrollHeight;
  }

  truncate(n) {
    for (const node of this.nodes.splice(n)) node.remove();
    this.steps.length = n;
    while (this.segments.length && this.segments[this.segments.length - 1].from >= n) {
      const gone = this.segments.pop();
      gone.section.remove();
      for (const [place, node] of this.marks) if (gone.holder.contains(node)) this.marks.delete(place);
    }
  }

  append(step) {
    const shape = form(step);
    const key = `${step.phase} ${shape}`;
    let segment = this.segments[this.segments.length - 1];
    if (!segment || segment.key !== key) segment = this.open(key, step.phase, shape, this.nodes.length);
    const node = shape === "strip" ? column(step) : token(step, shape, this.endIds);
    node.lab = step;
    segment.holder.append(node);
    this.nodes.push(node);
    this.steps.push(step);
  }

  open(key, phase, shape, from) {
    const before = this.segments[this.segments.length - 1];
    const holder = el("div", { className: shape });
    const section = el("section", { className: `phase ${phase}` });
    if (!before || before.phase !== phase) {
      section.append(el("h3", {}, PHASES[phase] || phase));
      section.classList.add("first");
    }
    section.append(holder);
    this.body.append(section);
    const segment = { key, phase, section, holder, from };
    this.segments.push(segment);
    return segment;
  }

  syncMarks(state, live) {
    for (const [place, node] of this.marks) {
      const mark = state.marks.get(place);
      if (mark === node.mark && mark.count === node.shown) continue;
      if (mark && mark === node.mark) paintMark(node, live);
      else {
        node.remove();
        this.marks.delete(place);
      }
    }
    for (const [place, mark] of state.marks) {
      if (!this.marks.has(place) && place <= this.nodes.length) this.addMark(mark, live);
    }
  }

  addMark(mark, live) {
    const node = el("span", { className: "mark" });
    node.mark = mark;
    paintMark(node, live);
    this.marks.set(mark.to, node);
    const next = this.nodes[mark.to];
    if (next) next.before(node);
    else {
      const step = mark.runs[0].steps[0];
      const segment = this.segments[this.segments.length - 1] || this.open(`${step.phase} text`, step.phase, "text", 0);
      segment.holder.append(node);
    }
  }
}

/** A soft or latent step: a column whose parts are as high as what was fed of each token. */
function column(step) {
  const node = el("span", { className: `step ${step.kind}`, tabIndex: -1 });
  if (step.kind === "latent") {
    const [best] = candidates(step, 1);
    node.append(el("span", { className: "reads" }, best ? glyphs(best.text) : "h"));
    return node;
  }
  const parts = fedParts(step);
  let rest = 0; // of what was fed; a column that is not full was not fed more
  parts.forEach((row, n) => {
    if (row.share < SLIVER || row.rest) {
      rest += row.share;
      return;
    }
    const part = el("span", { className: "part" }, row.share >= TEXT_SHARE ? glyphs(row.text) : "");
    part.style.setProperty("--share", row.share.toFixed(4));
    part.style.setProperty("--n", String(Math.min(n, 5)));
    node.append(part);
  });
  if (rest > 0.001) {
    const part = el("span", { className: "part rest" });
    part.style.setProperty("--share", rest.toFixed(4));
    node.append(part);
  }
  return node;
}

function token(step, shape, endIds) {
  const text = face(step, endIds);
  const node = el("span", { className: shape === "chips" ? "step chip" : "step tok", tabIndex: -1 });
  node.textContent = shape === "chips" ? glyphs(text) : text;
  if (step.kind === "forced" || step.kind === "filler") node.classList.add("forced");
  if (!step.text) node.classList.add("empty");
  else if (step.text.trim() === "" && step.text.includes("\n")) node.classList.add("newline");
  if (shape === "chips") return node;
  const shade = shades(step);
  const figure = figures(step);
  for (const name of ["p", "h", "r"]) {
    if (shade[name] !== null) node.style.setProperty(`--${name}`, shade[name].toFixed(3));
    if (figure[name]) node.dataset[name] = figure[name];
  }
  return node;
}

function paintMark(node, live) {
  const { mark } = node;
  const tokens = mark.runs[mark.runs.length - 1].steps.length;
  node.shown = mark.count;
  const struck = el("span", { className: "struck" });
  const times = mark.count > 1 ? `${mark.count} times` : "once";
  const button = el("button", {
    type: "button",
    className: "rewound",
    tabIndex: 0,
    "aria-expanded": "false",
    "aria-label": `Went back here ${times}; the last time ${tokens} tokens were taken back. Show them`,
    onclick: () => {
      clearTimeout(node.timer);
      toggle(button.getAttribute("aria-expanded") !== "true", mark.runs);
    },
  }, mark.count > 1 ? `⟲${mark.count}` : "⟲");
  const toggle = (open, runs) => {
    button.setAttribute("aria-expanded", String(open));
    struck.replaceChildren(...(open ? runs.map(runLine) : []));
  };
  clearTimeout(node.timer);
  node.replaceChildren(button, struck);
  if (!live) return;
  toggle(true, mark.runs.slice(-1));
  node.timer = setTimeout(() => toggle(false, []), FOLD_AFTER);
}

function runLine(run) {
  const words = run.steps.slice(0, 60).map((step) => step.text || "▯").join("");
  const more = run.steps.length > 60 ? ` … ${run.steps.length - 60} more` : "";
  return el("span", { className: "run", title: `${run.steps.length} tokens, ${WHY[run.why]}` }, el("s", {}, words + more));
}
