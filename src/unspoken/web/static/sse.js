// Server-sent events from chunks of text, however they are cut. Pure: no network, no page.

/** A parser of one stream: `feed(text)` gives the messages `{event, data}` that are now complete. */
export function createParser() {
  let rest = "";
  let event = "";
  let data = [];
  let first = true;
  const line = (text, out) => {
    if (text === "") {
      if (data.length) out.push({ event: event || "message", data: data.join("\n") });
      event = "";
      data = [];
      return;
    }
    const colon = text.indexOf(":");
    if (colon === 0) return; // a comment, such as keep-alive
    const name = colon < 0 ? text : text.slice(0, colon);
    let value = colon < 0 ? "" : text.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "event") event = value;
    else if (name === "data") data.push(value);
  };
  return {
    feed(chunk) {
      let text = rest + chunk;
      if (first && text) {
        first = false;
        if (text.charCodeAt(0) === 0xfeff) text = text.slice(1);
      }
      const out = [];
      let from = 0;
      let lf = -1;
      let cr = -1;
      const find = (end, at) => {
        const found = at < from ? text.indexOf(end, from) : at;
        return found < 0 ? text.length : found;
      };
      for (;;) {
        lf = find("\n", lf);
        cr = find("\r", cr);
        const at = Math.min(lf, cr);
        if (at === text.length) break;
        const crlf = text[at] === "\r" && text[at + 1] === "\n";
        if (text[at] === "\r" && at + 1 === text.length) break; // its \n may be in the next chunk
        line(text.slice(from, at), out);
        from = at + (crlf ? 2 : 1);
      }
      rest = text.slice(from);
      return out;
    },
  };
}
