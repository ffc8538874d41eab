import assert from "node:assert/strict";
import test from "node:test";
import { messages, toCsv, toJson } from "../../../src/unspoken/web/static/records.js";

const start = { id: "a", strategy: { name: "soft", k: 2 }, seed: 3 };
const soft = { event: "step", index: 0, phase: "think", kind: "soft", top: { ids: [1, 2, 3], probs: [0.5, 0.3, 0.1], weights: [0.6, 0.4, 0], texts: ["a", "=b", "c"] } };
const said = { event: "step", index: 1, phase: "answer", kind: "token", token_id: 9, text: '=1+"2",\n', logprob: Math.log(0.5) };
const done = { reason: "eos" };
const run = { start, done, steps: [soft, said], events: [{ name: "step", value: soft }, { name: "step", value: said }] };

test("JSON holds every event as it came", () => {
  const back = JSON.parse(toJson([run]));
  assert.deepEqual(back.runs, [{ start, events: [soft, said], done }]);
});

test("a kept run becomes the messages of its stream", () => {
  const names = (kept) => messages(kept).map((m) => m.name);
  assert.deepEqual(names({ start, events: [soft, said], done }), ["start", "step", "step", "done"]);
  assert.deepEqual(names({ start, events: [soft, { event: "done", reason: "x" }], done }), ["start", "step", "done"]);
  assert.equal(messages({ start, events: [soft, { event: "done", reason: "x" }], done })[2].value, done);
});

test("CSV has a line a step; no cell can be read as a formula or breaks its line", () => {
  const lines = toCsv([run]).split("\r\n");
  assert.equal(lines.length, 4);
  assert.equal(lines[0].split(",").length, 16);
  assert.ok(lines[1].endsWith('"""[[\\""a\\"",0.6],[\\""=b\\"",0.4]]"""'), lines[1]);
  assert.ok(lines[2].includes('"""=1+\\""2\\"",\\n"""'), lines[2]);
  assert.ok(!lines.join("\n").split(/[,\n]/).some((cell) => /^"?[=+@]/.test(cell)));
});
