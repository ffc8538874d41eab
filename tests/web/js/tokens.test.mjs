import assert from "node:assert/strict";
import test from "node:test";
import * as tokens from "../../../src/unspoken/web/static/tokens.js";

const top = (weights) => ({ ids: [7, 8, 9], probs: [0.5, 0.3, 0.1], weights, texts: [" a", "b", "\n"] });
const said = { index: 4, kind: "token", phase: "answer", token_id: 8, text: "b", logprob: Math.log(0.25), entropy: 2, top: top([0, 1, 0]) };
const soft = { index: 0, kind: "soft", phase: "think", top: top([0.6, 0.4, 0]), entropy: 1, end_prob: 0.01, norm_ratio: 0.9 };

test("blanks and control characters become visible", () => {
  assert.equal(tokens.glyphs(" a\n\t\u0000\u00a0\u007f"), "␣a↵␉␀⍽␡");
  assert.equal(tokens.glyphs("é✓"), "é✓");
});

test("numbers are short and never lose their sign or size", () => {
  assert.deepEqual([0, 1, 0.25, 0.00001, -3.14159, 123.456, null, NaN, -Infinity].map((x) => tokens.num(x)),
    ["0", "1", "0.250", "1.0e−5", "−3.142", "123.5", "–", "–", "−∞"]);
});

test("shades go from certain to uncertain in all three numbers", () => {
  const shade = tokens.shades(said);
  assert.ok(Math.abs(shade.p - 0.75) < 1e-9);
  assert.equal(shade.h, 0.5);
  assert.ok(Math.abs(shade.r - Math.log(2) / Math.log(50)) < 1e-9);
  assert.equal(tokens.shades({ ...said, logprob: 0, entropy: 0, token_id: 7 }).p, 0);
  assert.equal(tokens.shades({ ...said, token_id: 7 }).r, 0);
  assert.deepEqual(tokens.shades({ kind: "forced", text: "x", token_id: 1 }), { p: null, h: null, r: null });
  assert.equal(tokens.shades({ ...said, entropy: 99 }).h, 1);
});

test("a token that is not among the candidates has a rank beyond them", () => {
  assert.deepEqual(tokens.rank({ ...said, token_id: 1 }), { rank: 4, beyond: true });
  assert.equal(tokens.figures({ ...said, token_id: 1 }).r, ">3");
  assert.deepEqual(tokens.figures(said), { p: "0.25", h: "2", r: "2" });
});

test("a mixture's parts are what was fed, in order, and what was not fed is no part", () => {
  assert.deepEqual(tokens.fedParts(soft).map((r) => [r.id, r.share]), [[7, 0.6], [8, 0.4]]);
  const heavy = tokens.fedParts({ ...soft, top: top([1, 1, 2]) });
  assert.deepEqual(heavy.map((r) => [r.id, r.share]), [[9, 0.5], [7, 0.25], [8, 0.25]]);
  const light = tokens.fedParts({ ...soft, top: top([0.1, 0.5, 0]) });
  assert.deepEqual(light.map((r) => r.share), [0.5, 0.1]); // never stretched to look like all that was fed
});

test("candidates beyond the limit are added up", () => {
  const rows = tokens.candidates(soft, 2);
  assert.equal(rows.length, 3);
  assert.deepEqual([rows[2].rest, rows[2].p, rows[2].w], [1, 0.1, 0]);
  assert.deepEqual(tokens.candidates({ kind: "token" }), []);
  assert.equal(tokens.candidates({ top: { ids: [5], probs: [1], weights: [1] } })[0].text, "#5");
});

test("candidates that were counted instead of sent have their weight, and no made-up probability", () => {
  const rows = tokens.candidates({ ...soft, top: { ...top([0.4, 0.3, 0.1]), rest: { count: 12, weight: 0.2 } } });
  const last = rows[rows.length - 1];
  assert.deepEqual([last.rest, last.p, last.w], [12, null, 0.2]);
});

test("a step without words is never captioned as if its best token had been said", () => {
  assert.match(tokens.caption(soft), /not said, fed ␣a 0\.60, b 0\.40/);
  assert.match(tokens.caption({ ...soft, kind: "latent" }), /not said, lens reads/);
  assert.match(tokens.caption({ index: 0, kind: "latent" }), /a hidden state/);
  assert.match(tokens.caption(said), /"b", probability 0\.250/);
  const names = tokens.facts(soft).map(([name]) => name);
  assert.deepEqual(names, ["Entropy", "End probability", "Norm"]);
});

test("what prints nothing has a sign", () => {
  assert.equal(tokens.face({ text: "", token_id: 2 }, [2]), "∎");
  assert.equal(tokens.face({ token_id: 3 }, [2]), "◌");
});

test("forms of steps", () => {
  const form = (kind, phase) => tokens.form({ kind, phase });
  assert.deepEqual(
    [form("soft", "think"), form("latent", "answer"), form("forced", "transition"), form("filler", "think"), form("forced", "think"), form("token", "think")],
    ["strip", "strip", "chips", "chips", "text", "text"]);
});
