// Light, dark or as the system; and by which number tokens are coloured. Each is one attribute of the root.
import { $ } from "./dom.js";

const ORDER = ["auto", "light", "dark"];
const root = document.documentElement;

const kept = (name) => {
  try {
    return localStorage.getItem(`unspoken.${name}`);
  } catch {
    return null; // no storage: nothing is remembered
  }
};

const keep = (name, value) => {
  try {
    localStorage.setItem(`unspoken.${name}`, value);
  } catch {
    // no storage: nothing is remembered
  }
};

function setTheme(name) {
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
}

/** The theme that is seen, as a word that changes with it. */
export const seenTheme = () => root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

/** @param {() => void} onChange is called when canvases must be drawn anew */
export function makeTheme(onChange) {
  let theme = ORDER.includes(kept("theme")) ? kept("theme") : "auto";
  setTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    setTheme(theme);
    keep("theme", theme);
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);

  for (const radio of document.querySelectorAll("input[name=colour]")) {
    if (radio.value === kept("colour")) radio.checked = true;
    if (radio.checked) root.dataset.colour = radio.value;
    radio.addEventListener("change", () => {
      root.dataset.colour = radio.value;
      keep("colour", radio.value);
    });
  }
  const toggle = (id, name, on, off) => {
    const box = $(id);
    box.checked = kept(name) === on;
    const set = () => {
      root.dataset[name] = box.checked ? on : off;
      keep(name, root.dataset[name]);
    };
    set();
    box.addEventListener("change", set);
  };
  toggle("numbers", "numbers", "on", "off");
  toggle("narrow", "strip", "narrow", "wide");
}
