import assert from "node:assert/strict";
import test from "node:test";
import { createParser } from "../../../src/unspoken/web/static/sse.js";

const TEXT = ': keep-alive\n\nevent: start\ndata: {"id":1}\n\nevent: step\r\ndata: {"a":\r\ndata: 2}\r\n\r\ndata: plain\n\nid: 3\nevent: lost\n\ndata: é✓\r\rdata: unfinished\n';
const WANT = [
  { event: "start", data: '{"id":1}' },
  { event: "step", data: '{"a":\n2}' },
  { event: "message", data: "plain" },
  { event: "message", data: "é✓" },
];

test("messages are the same however the stream is cut", () => {
  for (let size = 1; size <= TEXT.length; size += 1) {
    const parser = createParser();
    const out = [];
    for (let i = 0; i < TEXT.length; i += size) out.push(...parser.feed(TEXT.slice(i, i + size)));
    assert.deepEqual(out, WANT, `pieces of ${size}`);
  }
});

test("a byte order mark and empty chunks do no harm", () => {
  const parser = createParser();
  assert.deepEqual(parser.feed(""), []);
  assert.deepEqual(parser.feed("\ufeffdata: x\n\n"), [{ event: "message", data: "x" }]);
});
