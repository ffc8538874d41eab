// One slider for all columns: look back at any step, play it again.
import { $ } from "./dom.js";

const PACE = 40; // milliseconds a step when replaying

/** @param {object} lab `columns`, `draw()` */
export function makeScrub(lab) {
  const slider = $("scrub");
  const text = $("scrub-text");
  const play = $("play");
  let tick = null; // null: the present
  let playing = null; // {from, since}

  const last = () => lab.columns.reduce((most, column) => Math.max(most, column.total), 0);

  function seek(to) {
    tick = to >= last() ? null : Math.max(0, to);
    for (const column of lab.columns) column.look(tick);
    lab.draw();
  }

  function stop() {
    playing = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Replay");
  }

  function start() {
    if (!last()) return;
    const from = tick === null ? 0 : tick;
    seek(from);
    playing = { from, since: performance.now() };
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
  }

  const move = (by) => {
    stop();
    seek((tick ?? last()) + by);
  };
  slider.addEventListener("input", () => {
    stop();
    seek(Number(slider.value));
  });
  play.addEventListener("click", () => (playing ? stop() : start()));
  $("back").addEventListener("click", () => move(-1));
  $("forward").addEventListener("click", () => move(1));

  return {
    /** Back to the present, as for a new run. */
    live() {
      stop();
      tick = null;
      for (const column of lab.columns) column.look(null);
    },
    /** Before the columns are drawn: goes on with a replay; whether more frames are wanted. */
    advance() {
      if (!playing) return false;
      const to = playing.from + Math.floor((performance.now() - playing.since) / PACE);
      if (to >= last()) stop();
      if (to !== tick) seek(to);
      return playing !== null;
    },
    /** After the columns are drawn: says where they are. */
    paint() {
      const most = last();
      const now = tick ?? most;
      slider.disabled = !most;
      if (Number(slider.max) !== most) slider.max = most;
      if (Number(slider.value) !== now) slider.value = now;
      const said = most ? `step ${now} of ${most}${tick === null && lab.running ? ", live" : ""}` : "no steps yet";
      if (text.textContent !== said) {
        text.textContent = said;
        slider.setAttribute("aria-valuetext", said);
      }
    },
  };
}
