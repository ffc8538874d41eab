// The keyboard: arrows walk over steps, Enter pins, Escape closes or stops, Shift and arrows choose a span.
import { hide, pin } from "./card.js";

const ACROSS = { ArrowLeft: -1, ArrowRight: 1 };

/** Where a key leads from step `at` of `length` steps; null if nowhere. Pure. */
export function target(key, at, length) {
  if (!length) return null;
  if (key === "Home") return 0;
  if (key === "End") return length - 1;
  if (!(key in ACROSS)) return null;
  if (at === null) return key === "ArrowRight" ? 0 : length - 1;
  const next = at + ACROSS[key];
  return next < 0 || next >= length ? null : next;
}

/** The span after a step is chosen; `extend` keeps the other end. Pure. */
export function extended(span, at, extend) {
  if (!extend || !span) return { anchor: at, first: at, last: at };
  const { anchor } = span;
  return { anchor, first: Math.min(anchor, at), last: Math.max(anchor, at) };
}

const placeOf = (column, node) => column.steps.nodes.indexOf(node);

function choose(column, at, extend) {
  const before = column.span;
  column.span = extended(before, at, extend);
  const { nodes } = column.steps;
  if (before) for (let i = before.first; i <= before.last; i += 1) nodes[i]?.classList.remove("chosen");
  if (column.span.first === column.span.last) return;
  for (let i = column.span.first; i <= column.span.last; i += 1) nodes[i]?.classList.add("chosen");
}

function focusStep(column, at) {
  const node = column.steps.nodes[at];
  if (!node) return;
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** @param {HTMLElement} root of the columns @param {object} lab `columns`, `stop()`, `running` */
export function watchKeys(root, lab) {
  root.addEventListener("keydown", (event) => {
    const column = event.target.closest(".column")?.column;
    if (!column || !event.target.closest(".body") || event.target.tagName === "BUTTON") return;
    const node = event.target.closest(".step");
    const at = node ? placeOf(column, node) : null;
    if (event.key === "Enter" && node) {
      event.preventDefault();
      pin(node, column);
      return;
    }
    if ((event.key === "ArrowUp" || event.key === "ArrowDown") && node) {
      const other = lab.columns[lab.columns.indexOf(column) + (event.key === "ArrowUp" ? -1 : 1)];
      if (!other || !other.steps.nodes.length) return;
      event.preventDefault();
      focusStep(other, Math.min(at, other.steps.nodes.length - 1));
      return;
    }
    const to = target(event.key, at, column.steps.nodes.length);
    if (to === null) return;
    event.preventDefault();
    hide();
    if (event.shiftKey && at !== null && !column.span) choose(column, at, false);
    choose(column, to, event.shiftKey);
    focusStep(column, to);
  });
  root.addEventListener("click", (event) => {
    const node = event.target.closest(".step");
    const column = node && node.closest(".column").column;
    if (column) choose(column, placeOf(column, node), event.shiftKey);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (hide()) return;
    if (lab.running) lab.stop();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".step, #card")) hide();
  });
}
