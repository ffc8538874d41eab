"""What the lab's page costs generation, against a plain reader of the same streams on the same two cores.

    python benchmarks/page.py                       # SmolLM2 float32, one column and four, about six minutes
    python benchmarks/page.py --columns 4 --pairs 3

`unspoken lab` runs as a process of its own. In each round the same requests, with the same seed, are read once by the
page in Chromium, which draws every step, and once by threads that only read the bytes and count messages; which of
them is first changes from round to round. Server, browser and reader share two cores. Nothing is attached to the
browser while the page reads: instruments would count as the page. A round's tokens per second are the steps of all
columns over the longest of the times that the server reports for them. Printed are the median of the rounds' ratios
and their range, and the processor time that the browser and the reader took for each step.

Then the page alone, on the recorded streams of tests/web: the longest task while four columns of 500 steps come, all at
once and one step in 4 ms, and while the slider jumps through them. `--columns` without a number leaves the first part
out, `--recorded 0` the second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

PROMPT = "Tell a long story about a lighthouse keeper who counts ships, and list every ship with its colour."
COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "soft", "k": 10, "min_end_prob": 1.0},
    {"name": "cot", "temperature": 0.9},
    {"name": "soft", "k": 20, "min_end_prob": 1.0, "temperature": 1.0},
    {"name": "cot", "temperature": 1.1},
)
REST = 3.0  # seconds without work before either side: a machine that was idle may be faster for a while
ARGUMENTS = (
    "no-sandbox disable-gpu window-size=1440,900 no-first-run disable-background-networking "
    "disable-component-update disable-sync"
)


@dataclass
class Taken:
    """One reading of the streams.

    Attributes:
        steps: Of all columns.
        seconds: From the first row's admission to the last one's end, as the server counts.
        processor: Seconds that whoever read has kept processors busy.
    """

    steps: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


def taken(ends: list[dict[str, Any]], processor: float) -> Taken:
    """The sum of the streams' ends."""
    used = [end["usage"] for end in ends]
    steps = sum(u["tokens"] + u["latent_steps"] + u["forced_tokens"] for u in used)
    return Taken(steps, max(u["seconds"] for u in used), processor)


