// A picture of the columns, drawn by hand on a canvas.
import { PHASES, summary } from "./fold.js";
import { face, fedParts, form, glyphs, shades } from "./tokens.js";

const WIDTH = 460;
const PAD = 18;
const LINE = 22;
const STRIP = 84;
const STEP = 34;
const FONT = "system-ui, sans-serif";

/** A PNG of these runs; colours are those of the page's theme. */
export function picture(runs, colour) {
  const style = getComputedStyle(document.documentElement);
  const theme = (name) => style.getPropertyValue(`--${name}`).trim();
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  // Once to see how high it gets, once to draw.
  const heights = runs.map((run) => drawRun(context, run, 0, { colour, theme, paint: false }));
  const scale = 2;
  const height = Math.max(...heights) + PAD;
  canvas.width = scale * (runs.length * (WIDTH + PAD) + PAD);
  canvas.height = scale * height;
  context.scale(scale, scale);
  context.fillStyle = theme("bg");
  context.fillRect(0, 0, canvas.width, canvas.height);
  runs.forEach((run, i) => drawRun(context, run, PAD + i * (WIDTH + PAD), { colour, theme, paint: true }));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function drawRun(context, run, left, { colour, theme, paint }) {
  const right = left + WIDTH;
  let x = left;
  let y = PAD + 16;
  const write = (text, at, down, ink, font) => {
    context.font = font;
    context.fillStyle = theme(ink);
    if (paint) context.fillText(text, at, down);
  };
  const box = (a, b, w, h, fill) => {
    context.fillStyle = fill;
    if (paint) context.fillRect(a, b, w, h);
  };
  write(`${run.start.strategy.name} · seed ${run.start.seed} · ${run.start.model || ""}`, left, y, "ink", `600 15px ${FONT}`);
  y += 12;
  let phase = null;
  let shape = null;
  for (const step of run.steps) {
    const now = form(step);
    if (step.phase !== phase) {
      y += (shape === "strip" ? STRIP : phase === null ? 0 : LINE) + 14;
      write((PHASES[step.phase] || step.phase).toUpperCase(), left, y, "muted", `600 10px ${FONT}`);
      y += now === "strip" ? 8 : 20;
      x = left;
    } else if (now !== shape) {
      y += shape === "strip" ? STRIP + 22 : LINE;
      x = left;
    }
    phase = step.phase;
    shape = now;
    if (now === "strip") {
      if (x + STEP > right) {
        x = left;
        y += STRIP + 6;
      }
      drawColumn(step, x, y, { theme, box, write, context, paint });
      x += STEP + 2;
      continue;
    }
    const text = now === "chips" ? glyphs(face(step)) : face(step);
    context.font = `14px ${FONT}`;
    for (const [n, piece] of text.split("\n").entries()) {
      if (n) {
        x = left;
        y += LINE;
      }
      const width = context.measureText(piece).width;
      if (x + width > right && x > left) {
        x = left;
        y += LINE;
      }
      const shade = now === "text" ? shades(step)[colour] : null;
      if (shade) box(x, y - 14, width, 18, `color-mix(in oklab, ${theme("scale-1")} ${(shade * 100).toFixed(1)}%, ${theme("scale-0")})`);
      write(piece, x, y, now === "chips" ? "muted" : "ink", `14px ${FONT}`);
      x += width + (now === "chips" ? 6 : 0);
    }
  }
  y += (shape === "strip" ? STRIP : 0) + LINE + 6;
  if (run.done) {
    const end = summary(run.done);
    const parts = [end.grade, end.answer === null ? null : `answer ${end.answer}`, `${end.passes} passes`, `${end.seconds.toFixed(1)} s`];
    write(parts.filter(Boolean).join(" · "), left, y, "ink", `600 13px ${FONT}`);
  }
  return y + 8;
}

function drawColumn(step, x, y, { theme, box, write, context, paint }) {
  box(x, y, STEP, STRIP, theme("sunken"));
  if (step.kind === "latent") {
    box(x + 2, y + 2, STEP - 4, STRIP - 4, theme("latent-0"));
    return;
  }
  let up = y + STRIP;
  fedParts(step).forEach((part, n) => {
    const height = part.share * STRIP;
    up -= height;
    box(x, up, STEP, Math.max(0, height - 0.7), `color-mix(in oklab, ${theme("soft-0")} ${Math.max(10, 100 - n * 22)}%, ${theme("soft-1")})`);
    if (height < 13 || !paint) return;
    context.save();
    context.beginPath();
    context.rect(x, up, STEP, height);
    context.clip();
    write(glyphs(part.text), x + 2, up + height / 2 + 4, "ink", `10px ${FONT}`);
    context.restore();
  });
}
