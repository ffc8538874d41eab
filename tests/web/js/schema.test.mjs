import assert from "node:assert/strict";
import test from "node:test";
import * as schema from "../../../src/unspoken/web/static/schema.js";

const field = (more) => schema.describe("x", more);

test("fields are read from either form of a nullable type", () => {
  for (const one of [{ type: ["integer", "null"], default: null }, { anyOf: [{ type: "integer" }, { type: "null" }], default: null }]) {
    assert.equal(field(one).type, "integer");
    assert.equal(field(one).nullable, true);
  }
  const choice = field({ type: ["string", "null"], enum: ["a", "b", null] });
  assert.deepEqual([choice.type, choice.values, choice.nullable], ["enum", ["a", "b"], true]);
  assert.equal(field({ type: ["string", "object"] }).type, "json"); // a strategy, by its name or with its fields
  assert.equal(field({ type: "array" }).type, "json");
});

test("what was typed is checked against the range", () => {
  const k = field({ type: "integer", minimum: 1, maximum: 9, default: 5 });
  assert.deepEqual(schema.parse(k, " 7 "), { value: 7 });
  assert.match(schema.parse(k, "0").problem, /at least 1/);
  assert.match(schema.parse(k, "10").problem, /at most 9/);
  assert.match(schema.parse(k, "1.5").problem, /whole number/);
  assert.match(schema.parse(k, "x").problem, /number/);
  assert.match(schema.parse(k, "").problem, /default is 5/);
  const p = field({ type: "number", exclusiveMinimum: 0, maximum: 1, default: 0.5 });
  assert.match(schema.parse(p, "0").problem, /above 0/);
  assert.deepEqual(schema.parse(p, "1"), { value: 1 });
  const open = field({ type: "number", minimum: 0, exclusiveMaximum: 1, default: 0 });
  assert.match(schema.parse(open, "1").problem, /below 1/);
});

test("empty is null where null is allowed", () => {
  assert.deepEqual(schema.parse(field({ type: ["number", "null"] }), ""), { value: null });
  assert.deepEqual(schema.parse(field({ type: ["string", "null"] }), ""), { value: null });
  assert.deepEqual(schema.parse(field({ type: "string" }), ""), { value: "" });
  assert.deepEqual(schema.parse(field({ type: "boolean" }), true), { value: true });
});

test("structured fields take names and JSON", () => {
  const inner = field({ type: "array" });
  assert.deepEqual(schema.parse(inner, "[1, 2]"), { value: [1, 2] });
  assert.deepEqual(schema.parse(inner, "cot"), { value: "cot" });
  assert.match(schema.parse(inner, "[1").problem, /JSON/);
  assert.equal(schema.show(inner, { name: "cot" }), '{"name":"cot"}');
});

test("only what differs from the defaults is sent", () => {
  const fields = schema.fieldsOf({ schema: { properties: { a: { type: "integer", default: 1 }, b: { type: "string", default: "x" } } } });
  assert.deepEqual(schema.changed(fields, { a: 1, b: "y", c: 3 }), { b: "y" });
  assert.equal(schema.presetOf({ one: { a: 2 }, two: { b: "y" } }, fields, { a: 1, b: "y" }), "two");
  assert.equal(schema.presetOf({ one: { a: 2 } }, fields, { a: 1, b: "x" }), "");
});

test("sliders have a range of use, the box has the whole one", () => {
  const range = (more) => schema.sliderRange(field(more));
  assert.deepEqual(range({ type: "integer", minimum: 1, maximum: 49152, default: 5 }), { minimum: 1, maximum: 20, step: 1 });
  assert.deepEqual(range({ type: "number", minimum: 0, maximum: 1, default: 0.05 }), { minimum: 0, maximum: 1, step: 0.01 });
  assert.equal(range({ type: "number", minimum: 0, default: 0.6 }).maximum, 2.5);
  assert.equal(range({ type: "number", minimum: 0, default: null }), null);
  assert.equal(range({ type: "number", default: 1 }), null);
  assert.equal(range({ type: "string", default: "x" }), null);
});

test("errors are sorted to where their fields are", () => {
  const { mine, general, rest } = schema.splitErrors(
    { k: ["a"], "strategy.T_e": ["b"], prompt: ["c"], strategy: ["d"], seed: "e" }, ["k", "T_e", "stop"]);
  assert.deepEqual(mine, { k: ["a"], T_e: ["b"] });
  assert.deepEqual(general, { prompt: ["c"], seed: ["e"] });
  assert.deepEqual(rest, ["d"]);
});