@contextmanager
def lab(model: str, dtype: str) -> Iterator[str]:
    """The address of `unspoken lab` in a process of its own."""
    command = [sys.executable, "-m", "unspoken", "lab", "-m", model, "--dtype", dtype, "--port", "0"]
    command += ["--no-browser", "--history", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://[\w.:]+\d", line):
                break
        else:
            raise SystemExit("The lab did not start.")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


def read(base: str, body: dict[str, Any], ends: list[dict[str, Any]]) -> None:
    """The plain reader: lines are read and their kinds counted, only the last message is understood."""
    import http.client

    place = urlsplit(base)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
    connection.request("POST", "/api/stream", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    last = b""
    while line := response.readline():
        if line.startswith(b"data: "):
            last = line
    connection.close()
    ends.append(json.loads(last[6:]))


def plain(base: str, bodies: list[dict[str, Any]]) -> Taken:
    """All streams, read by a thread each."""
    ends: list[dict[str, Any]] = []
    threads = [threading.Thread(target=read, args=(base, body, ends)) for body in bodies]
    time.sleep(REST)
    before = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken(ends, time.process_time() - before)


@contextmanager
def chromium(program: str) -> Iterator[str]:
    """The address at which a Chromium of its own, with a new profile, can be attached to."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        command += [f"--{argument}" for argument in ARGUMENTS.split()]
        process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"ws://([\w.:]+)/", line):
                    break
            else:
                raise SystemExit("Chromium did not start.")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield f"http://{found[1]}"
        finally:
            process.terminate()
            process.wait(30)


class Page:
    """The lab's page in a browser that is attached to for a moment at a time.

    Args:
        driver: Playwright's.
        browser: The address to attach to.
        base: The lab's address.
        columns: Strategies with their fields.
        steps: Most steps of each.
    """

    def __init__(
        self, driver: Any, browser: str, base: str, columns: list[dict[str, Any]], steps: int
    ) -> None:
        self.driver, self.browser, self.base = driver, browser, base
        state = {"prompt": PROMPT, "seed": 1, "max_new_tokens": steps, "columns": columns}
        with self.attached() as page:
            page.goto("about:blank")  # an address that differs after # alone loads nothing
            page.goto(f"{base}/#lab={quote(json.dumps(state))}")
            page.wait_for_selector("html[data-ready]")

    @contextmanager
    def attached(self) -> Iterator[Any]:
        """Playwright's view of the page."""
        browser = self.driver.chromium.connect_over_cdp(self.browser)
        try:
            yield browser.contexts[0].pages[0]
        finally:
            browser.close()  # of what was attached to: detaches

    def bodies(self) -> list[dict[str, Any]]:
        """Run all columns once, attached, and give the requests that they make."""
        asked: list[dict[str, Any]] = []
        with self.attached() as page:
            page.on(
                "request", lambda r: asked.append(r.post_data_json) if r.url.endswith("/api/stream") else None
            )
            page.press("#prompt", "Enter")
            page.wait_for_function(DRAWN, polling=1000, timeout=600_000)
        return [{**body, "id": None} for body in asked]

    def run(self) -> Taken:
        """Run all columns and wait until they are drawn to their ends."""
        with self.attached() as page:
            page.focus("#prompt")
            page.evaluate(f"setTimeout(() => document.querySelector('#run').click(), {1000 * REST})")
        before = processor_of_children()
        time.sleep(REST + 2.0)
        while busy(self.base):
            time.sleep(1.0)
        time.sleep(1.0)
        spent = processor_of_children() - before
        with self.attached() as page:
            page.wait_for_function(DRAWN, timeout=60_000)
            done = "[...document.querySelectorAll('.column')].map(c => c.column.state.done)"
            return taken(page.evaluate(done), spent)


DRAWN = "() => [...document.querySelectorAll('.column')].every(c => c.querySelector('.result b'))"


def busy(base: str) -> bool:
    """Whether a row is running or waiting in the lab."""
    with urllib.request.urlopen(f"{base}/healthz") as response:
        health = json.load(response)
    return bool(health["running"] or health["waiting"])


def processor_of_children() -> float:
    """Seconds of processor time of Chromium and what drives it: all processes below this one but the lab's."""
    parents, times, names = {}, {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[entry.name] = (entry / "cmdline").read_text()
            except OSError:
                continue  # it has ended
            fields = stat.rpartition(")")[2].split()
            parents[entry.name] = fields[1]
            times[entry.name] = int(fields[11]) + int(fields[12])
    ticks = 0
    for process in times:
        above = process
        while above in parents and above != str(os.getpid()) and "\0unspoken\0lab\0" not in names[above]:
            above = parents[above]
        ticks += times[process] if above == str(os.getpid()) and process != above else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def rounds(
    driver: Any, browser: str, base: str, count: int, pairs: int, steps: int
) -> list[tuple[Taken, Taken]]:
    """The page and the plain reader, taking turns at being first."""
    columns = [{**c, "T_e": steps // 2} if c["name"] == "soft" else c for c in COLUMNS[:count]]
    page = Page(driver, browser, base, columns, steps)
    bodies = page.bodies()
    found = []
    for i in range(pairs):
        if i % 2:
            bare = plain(base, bodies)
            drawn = page.run()
        else:
            drawn = page.run()
            bare = plain(base, bodies)
        found.append((drawn, bare))
        print(f"  round {i + 1}: page {drawn.rate:.2f}, reader {bare.rate:.2f} steps/s", file=sys.stderr)
    return found


def tell(count: int, found: list[tuple[Taken, Taken]]) -> None:
    """One line for a number of columns."""
    ratios = sorted(drawn.rate / bare.rate for drawn, bare in found)
    page, reader = ([pair[i] for pair in found] for i in (0, 1))
    spent = [1000 * sum(t.processor for t in side) / sum(t.steps for t in side) for side in (page, reader)]
    name = f"{count} column{'s' if count > 1 else ''}"
    print(
        f"{name}: {statistics.median(t.rate for t in page):.1f} steps/s with the page, "
        f"{statistics.median(t.rate for t in reader):.1f} with the reader; ratio {statistics.median(ratios):.3f} "
        f"[{ratios[0]:.3f}, {ratios[-1]:.3f}] over {len(found)} pairs; processor time a step "
        f"{spent[0]:.1f} ms (page), {spent[1]:.2f} ms (reader)"
    )


LONG_TASKS = """() => {
  window.tasks = [];
  new PerformanceObserver(list => { for (const e of list.getEntries()) window.tasks.push(e.duration); })
    .observe({type: 'longtask'});
}"""


def recorded(driver: Any, browser: str, pace: float, repeats: int) -> None:
    """Four columns of 500 recorded steps with 20 candidates each, `pace` seconds a step; print the longest tasks."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "web"))
    import fake_lab
    import fake_runs

    server = fake_lab.FakeLab().start()
    server.steps, server.pace = 500, pace
    for name in ("soft", "cot"):
        run = fake_runs.make(name, {"prompt": PROMPT, "strategy": {"name": name}}, 500)
        words = [fake_runs._token(i, k=20) for i in range(500)]
        server.recordings[name] = run | {"events": fake_runs.soft(500, 20) if name == "soft" else words}
    longest = []
    for _ in range(repeats):
        names = ("soft", "cot", "soft", "cot")
        opened = Page(driver, browser, server.address, [{"name": name} for name in names], 700)
        with opened.attached() as page:
            page.evaluate(LONG_TASKS)
            page.press("#prompt", "Enter")
            page.wait_for_function(DRAWN, polling=1000, timeout=60_000)
            for tick in (250, 20, 499, 500):
                move = "(s, t) => { s.value = t; s.dispatchEvent(new Event('input')); }"
                page.locator("#scrub").evaluate(move, tick)
                page.wait_for_timeout(500)
            longest.append(max(page.evaluate("window.tasks"), default=0))
    server.shutdown()
    server.server_close()
    how = f"a step in {1000 * pace:.0f} ms" if pace else "all at once"
    print(f"4 columns x 500 recorded steps, {how}: longest task {', '.join(f'{t:.0f}' for t in longest)} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--columns", type=int, nargs="*", default=[1, 4], choices=range(1, 5))
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--recorded", type=int, default=3, help="repetitions of the second part")
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("There is no Chromium here. On Debian: apt-get install chromium")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver, chromium(program) as browser:
        if options.columns:
            with lab(options.model, options.dtype) as base:
                for count in options.columns:
                    tell(count, rounds(driver, browser, base, count, options.pairs, options.steps))
        if options.recorded:
            for pace in (0.0, 0.004):
                recorded(driver, browser, pace, options.recorded)


if __name__ == "__main__":
    main()
