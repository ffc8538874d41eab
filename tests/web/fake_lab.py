"""A server that speaks the lab's contract from recordings: what the page needs, at any pace, the same every time.

No model and no framework, so that tests of the page are fast and cannot fail for the server's reasons.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import fake_runs

STATIC = Path(__file__).parents[2] / "src/unspoken/web/static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CSP = "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data: blob:; base-uri 'none'"


def field(kind: str, default: Any, text: str, **more: Any) -> dict[str, Any]:
    """One property of a schema."""
    return {"type": kind, "default": default, "description": text, **more}


STRATEGIES = [
    {
        "name": "cot",
        "title": "Chain Of Thought",
        "summary": "Chain of thought: think in words, one sampled token at a time.",
        "formula": "x ~ p(x)",
        "presets": {},
        "sequence": False,
        "schema": {
            "type": "object",
            "properties": {
                "temperature": field("number", 0.6, "Sampling temperature; 0 is greedy.", minimum=0)
            },
        },
    },
    {
        "name": "soft",
        "title": "Soft Thinking",
        "summary": "Soft thinking: think in mixtures of embeddings for a while, then answer in words.",
        "formula": "input = Σ wᵢ·E[i] over the top k",
        "presets": {"wide": {"k": 20, "temperature": 1.0}, "uniform": {"mixture": "uniform"}},
        "sequence": False,
        "schema": {
            "type": "object",
            "properties": {
                "mixture": field("string", "non_uniform", "What is mixed.", enum=["non_uniform", "uniform"]),
                "k": field("integer", 5, "Tokens in each mixture.", minimum=1, maximum=49152),
                "T_e": field("integer", 200, "Most thinking steps.", minimum=0),
                "T_total": field("integer", None, "Steps of both phases.", minimum=1)
                | {"type": ["integer", "null"]},
                "temperature": field("number", 0.6, "Of the law that is mixed.", minimum=0),
                "min_end_prob": field("number", 0.05, "When thinking ends.", exclusiveMinimum=0, maximum=1),
                "mix_norm": field("boolean", False, "Rescale each mixture."),
            },
        },
    },
    {
        "name": "power",
        "title": "Power Sampling",
        "summary": "Power sampling: a Markov chain over whole answers.",
        "formula": "x ∝ p(x)^α",
        "presets": {},
        "sequence": True,
        "schema": {"type": "object", "properties": {"mcmc_steps": field("integer", 10, "Moves.", minimum=0)}},
    },
    {
        "name": "continuous",
        "title": "Continuous Thought",
        "summary": "Feed the last hidden state back.",
        "formula": "input = h",
        "presets": {},
        "sequence": False,
        "schema": {"type": "object", "properties": {}},
    },
]


class FakeLab(ThreadingHTTPServer):
    """The server.

    Attributes:
        pace: Seconds between the steps of a stream.
        model: Its name.
        hold: How many events a stream sends before it waits: to be None again, or for its request to be cancelled.
        down: Whether strategies cannot be read.
        fitted: What a run says of settings that were fitted.
        runs: Kept runs, oldest first.
        asked: Bodies of `/api/stream`, in order.
        cancelled: Ids of requests that were told to end.
        closed: Ids of requests whose connection was closed by the page.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pace = 0.001
        self.model = "tiny"
        self.down = False
        self.hold: int | None = None
        self.fitted: list[str] = []
        self.steps = 40
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.lensed: list[dict[str, Any]] = []
        self.cancelled: set[str] = set()
        self.closed: set[str] = set()
        self.recordings: dict[str, dict[str, Any]] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> FakeLab:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def record(self, body: dict[str, Any]) -> dict[str, Any]:
        """The recorded run that answers a request."""
        name = body["strategy"]["name"]
        if name in self.recordings:
            return self.recordings[name]
        return fake_runs.make(name, body, self.steps)


