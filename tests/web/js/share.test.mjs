import assert from "node:assert/strict";
import test from "node:test";
import { decode, encode, remark } from "../../../src/unspoken/web/static/share.js";

const STATE = {
  prompt: "1 + 1 = ? #&%<b>✓\n", system: "", gold: "2", stop: ["a|b", "\n"], depth: "", model: "tiny", seed: 0, max_new_tokens: 64,
  columns: [{ name: "soft", fields: { k: 7, mixture: "uniform" } }, { name: "cot", fields: {} }],
};

test("what is encoded is what is decoded", () => {
  const { system, depth, ...want } = STATE;
  assert.deepEqual(decode(encode(STATE)), { ...want, left: [] });
  assert.equal(system + depth, "");
});

test("nothing that does not fit gets in, and what was left out is named", () => {
  for (const other of ["", "#", "#other={}"]) assert.equal(decode(other), null);
  const whole = encode(STATE);
  for (const bad of ["#lab=", "#lab=%", "#lab=[]", "#lab=null", "#lab=3", whole.slice(0, -9)]) assert.equal(decode(bad).damaged, true, bad);
  const odd = { prompt: 3, seed: "x", max_new_tokens: 1.5, stop: "a", constructor: "", columns: [null, "a", { name: 3 }, { name: "cot" }] };
  assert.deepEqual(decode(`#lab=${encodeURIComponent(JSON.stringify(odd))}`), {
    columns: [{ name: "cot", fields: {} }],
    left: ["prompt", "seed", "max_new_tokens", "stop", "constructor", "column 1", "column 2", "column 3"],
  });
  const many = { columns: Array(9).fill({ name: "cot" }) };
  assert.equal(decode(`#lab=${encodeURIComponent(JSON.stringify(many))}`).columns.length, 4);
});

test("what is wrong with an address is said", () => {
  assert.equal(remark(decode(encode(STATE)), "tiny"), "");
  assert.equal(remark(decode(encode({ ...STATE, model: undefined })), "tiny"), "");
  assert.equal(remark(decode(encode(STATE)), "large"), "This address was made with the model tiny; here it is large.");
  assert.match(remark(decode("#lab=%"), "tiny"), /damaged/);
  assert.match(remark(decode(`#lab=${encodeURIComponent('{"seed": "x"}')}`), "tiny"), /left out: seed\./);
});
