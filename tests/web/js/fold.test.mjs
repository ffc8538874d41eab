import assert from "node:assert/strict";
import test from "node:test";
import { apply, blocks, counts, emptyState, foldTo, gradeOf, shared, status, summary, ticks, verdict, verdicts } from "../../../src/unspoken/web/static/fold.js";

const step = (text, more = {}) => ({ name: "step", value: { text, kind: "token", phase: "answer", ...more } });
const rewind = (to) => ({ name: "rewind", value: { to } });
const move = (accepted, more = {}) => ({ name: "note", value: { name: "mcmc", value: { block: 0, move: 0, accepted, ...more } } });
const fold = (events) => events.reduce((state, { name, value }) => apply(state, name, value), emptyState());
const text = (state) => state.steps.map((s) => s.text).join("");
const marks = (state) => [...state.marks].map(([to, m]) => [to, m.runs.map((r) => `${r.steps.map((s) => s.text).join("")}:${r.why}`)]);

test("steps and rewinds fold as the records say", () => {
  const state = fold([step("a"), step("b"), step("c"), rewind(1), step("d")]);
  assert.equal(text(state), "ad");
  assert.deepEqual(marks(state), [[1, ["bc:cut"]]]);
  assert.equal(state.received, 4);
});

test("a rewind takes the marks inside what goes into its own", () => {
  const state = fold([step("a"), step("b"), step("c"), rewind(2), step("d"), rewind(1), step("e")]);
  assert.deepEqual(marks(state), [[1, ["c:cut", "bd:cut"]]]);
  assert.equal(state.marks.get(1).count, 2);
});

test("a rewind to where nothing follows leaves no mark", () => {
  assert.deepEqual(marks(fold([step("a"), rewind(1), rewind(1)])), []);
});

test("a refused proposal is struck, and the text that came back is not", () => {
  const old = [step("b"), step("c")];
  const state = fold([step("a"), ...old, rewind(1), step("x"), step("y"), move(false), rewind(1), ...old]);
  assert.equal(text(state), "abc");
  assert.deepEqual(marks(state), [[1, ["xy:rejected"]]]);
});

test("an accepted proposal strikes what it replaced", () => {
  const state = fold([step("a"), step("b"), rewind(1), step("x"), move(true), rewind(1), step("z")]);
  assert.equal(text(state), "az");
  assert.deepEqual(marks(state), [[1, ["b:replaced", "x:cut"]]]);
});

test("a proposal that is the present text is neither accepted nor rejected", () => {
  const same = { accepted: true, apart: 3, length: 3, log_ratio: 0 };
  const all = [same, { ...same, apart: 2, log_ratio: -0.2 }, { ...same, apart: 2 }, { ...same, accepted: false, apart: 1, log_ratio: -9 }];
  assert.deepEqual(all.map(verdict), ["unchanged", "accepted", "accepted", "rejected"]);
  assert.deepEqual(verdicts([same, ...all]), ["2 accepted", "1 rejected", "2 unchanged"]);
  assert.deepEqual(verdicts([same]), ["1 unchanged"]);
});

test("a text that is proposed again strikes nothing, and nothing when it was never written", () => {
  const same = { apart: 3, length: 3, log_ratio: 0 };
  const old = [step("a"), step("b"), step("c")];
  assert.deepEqual(marks(fold([...old, rewind(1), step("b"), step("c"), move(true, same)])), []);
  const back = fold([...old, rewind(1), step("b"), step("c"), move(true, same), rewind(1), ...old.slice(1)]);
  assert.deepEqual([text(back), marks(back)], ["abc", [[1, ["bc:unchanged"]]]]);
  const next = fold([...old, move(true, same), rewind(2), step("x"), move(true)]);
  assert.deepEqual(marks(next), [[2, ["c:replaced"]]]);
});

test("every tick shows the record up to that step, and the last one all of it", () => {
  const events = [step("a"), step("b"), move(true), rewind(1), step("c"), { name: "done", value: { reason: "eos" } }];
  assert.equal(ticks(events), 3);
  assert.deepEqual([0, 1, 2, 3].map((t) => text(foldTo(events, t))), ["", "a", "ab", "ac"]);
  assert.equal(foldTo(events, 2).moves.length, 1);
  assert.equal(foldTo(events, 2).done, null);
  assert.equal(foldTo(events, 3).done.reason, "eos");
});

test("dirty is the first place that has changed", () => {
  const state = fold([step("a"), step("b"), step("c")]);
  state.dirty = 3;
  apply(state, "step", {});
  assert.equal(state.dirty, 3);
  apply(state, "rewind", { to: 1 });
  assert.equal(state.dirty, 1);
});

test("the shared beginning is that of the very same objects", () => {
  const [a, b] = [{}, {}];
  assert.equal(shared([a, b], [a, b, a]), 2);
  assert.equal(shared([a, b], [a, { ...b }]), 1);
});

test("blocks are counted as the chain cuts them", () => {
  assert.equal(blocks({ block_size: 48 }, 144), 3);
  assert.equal(blocks({ block_size: 50 }, 144), 3);
  assert.equal(blocks({ num_blocks: 4 }, 256), 4);
  assert.equal(blocks({}, 512), 3);
  assert.equal(blocks({}, 0), null);
});

test("the status line counts the steps of the phase", () => {
  const start = { name: "start", value: { strategy: { name: "soft", T_e: 9 }, max_new_tokens: 20 } };
  const think = step("", { kind: "soft", phase: "think", entropy: 1.234, end_prob: 0.01 });
  assert.deepEqual(status(fold([start])), ["reading the prompt"]);
  assert.deepEqual(status(fold([start, think, think])), ["step 2 of at most 9", "H 1.23", "end 0.010"]);
  assert.deepEqual(status(fold([start, think, step("x")])), ["step 1"]);
  const moved = fold([start, step("x"), move(true), move(false, { block: 1, move: 4 })]);
  assert.deepEqual(status(moved).slice(0, 2), ["block 2/1", "move 5"]);
  assert.deepEqual(counts([think.value, step("x").value]), ["2 steps", "1 soft", "1 said"]);
});

test("the footer reads answers and grades in either form", () => {
  assert.equal(gradeOf({ grade: "correct" }), "correct");
  assert.equal(gradeOf({ grade: { status: "wrong" } }), "wrong");
  assert.equal(gradeOf({}), null);
  const end = summary({ reason: "length", answer: null, grade: { status: "wrong", answer: "3" }, usage: { forward_passes: 7 } });
  assert.deepEqual([end.answer, end.grade, end.reason, end.passes], ["3", "wrong", "budget used up", 7]);
});
