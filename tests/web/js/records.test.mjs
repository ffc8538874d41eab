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

test("CSV has a line a step; cells are the texts themselves, and JSON only where something is nested", () => {
  const [head, first, second, end] = toCsv([run]).split("\r\n");
  assert.equal(head.split(",").length, 16);
  assert.ok(first.startsWith('1,"soft",3,0,"think","soft",,,'), first);
  assert.ok(first.endsWith('"[[""a"",0.6],[""=b"",0.4]]"'), first);
  assert.equal(second, '1,"soft",3,1,"answer","token",9,"=1+""2"",\n",0.5,-0.6931471805599453,,,,,,');
  assert.equal(end, "");
});

test("what a spreadsheet would run is marked as a text", () => {
  const textOf = (text) => /"token",9,("(?:[^"]|"")*")/.exec(toCsv([{ start, done, steps: [{ ...said, text }] }]))[1];
  assert.equal(textOf('=HYPERLINK("x")'), `"'=HYPERLINK(""x"")"`);
  assert.equal(textOf("@cmd|' /C x'!A0"), `"'@cmd|' /C x'!A0"`);
  for (const plain of ["=", " =", "-", "+5", "-0.5", "a=b(c)"]) assert.equal(textOf(plain), `"${plain}"`);
});
