// The few helpers that every view uses. Text is set as text, never as markup.

/** An element with properties, `dataset` entries, `aria-*` attributes and children (nodes or texts). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name === "data") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "role" || name === "for" || name === "scope") {
      node.setAttribute(name, value);
    } else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const $ = (id) => document.getElementById(id);

let unique = 0;
/** An id that no other element has. */
export const fresh = (stem) => `${stem}-${(unique += 1)}`;

/** Say something to screen readers, once. */
export function say(text) {
  $("say").textContent = text;
}

/** Show or clear the sentence beside a control. */
export function problem(control, place, sentences) {
  place.textContent = (sentences || []).join(" ");
  if (sentences && sentences.length) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
}

/** Give the user a file. */
export function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const SHARE = 0.03; // of the time, for drawing what comes by itself: the model may need the same processor
const LONGEST = 500; // milliseconds between two such drawings, however long they take

/**
 * Calls `work` in a frame, once however often it is asked; again in the next one if it says that more is to be done.
 * `now` is for what the user does; `soon` for what comes by itself, and leaves a pause that grows with what drawing costs.
 * Also in a tab that is not seen.
 */
export function frames(work) {
  let asked = false;
  let waiting = 0; // the timer of a pause
  let rest = 0; // when the pause ends
  let spent = 0; // milliseconds, over frames that belong together
  let began = 0;
  let more = false;
  const drawn = new MessageChannel(); // a message comes after the frame's layout and paint
  drawn.port1.onmessage = () => {
    spent += performance.now() - began;
    if (more) return;
    rest = performance.now() + Math.min(LONGEST, spent / SHARE);
    spent = 0;
  };
  const run = () => {
    asked = false;
    clearTimeout(waiting);
    waiting = 0;
    began = performance.now();
    more = work();
    drawn.port2.postMessage(null);
    if (more) now();
  };
  const now = () => {
    if (asked) return;
    asked = true;
    if (document.hidden) setTimeout(run, 200);
    else requestAnimationFrame(run);
  };
  const soon = () => {
    if (asked || waiting) return;
    const pause = rest - performance.now();
    if (pause > 0) waiting = setTimeout(now, pause);
    else now();
  };
  return { now, soon };
}
