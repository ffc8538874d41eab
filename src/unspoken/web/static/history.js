// The runs that are kept: list, reopen, delete.
import { $, el } from "./dom.js";
import { messages } from "./records.js";
import { call } from "./stream.js";

const PAGE = 30;

/** @param {object} lab `reopen(run)` */
export function makeHistory(lab) {
  const dialog = $("history");
  const list = $("history-list");
  const error = $("history-error");
  let oldest = null;

  async function more() {
    error.textContent = "";
    try {
      const before = oldest === null ? "" : `&before=${encodeURIComponent(oldest)}`;
      const answer = await call(`/api/runs?limit=${PAGE}${before}`);
      const runs = Array.isArray(answer) ? answer : answer.runs || [];
      for (const run of runs) list.append(item(run));
      if (runs.length) oldest = runs[runs.length - 1].id;
      $("history-more").hidden = runs.length < PAGE;
      if (!list.children.length) error.textContent = "No run is kept yet.";
    } catch (problem) {
      error.textContent = `${problem.message} ${problem.hint || ""}`;
    }
  }

  function item(run) {
    const name = typeof run.strategy === "string" ? run.strategy : run.strategy?.name || "";
    const grade = typeof run.grade === "string" ? run.grade : run.grade?.status;
    const meta = [when(run.time), seedOf(run.seed), grade || run.reason].filter(Boolean).join(" · ");
    const row = el("li", {},
      el("div", {}, el("b", {}, name), el("span", { className: "muted small" }, meta)),
      el("p", {}, run.prompt || ""), el("p", { className: "muted" }, run.text || ""),
      el("div", { className: "buttons" },
        el("button", { type: "button", onclick: () => reopen(run.id) }, "Reopen"),
        el("button", { type: "button", className: "quiet", "aria-label": `Delete this run of ${name}`, onclick: () => remove(run.id, row) }, "Delete")));
    return row;
  }

  async function reopen(id) {
    try {
      const run = await call(`/api/run/${encodeURIComponent(id)}`);
      lab.reopen(run, messages(run));
      dialog.close();
    } catch (problem) {
      error.textContent = `${problem.message} ${problem.hint || ""}`;
    }
  }

  async function remove(id, row) {
    try {
      await call(`/api/run/${encodeURIComponent(id)}`, undefined, "DELETE");
      const next = row.nextElementSibling || row.previousElementSibling;
      row.remove();
      const button = next ? next.querySelector("button") : dialog.querySelector("[data-close]");
      button.focus();
    } catch (problem) {
      error.textContent = `${problem.message} ${problem.hint || ""}`;
    }
  }

  $("history-open").addEventListener("click", () => {
    list.replaceChildren();
    oldest = null;
    dialog.showModal();
    more();
  });
  $("history-more").addEventListener("click", more);
}

// A larger one has lost digits on its way into a number.
const seedOf = (seed) => `seed ${Number.isSafeInteger(seed) ? seed : `about ${seed}`}`;

function when(time) {
  if (time === undefined || time === null) return "";
  const date = new Date(typeof time === "number" ? time * 1000 : time);
  if (Number.isNaN(date.getTime())) return String(time);
  return date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
