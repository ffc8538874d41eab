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

/** Calls `work` in the next frame, once however often it is asked; also in a tab that is not seen. */
export function frames(work) {
  let asked = false;
  const run = () => {
    asked = false;
    work();
  };
  return () => {
    if (asked) return;
    asked = true;
    if (document.hidden) setTimeout(run, 200);
    else requestAnimationFrame(run);
  };
}
