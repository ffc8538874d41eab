// Small line charts on canvas, with a threshold line and a cursor; the latest number stands beside each as text.
import { el } from "./dom.js";
import { num } from "./tokens.js";

/** Points of a line in a box, gaps where a value is missing: lists of [x, y]. Pure. */
export function lines(values, width, height, top) {
  const out = [];
  let line = null;
  const dx = values.length > 1 ? width / (values.length - 1) : 0;
  values.forEach((value, i) => {
    if (typeof value !== "number" || !Number.isFinite(value)) {
      line = null;
      return;
    }
    if (!line) out.push((line = []));
    line.push([i * dx, height - (Math.min(value, top) / top) * height]);
  });
  return out;
}

/** The threshold of a chart among those that a run names: {name: value}. Pure. */
export function thresholdOf(thresholds, words) {
  for (const [name, value] of Object.entries(thresholds || {})) {
    if (typeof value === "number" && words.some((word) => name.toLowerCase().includes(word))) return value;
  }
  return null;
}

export class Spark {
  /**
   * @param {string} label what is drawn
   * @param {string} colour a CSS variable
   * @param {() => void} onResize is called when it must be drawn anew
   */
  constructor(label, colour, onResize) {
    this.label = label;
    this.colour = colour;
    this.theme = null;
    // The size and the colours are kept: asking for them in each frame would make the page lay itself out twice.
    this.size = [0, 0];
    this.watcher = new ResizeObserver(([entry]) => {
      this.size = [Math.round(entry.contentRect.width), Math.round(entry.contentRect.height)];
      onResize();
    });
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.watcher.observe(this.canvas);
    this.value = el("span", { className: "value" }, "–");
    this.root = el("div", { className: "spark" }, el("span", { className: "label" }, label), this.canvas, this.value);
  }

  /** Draw values; `top` is the least height of the scale, `base` what is subtracted first, `theme` the page's. */
  draw(values, { threshold = null, cursor = null, top = 1e-9, base = 0, text = null, theme = "" } = {}) {
    const { canvas } = this;
    const [width, height] = this.size;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const known = values.filter((v) => typeof v === "number" && Number.isFinite(v));
    const most = known.reduce((a, b) => Math.max(a, b - base), Math.max(top, threshold ?? 0)) * 1.08;
    const heights = values.map((v) => (typeof v === "number" ? v - base : null));
    const context = canvas.getContext("2d");
    if (theme !== this.theme) {
      const style = getComputedStyle(canvas);
      this.colours = ["--muted", this.colour, "--ink"].map((name) => style.getPropertyValue(name));
      this.theme = theme;
    }
    const [faint, ink, strong] = this.colours;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const y = (v) => height - 1 - (Math.min(v, most) / most) * (height - 2);
    if (threshold !== null) {
      context.setLineDash([3, 3]);
      stroke(context, faint, 1, [[0, y(threshold)], [width, y(threshold)]]);
      context.setLineDash([]);
    }
    for (const line of lines(heights, width, height - 2, most)) {
      const points = line.length === 1 ? [line[0], [line[0][0] + 1, line[0][1]]] : line;
      stroke(context, ink, 1.5, points.map(([a, b]) => [a, b + 1]));
    }
    if (cursor !== null && values.length > 1) {
      const x = (cursor / (values.length - 1)) * width;
      stroke(context, strong, 1, [[x, 0], [x, height]]);
    }
    const shown = text ?? (known.length ? num(values[cursor ?? values.length - 1] ?? known[known.length - 1], 2) : "–");
    this.value.textContent = shown;
    const limit = threshold === null ? "" : `, threshold ${num(threshold)}`;
    canvas.setAttribute("aria-label", `${this.label}: ${known.length} values, now ${shown}${limit}`);
  }
}

function stroke(context, colour, width, points) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = "round";
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}
