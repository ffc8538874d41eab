// What all columns share: the question, and how far and from which seed it is answered.
import { $, el, problem } from "./dom.js";
import { GENERAL } from "./schema.js";

const EXAMPLES = [
  ["Pencils", "Tom has 3 boxes of 12 pencils and gives 9 away. How many pencils does Tom have left?", "27"],
  ["Half as many", "Natalia sold 48 clips in April and half as many in May. How many clips did she sell in all?", "72"],
  ["A train", "A train goes 60 km in the first hour and 45 km in each of the next two hours. How far does it go?", "150"],
  ["A product", "What is 17 * 23?", "391"],
  ["The odd one", "Which of these is no fruit: apple, carrot, pear, plum?", "carrot"],
];

const ESCAPES = { n: "\n", r: "\r", t: "\t", "\\": "\\" };

/** Stop strings from their box: one per line, with \n, \r, \t and \\ as escapes; any other backslash is itself. Pure. */
export function stopsOf(box) {
  const lines = box.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\([nrt\\])/g, (_, sign) => ESCAPES[sign]));
}

/** The text of the box that holds these stop strings. Pure. */
export function boxOf(stops) {
  const sign = (found) => `\\${Object.keys(ESCAPES).find((key) => ESCAPES[key] === found)}`;
  return stops.map((text) => text.replace(/[\n\r\t\\]/g, sign)).join("\n");
}

/** The shared part of a request, empty fields left out; {problems} by field where something cannot be sent. Pure. */
export function requestOf(values) {
  const problems = {};
  const out = { prompt: values.prompt };
  if (!values.prompt.trim()) problems.prompt = ["Type a question first."];
  for (const [name, least] of [["max_new_tokens", 1], ["seed", 0]]) {
    const number = Number(values[name]);
    if (values[name] === "" || !Number.isInteger(number) || number < least) {
      problems[name] = [`This must be a whole number, ${least} or more.`];
    } else if (!Number.isSafeInteger(number)) {
      problems[name] = [`This must be at most ${Number.MAX_SAFE_INTEGER}: a browser cannot hold a larger one exactly.`];
    } else out[name] = number;
  }
  for (const name of ["system", "gold", "depth"]) if (values[name].trim()) out[name] = values[name].trim();
  const stop = stopsOf(values.stop);
  if (stop.length) out.stop = stop;
  return { request: out, problems };
}

/** @param {object} lab `run()`, `stop()` */
export function makeAsk(lab) {
  const values = () => Object.fromEntries(GENERAL.map((name) => [name, $(name).value]));
  const brief = () => {
    const text = $("system").value.trim();
    $("system-brief").textContent = text ? text.split("\n")[0].slice(0, 100) : "none";
  };
  const ask = {
    explain(errors) {
      const rest = [];
      for (const name of GENERAL) problem($(name), $(`${name}-error`), errors[name]);
      for (const [name, sentences] of Object.entries(errors)) {
        if (!GENERAL.includes(name)) rest.push(`${name}: ${sentences.join(" ")}`);
      }
      $("general-error").textContent = rest.join(" ");
      if (errors.system) $("system-box").open = true;
      const first = $("ask").querySelector("[aria-invalid=true]");
      if (first) first.focus();
    },
    /** The shared part of a request, or null with a sentence beside each field that is wrong. */
    check() {
      const { request, problems } = requestOf(values());
      ask.explain(problems);
      return Object.keys(problems).length ? null : request;
    },
    /** What is typed, with or without a question, as `share.js` takes it; null as for `check`. */
    shared() {
      const { request, problems } = requestOf(values());
      delete problems.prompt;
      ask.explain(problems);
      return Object.keys(problems).length ? null : request;
    },
    fill(state) {
      for (const name of GENERAL) {
        if (state[name] === undefined || state[name] === null) continue;
        $(name).value = Array.isArray(state[name]) ? boxOf(state[name]) : state[name];
      }
      brief();
    },
  };
  $("examples").append(...EXAMPLES.map(([name], i) => el("option", { value: String(i) }, name)));
  $("examples").addEventListener("change", () => {
    const example = EXAMPLES[Number($("examples").value)];
    if ($("examples").value === "" || !example) return;
    ask.fill({ prompt: example[1], gold: example[2] });
    $("examples").value = "";
  });
  $("ask").addEventListener("input", (event) => {
    if (event.target === $("system")) brief();
    const place = $(`${event.target.id}-error`);
    if (place) problem(event.target, place, []);
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    lab.run();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    lab.run();
  });
  $("stop-all").addEventListener("click", () => lab.stop());
  return ask;
}