class Handler(BaseHTTPRequestHandler):
    """The contract's routes."""

    server: FakeLab
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def reply(self, value: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", CSP)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str, hint: str = "", **fields: list[str]) -> None:
        self.reply({"error": {"message": message, "hint": hint, "fields": fields}}, status)

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if url.path == "/" or url.path.startswith("/static/"):
            path = STATIC / (url.path.removeprefix("/static/") if url.path != "/" else "index.html")
            if path.parent != STATIC or not path.is_file():
                self.refuse(404, "There is no such page.")
            else:
                self.reply(path.read_bytes(), kind=f"{TYPES[path.suffix]}; charset=utf-8")
        elif url.path == "/api/model-status":
            self.reply(
                {
                    "loaded": True,
                    "name": self.server.model,
                    "dtype": "float32",
                    "device": "cpu",
                    "eos_ids": [2],
                }
            )
        elif url.path == "/api/strategies" and self.server.down:
            self.refuse(503, "The model is not ready.", "Try again.")
        elif url.path == "/api/strategies":
            self.reply(STRATEGIES)
        elif url.path == "/api/runs":
            self.list(parse_qs(url.query))
        elif url.path.startswith("/api/run/"):
            run = self.server.runs.get(url.path.rpartition("/")[2])
            self.reply(run) if run else self.refuse(404, "There is no such run.")
        else:
            self.refuse(404, "There is no such page.")

    def do_DELETE(self) -> None:
        gone = self.server.runs.pop(self.path.rpartition("/")[2], None)
        self.reply({"deleted": True}) if gone else self.refuse(404, "There is no such run.")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/cancel":
            self.server.cancelled.add(body["id"])
            self.reply({"cancelled": True})
        elif self.path == "/api/lens":
            self.server.lensed.append(body)
            self.lens(body)
        elif self.path == "/api/stream":
            self.server.asked.append(body)
            self.stream(body)
        else:
            self.refuse(404, "There is no such page.")

    def list(self, query: dict[str, list[str]]) -> None:
        ids = list(reversed(self.server.runs))
        if "before" in query and query["before"][0] in ids:
            ids = ids[ids.index(query["before"][0]) + 1 :]
        rows = []
        for id in ids[: int(query.get("limit", ["50"])[0])]:
            run = self.server.runs[id]
            start, done = run["start"], run["done"]
            rows.append(
                {
                    "id": id,
                    "time": "2026-01-02T03:04:05Z",
                    "prompt": start["prompt"]["user"][:200],
                    "strategy": start["strategy"]["name"],
                    "seed": start["seed"],
                    "text": done["text"][:200],
                    "reason": done["reason"],
                    "usage": done["usage"],
                    "grade": done.get("grade"),
                }
            )
        self.reply(rows)

    def lens(self, body: dict[str, Any]) -> None:
        run = self.server.runs.get(body["run"])
        if run is None:
            self.refuse(404, "There is no such run.")
            return
        steps = [e for e in run["events"] if e["event"] == "step"][body["first"] : body["last"] + 1]
        layers, n = [-1, 0, 1, 2], len(steps)
        values = [[(la + 2) * 0.5 + 0.1 * i for i in range(n)] for la in layers]
        self.reply(
            {
                "layers": layers,
                "steps": [s["index"] for s in steps],
                "labels": [s.get("text", "") or s["kind"] for s in steps],
                "top": [[f"w{la}.{i}" for i in range(n)] for la in layers],
                "values": {
                    "kl": values,
                    "entropy": values,
                    "prob": values,
                    "rank": [[1 + i for i in range(n)]] * 4,
                },
            }
        )

    def stream(self, body: dict[str, Any]) -> None:
        fields = body["strategy"]
        if fields.get("T_e", 200) > body["max_new_tokens"] and fields["name"] == "soft":
            self.refuse(
                422, "T_e does not fit.", "Lower it.", **{"strategy.T_e": ["T_e must not exceed the budget."]}
            )
            return
        if body["prompt"] == "flood":
            self.reply(
                {"error": {"message": "The queue is full.", "hint": "", "fields": {}}}, 429, Retry_After="3"
            )
            return
        run = self.server.record(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        kept: list[dict[str, Any]] = []
        try:
            for name, value in self.messages(run, body, kept):
                self.wfile.write(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())
                if name == "step" and self.server.pace:
                    time.sleep(self.server.pace)
        except OSError:
            self.server.closed.add(body.get("id", ""))
        self.close_connection = True

    def messages(
        self, run: dict[str, Any], body: dict[str, Any], kept: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        start = {
            **run["start"],
            "id": body.get("id", "x"),
            "prompt": {"user": body["prompt"], "system": None},
            "stop": body.get("stop", []),
            "fitted": self.server.fitted,
        }
        yield "start", start
        reason = run["done"]["reason"]
        for i, event in enumerate(run["events"]):
            while i == self.server.hold and body.get("id") not in self.server.cancelled:
                time.sleep(0.01)
            if body.get("id") in self.server.cancelled:
                reason = "cancelled"
                break
            kept.append(event)
            yield event["event"], event
        id = f"run-{len(self.server.runs):06d}"
        done = {**run["done"], "reason": reason, "run": id}
        self.server.runs[id] = {"start": start, "events": kept, "done": done}
        yield "done", done
