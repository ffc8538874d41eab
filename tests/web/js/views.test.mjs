// The pure parts of the files that draw.
import assert from "node:assert/strict";
import test from "node:test";
import { boxOf, requestOf, stopsOf } from "../../../src/unspoken/web/static/ask.js";
import { extended, target } from "../../../src/unspoken/web/static/keys.js";
import { scaled, spanOf } from "../../../src/unspoken/web/static/lens.js";
import { lines, thresholdOf } from "../../../src/unspoken/web/static/spark.js";

const VALUES = { prompt: "q", system: " ", gold: "", depth: "", stop: "", max_new_tokens: "8", seed: "0" };

test("a request holds what was typed, and says what is wrong", () => {
  assert.deepEqual(requestOf(VALUES), { request: { prompt: "q", max_new_tokens: 8, seed: 0 }, problems: {} });
  assert.deepEqual(requestOf({ ...VALUES, stop: "\\n\na|b\n", system: " s " }).request.stop, ["\n", "a|b"]);
  const bad = requestOf({ ...VALUES, prompt: " ", max_new_tokens: "0", seed: "1.5" });
  assert.deepEqual(Object.keys(bad.problems).sort(), ["max_new_tokens", "prompt", "seed"]);
});

test("a seed that a number cannot hold is refused, not rounded", () => {
  assert.equal(requestOf({ ...VALUES, seed: "9007199254740991" }).request.seed, 9007199254740991);
  const { request, problems } = requestOf({ ...VALUES, seed: "9007199254740993" });
  assert.equal("seed" in request, false);
  assert.match(problems.seed[0], /at most 9007199254740991/);
});

test("stop strings come back from their box as they were", () => {
  const all = ["\n", "\n\n", "a|b", " ", "\\", "\\n", "\\\\n", "\\boxed{", "\t\r", "é\u2028", "</s>"];
  assert.deepEqual(stopsOf(boxOf(all)), all);
  for (const one of all) assert.deepEqual(stopsOf(boxOf([one])), [one]);
  assert.deepEqual(stopsOf("\\boxed{\n\n\\n"), ["\\boxed{", "\n"]);
  assert.deepEqual(stopsOf(""), []);
});

test("arrows stop at the ends", () => {
  assert.deepEqual([target("ArrowRight", null, 3), target("ArrowLeft", null, 3)], [0, 2]);
  assert.deepEqual([target("ArrowRight", 2, 3), target("ArrowLeft", 0, 3), target("Home", 2, 3), target("End", 0, 3)], [null, null, 0, 2]);
  assert.deepEqual([target("x", 0, 3), target("End", null, 0)], [null, null]);
});

test("a span grows and shrinks around its anchor", () => {
  let span = extended(null, 5, false);
  span = extended(span, 6, true);
  assert.deepEqual([span.first, span.last], [5, 6]);
  span = extended(span, 3, true);
  assert.deepEqual([span.first, span.last], [3, 5]);
  assert.deepEqual(extended(span, 9, false), { anchor: 9, first: 9, last: 9 });
});

test("the lens reads the chosen span, or the last steps, and never too many", () => {
  assert.deepEqual(spanOf(null, 40), { first: 24, last: 39 });
  assert.deepEqual(spanOf(null, 3), { first: 0, last: 2 });
  assert.deepEqual(spanOf({ first: 2, last: 99 }, 10), { first: 2, last: 9 });
  assert.deepEqual(spanOf({ first: 0, last: 399 }, 400), { first: 0, last: 47 });
});

test("cells are shaded over the range of what is known", () => {
  assert.deepEqual(scaled([[1, 3], [2, null]], "kl"), { shades: [[0, 1], [0.5, null]], low: 1, high: 3 });
  const ranks = scaled([[1, 10, 100]], "rank");
  assert.ok(Math.abs(ranks.shades[0][1] - 0.5) < 1e-9);
  assert.ok(Math.abs(ranks.high - 100) < 1e-9);
  assert.deepEqual(scaled([[2, 2]], "kl").shades, [[0, 0]]);
  const far = scaled([[200, 0], [1, 3]], "kl", [-1, 0]);
  assert.deepEqual([far.shades, far.low, far.high], [[[1, 0], [0, 1]], 1, 3]);
});

test("a line has gaps where values are missing", () => {
  assert.deepEqual(lines([0, 1, null, 2], 30, 10, 2), [[[0, 10], [10, 5]], [[30, 0]]]);
  assert.deepEqual(lines([], 30, 10, 1), []);
});

test("thresholds are found by their names", () => {
  assert.equal(thresholdOf({ end_prob: 0.05 }, ["end"]), 0.05);
  assert.equal(thresholdOf({ end_prob: 0.05 }, ["entropy"]), null);
  assert.equal(thresholdOf(undefined, ["end"]), null);
});
