// The lens grid: what the model would say after each layer, for a span of steps of one run.
import { $, el } from "./dom.js";
import { call } from "./stream.js";
import { glyphs, num } from "./tokens.js";

export const MOST = 48; // steps of one grid
const METRICS = {
  kl: "KL to the final law",
  entropy: "entropy",
  prob: "probability of the top token",
  rank: "rank of the final token",
};
const LOGARITHMIC = new Set(["rank"]);

/**
 * Values as shades 0 to 1 over the range of the blocks: what the head makes of embeddings (layer -1) is often far off
 * and gets the nearest end of the scale. Ranks go by their logarithm. Pure.
 */
export function scaled(values, metric, layers = []) {
  const size = (v) => (LOGARITHMIC.has(metric) ? Math.log(v) : v);
  let low = Infinity;
  let high = -Infinity;
  for (const [l, row] of values.entries()) {
    if (layers[l] < 0) continue;
    for (const v of row) {
      if (typeof v !== "number" || !Number.isFinite(v)) continue;
      low = Math.min(low, size(v));
      high = Math.max(high, size(v));
    }
  }
  const shade = (v) => {
    if (typeof v !== "number" || !Number.isFinite(v)) return null;
    return high > low ? Math.min(1, Math.max(0, (size(v) - low) / (high - low))) : 0;
  };
  const back = (v) => (!Number.isFinite(v) ? null : LOGARITHMIC.has(metric) ? Math.exp(v) : v);
  return { shades: values.map((row) => row.map(shade)), low: back(low), high: back(high) };
}

/** The span that is read: what was chosen, or the last steps; never more than fits. Pure. */
export function spanOf(chosen, length) {
  const last = chosen ? Math.min(chosen.last, length - 1) : length - 1;
  const first = chosen ? Math.max(0, chosen.first) : Math.max(0, last - 15);
  return { first, last: Math.min(last, first + MOST - 1) };
}

/** Ask for a grid. */
export const read = (run, first, last) => call("/api/lens", { run, first, last });

let open = null; // {grid, span, name, metric}

/** Read a span of a column and show the grid. */
export async function show(column) {
  const { done, steps } = column.state;
  const span = spanOf(column.span, steps.length);
  const panel = $("lens");
  panel.hidden = false;
  panel.replaceChildren(el("p", { className: "muted" }, `Reading steps ${span.first + 1} to ${span.last + 1} …`));
  panel.setAttribute("aria-busy", "true");
  panel.scrollIntoView({ block: "nearest" });
  try {
    const grid = await read(done.run, span.first, span.last);
    open = { grid, span, name: column.strategy.name, metric: pick(grid, open && open.metric), column };
    draw();
    panel.scrollIntoView({ block: "nearest" });
    panel.querySelector("h2").focus({ preventScroll: true });
  } catch (error) {
    const again = el("button", { type: "button", className: "quiet", onclick: close }, "Close");
    panel.replaceChildren(el("p", { className: "problem", role: "alert" }, `${error.message} ${error.hint || ""}`), again);
  }
  panel.removeAttribute("aria-busy");
}

const pick = (grid, wanted) => (wanted in grid.values ? wanted : Object.keys(grid.values)[0]);

export function close() {
  $("lens").hidden = true;
  open = null;
}

function draw() {
  const { grid, span, name, metric, column } = open;
  const select = el("select", { "aria-label": "Colour cells by", onchange: () => {
    open.metric = select.value;
    colour();
  } });
  for (const key of Object.keys(grid.values)) select.append(el("option", { value: key }, METRICS[key] || key));
  select.value = metric;
  const number = (value, label) => el("input", { type: "number", min: 1, max: column.state.steps.length, value, "aria-label": label });
  const first = number(span.first + 1, "First step");
  const last = number(span.last + 1, "Last step");
  const again = el("form", { className: "span", onsubmit: (event) => {
    event.preventDefault();
    const ends = [Number(first.value) - 1, Number(last.value) - 1].sort((a, b) => a - b);
    column.span = { first: ends[0], last: ends[1] };
    show(column);
  } }, "steps ", first, " to ", last, " ", el("button", { type: "submit", className: "quiet" }, "Read"));
  const heading = el("h2", { tabIndex: -1 }, `Lens · ${name}`);
  const legend = el("p", { className: "legend", id: "lens-legend" });
  const head = el("header", {}, heading, again, el("label", { className: "check" }, "colour ", select), legend,
    el("button", { type: "button", className: "quiet", onclick: close }, "Close"));
  const about = el("p", { className: "muted small", id: "lens-cell", role: "status" },
    "Each cell is the token that the head would choose if the model ended at that layer. Arrow keys move between cells.");
  $("lens").replaceChildren(head, el("div", { className: "grid" }, tableOf(grid, span)), about);
  colour();
}

function tableOf(grid, span) {
  const labels = grid.labels || grid.steps.map((step) => String(step));
  const top = el("tr", {}, el("th", { scope: "col" }, "layer"), ...labels.map((label, i) =>
    el("th", { scope: "col", title: `step ${(grid.steps[i] ?? span.first + i) + 1}` }, glyphs(String(label)))));
  const rows = [];
  for (let l = grid.layers.length - 1; l >= 0; l -= 1) {
    const cells = grid.top[l].map((text, i) =>
      el("td", { tabIndex: -1, data: { l, i } }, glyphs(String(Array.isArray(text) ? text[0] : text))));
    rows.push(el("tr", {}, el("th", { scope: "row" }, String(grid.layers[l] < 0 ? "in" : grid.layers[l])), ...cells));
  }
  const table = el("table", { role: "grid", "aria-label": "Layers by steps" }, el("thead", {}, top), el("tbody", {}, ...rows));
  const first = table.querySelector("td");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (event) => walk(event, table));
  table.addEventListener("focusin", (event) => tell(event.target));
  table.addEventListener("pointerover", (event) => tell(event.target));
  return table;
}

function colour() {
  const { grid, metric } = open;
  const { shades, low, high } = scaled(grid.values[metric], metric, grid.layers);
  for (const cell of $("lens").querySelectorAll("td")) {
    const shade = shades[Number(cell.dataset.l)][Number(cell.dataset.i)];
    cell.style.setProperty("--v", shade === null ? "0" : shade.toFixed(3));
    cell.dataset.n = num(grid.values[metric][Number(cell.dataset.l)][Number(cell.dataset.i)], 2);
  }
  $("lens-legend").replaceChildren(el("span", {}, num(low)), el("i", { "aria-hidden": "true" }), el("span", {}, num(high)));
  $("lens-legend").setAttribute("aria-label", `Scale from ${num(low)} to ${num(high)}`);
}

function walk(event, table) {
  const cell = event.target.closest("td");
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!cell || !by) return;
  const row = table.tBodies[0].rows[cell.parentNode.rowIndex - 1 + by[0]];
  const next = row && row.cells[cell.cellIndex + by[1]];
  if (!next || next.tagName !== "TD") return;
  event.preventDefault();
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function tell(target) {
  const cell = target.closest && target.closest("td");
  if (!cell || !open) return;
  const { grid, span } = open;
  const [l, i] = [Number(cell.dataset.l), Number(cell.dataset.i)];
  const values = Object.entries(grid.values).map(([name, rows]) => `${name} ${num(rows[l][i])}`);
  const step = (grid.steps[i] ?? span.first + i) + 1;
  $("lens-cell").textContent = `Layer ${grid.layers[l]}, step ${step}: ${cell.textContent} · ${values.join(" · ")}`;
}
