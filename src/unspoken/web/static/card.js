// The card that explains one step: follows the mouse and the focus, stays where it is pinned.
import { $, el } from "./dom.js";
import { candidates, caption, facts, glyphs, num, title, TOP_SHOWN } from "./tokens.js";

const GLANCE = 8; // candidates shown until the card is pinned
const state = { node: null, pinned: false };
const card = () => $("card");

/** @param {HTMLElement} root holds all columns @param {(node: HTMLElement) => object} ownerOf a step's column */
export function watch(root, ownerOf) {
  const step = (event) => event.target.closest && event.target.closest(".step");
  root.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch" && !state.pinned) {
      const node = step(event);
      if (node) show(node, ownerOf(node));
    }
  });
  root.addEventListener("pointerout", (event) => {
    const to = event.relatedTarget;
    if (!state.pinned && !(to && to.closest && to.closest(".step"))) hide();
  });
  root.addEventListener("focusin", (event) => {
    const node = step(event);
    if (!node) return;
    const owner = ownerOf(node);
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", caption(node.lab, owner.endIds));
    node.setAttribute("aria-describedby", "card");
    show(node, owner);
  });
  root.addEventListener("focusout", (event) => {
    if (step(event) && !state.pinned) hide();
  });
  root.addEventListener("click", (event) => {
    const node = step(event);
    if (node) pin(node, ownerOf(node));
  });
  addEventListener("scroll", () => state.node && place(), { capture: true, passive: true });
}

/** Pin the card of a step, or let go of it if it is pinned there. */
export function pin(node, owner) {
  if (state.pinned && state.node === node) {
    hide();
    return;
  }
  show(node, owner, TOP_SHOWN);
  state.pinned = true;
  card().classList.add("pinned");
  node.classList.add("pinned");
}

/** Close the card; whether there was one. */
export function hide() {
  const was = !card().hidden;
  if (state.node) state.node.classList.remove("pinned");
  state.node = null;
  state.pinned = false;
  card().classList.remove("pinned");
  card().hidden = true;
  return was;
}

function show(node, owner, most = GLANCE) {
  if (state.node && state.node !== node) hide();
  state.node = node;
  const step = node.lab;
  card().replaceChildren(...content(step, owner, most));
  card().hidden = false;
  place();
  if (step.kind === "latent" && !step.top && owner.reading) readLatent(node, step, owner);
}

function content(step, owner, most) {
  const out = [el("h3", {}, title(step))];
  const list = el("dl");
  for (const [name, value] of facts(step, owner.endIds)) list.append(el("dt", {}, name), el("dd", {}, value));
  if (list.childNodes.length) out.push(list);
  const rows = candidates(step, most);
  if (rows.length) out.push(el("p", { className: "note" }, NOTES[step.kind] || ""), table(rows, step));
  return out;
}

const NOTES = {
  soft: "What was fed: these embeddings, by weight. Nothing was said.",
  latent: "Lens reading: what the head would say here. Nothing of it was fed or said.",
};

function table(rows, step) {
  const latent = step.kind === "latent";
  const head = ["Id", "Text", latent ? "Read" : "p", latent ? null : "Fed"].filter(Boolean);
  const body = rows.map((row) => {
    const cells = [
      el("td", { className: "n" }, row.rest ? "" : String(row.id)),
      el("td", { className: "t" }, row.rest ? `${row.rest} more` : glyphs(row.text)),
      el("td", { className: "n" }, num(row.p)),
    ];
    if (!latent) cells.push(el("td", { className: `n w${row.w > 0 ? "" : " zero"}` }, row.w > 0 ? num(row.w) : "0"));
    const line = el("tr", { className: !row.rest && row.id === step.token_id ? "chosen" : "" }, ...cells);
    line.style.setProperty("--w", String(Math.min(1, (latent ? row.p : row.w) || 0)));
    return line;
  });
  const heads = head.map((text) => el("th", { scope: "col" }, text));
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...body));
}

async function readLatent(node, step, owner) {
  const note = el("p", { className: "note" }, "Reading with the lens …");
  card().append(note);
  let text;
  try {
    const grid = await owner.reading(step.index);
    const last = grid.top.length - 1;
    text = `Lens reading, last layer: ${glyphs(String(grid.top[last][0]))}. Nothing of it was fed or said.`;
  } catch (error) {
    text = error.message;
  }
  note.textContent = text;
  if (state.node === node) place();
}

function place() {
  const box = state.node.getBoundingClientRect();
  if (!box.width && !box.height) {
    hide();
    return;
  }
  const own = card().getBoundingClientRect();
  const below = box.bottom + own.height + 12 < innerHeight || box.top < own.height + 12;
  const left = Math.max(8, Math.min(box.left, innerWidth - own.width - 8));
  const top = below ? Math.min(box.bottom + 6, innerHeight - own.height - 8) : box.top - own.height - 6;
  card().style.setProperty("--left", `${Math.round(left)}px`);
  card().style.setProperty("--top", `${Math.round(Math.max(8, top))}px`);
}
