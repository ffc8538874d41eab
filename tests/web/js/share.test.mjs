import assert from "node:assert/strict";
import test from "node:test";
import { decode, encode } from "../../../src/unspoken/web/static/share.js";

const STATE = {
  prompt: "1 + 1 = ? #&%<b>✓\n", system: "", gold: "2", stop: "a|b", depth: "", seed: 0, max_new_tokens: 64,
  columns: [{ name: "soft", fields: { k: 7, mixture: "uniform" } }, { name: "cot", fields: {} }],
};

test("what is encoded is what is decoded", () => {
  const { system, depth, ...want } = STATE;
  assert.deepEqual(decode(encode(STATE)), want);
  assert.equal(system + depth, "");
});

test("nothing that does not fit gets in", () => {
  for (const bad of ["", "#", "#lab=", "#lab=%", "#lab=[]", "#lab=null", "#lab=3", "#other={}"]) assert.equal(decode(bad), null);
  const odd = { prompt: 3, seed: "x", max_new_tokens: 1.5, columns: [null, "a", { name: 3 }, { name: "cot" }] };
  assert.deepEqual(decode(`#lab=${encodeURIComponent(JSON.stringify(odd))}`), { columns: [{ name: "cot", fields: {} }] });
  const many = { columns: Array(9).fill({ name: "cot" }) };
  assert.equal(decode(`#lab=${encodeURIComponent(JSON.stringify(many))}`).columns.length, 4);
});
