"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const pick = (id) => document.getElementById(id);
const LOGARITHMIC = /_rank$/;

function add(parent, tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  parent.append(node);
  return node;
}

function fill(select, names) {
  select.replaceChildren();
  names.forEach((name, i) => { add(select, "option", name).value = String(i); });
}

const grid = () => data[Number(pick("which").value)];
const metric = () => Object.keys(grid().values)[Number(pick("metric").value)];

function shown(value) {
  if (value === null) return "–";
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

function draw() {
  const g = grid(), name = metric(), rows = g.values[name];
  const size = (v) => (LOGARITHMIC.test(name) ? Math.log(v) : v);
  // The scale is that of the blocks: what the head makes of embeddings is often far off.
  const all = rows.filter((_, l) => g.layers[l] >= 0).flat().filter((v) => v !== null).map(size);
  const low = all.reduce((a, b) => Math.min(a, b), Infinity);
  const high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  const table = pick("grid");
  table.replaceChildren();
  const head = add(add(table, "thead"), "tr");
  add(head, "th", "block");
  g.tokens.forEach((token, t) => { add(head, "th", token, g.kinds[t]).title = `${g.positions[t]} ${g.kinds[t]}`; });
  const body = add(table, "tbody");
  for (let l = g.layers.length - 1; l >= 0; l -= 1) {
    const row = add(body, "tr");
    add(row, "th", g.layers[l] < 0 ? "in" : String(g.layers[l])).scope = "row";
    g.tokens.forEach((_, t) => {
      const best = g.top[l][t][0];
      const cell = add(row, "td", best === undefined ? shown(rows[l][t]) : g.texts[best[0]]);
      const place = rows[l][t] === null || high <= low ? 0 : (size(rows[l][t]) - low) / (high - low);
      const share = Math.min(1, Math.max(0, place));
      cell.style.backgroundColor = `rgba(0, 114, 178, ${share.toFixed(3)})`;
      if (share > 0.5) cell.className = "high";
      cell.tabIndex = 0;
      cell.dataset.layer = l;
      cell.dataset.position = t;
    });
  }
  pick("scale").textContent = all.length
    ? `white ${shown(LOGARITHMIC.test(name) ? Math.exp(low) : low)}, blue ${shown(LOGARITHMIC.test(name) ? Math.exp(high) : high)}`
    : "";
}

function tell(event) {
  const cell = event.target.closest("td[data-layer]");
  if (!cell) return;
  const g = grid(), l = Number(cell.dataset.layer), t = Number(cell.dataset.position);
  const detail = pick("detail");
  detail.replaceChildren();
  const where = g.layers[l] < 0 ? "before the first block" : `after block ${g.layers[l]}`;
  add(detail, "p", `${where}, position ${g.positions[t]} (${g.kinds[t]}), having read ${g.tokens[t]}`);
  const candidates = add(detail, "table");
  g.top[l][t].forEach(([text, probability]) => {
    const row = add(candidates, "tr");
    add(row, "td", g.texts[text]);
    add(row, "td", `${(100 * probability).toFixed(2)} %`);
    add(add(row, "td"), "span", "", "bar").style.width = `${(12 * probability).toFixed(2)}em`;
  });
  add(detail, "p", Object.entries(g.values).map(([n, v]) => `${n} ${shown(v[l][t])}`).join(" · "));
}

function choose() {
  const before = pick("metric").selectedIndex;
  fill(pick("metric"), Object.keys(grid().values));
  pick("metric").selectedIndex = Math.max(before, 0);
  draw();
}

fill(pick("which"), data.map((g) => `${g.model} · ${g.lens} · ${g.problem}`));
pick("which").addEventListener("change", choose);
pick("metric").addEventListener("change", draw);
for (const kind of ["mouseover", "focusin", "click"]) pick("grid").addEventListener(kind, tell);
choose();
