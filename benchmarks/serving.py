"""The server under load: many clients on loopback against one, every request answered.

    python benchmarks/serving.py                    # SmolLM2, 32 clients, about a minute on 2 cores
    python benchmarks/serving.py --model tiny-llama-folder --clients 64

Clients are threads with a connection each. Every client asks its questions one after the other through
`/v1/chat/completions`, as a stream; the strategies alternate. The single client asks a few of the same questions. What
counts is tokens per second over the whole time, first request to last answer, network and JSON included. Afterwards
some answers are compared with what the library gives alone; where they part, the difference of the two
log-probabilities at that place tells a near-tie from a fault.

Then the first event: how long after a request is sent, and after its prompt has been read (the return of the forward
pass that fills its row), does the client hold the first step's message? On an idle server, and while three others run.
`--clients 0` and `--first 0` leave one of the two out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

import unspoken as un
from unspoken.decoding import Request, Strategy, run
from unspoken.discovery import TASKS
from unspoken.lm.decode import Decoder
from unspoken.types import fold
from unspoken.web._settings import Settings
from unspoken.web.app import create_app
from unspoken.web.jobs import Engine
from unspoken.web.server import address, bind, make_server

STRATEGIES: tuple[dict[str, Any], ...] = (
    {"name": "cot", "temperature": 0.0},
    {"name": "soft", "T_e": 16, "k": 5},
    {"name": "cot", "temperature": 0.8},
)


@dataclass
class Answer:
    """What one request gave."""

    question: str
    strategy: dict[str, Any]
    seed: int
    status: int = 0
    text: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0


@dataclass
class Load:
    """The answers of some clients, and how long all of them took together."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return sum(a.tokens for a in self.answers) / self.seconds


def ask(client: httpx.Client, answer: Answer, model: str, length: int) -> None:
    """One request, read to its end; a full queue is waited for as the server says."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": answer.question}],
        "max_tokens": length,
        "seed": answer.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "unspoken": {"strategy": answer.strategy},
    }
    began = time.perf_counter()
    while True:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            answer.status = response.status_code
            if response.status_code == 429:
                time.sleep(float(response.headers["Retry-After"]))
                continue
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                answer.tokens = (chunk.get("usage") or {}).get("completion_tokens", answer.tokens)
                for piece in chunk["choices"]:
                    said = piece["delta"].get("content") or ""
                    if said and not answer.first:
                        answer.first = time.perf_counter() - began
                    answer.text += said
        answer.seconds = time.perf_counter() - began
        return


def load(base: str, clients: Sequence[Sequence[Answer]], model: str, length: int) -> Load:
    """All clients at once, each with its questions one after the other."""

    def work(mine: Sequence[Answer]) -> None:
        with httpx.Client(base_url=base, timeout=600) as client:
            for answer in mine:
                ask(client, answer, model, length)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load([a for mine in clients for a in mine], time.perf_counter() - began)


def library(lm: un.CausalLM, answers: Sequence[Answer], length: int) -> float:
    """Tokens per second of the same questions one after the other without a server."""
    from unspoken.web._strategies import read_strategy

    requests = [
        Request(
            [{"role": "user", "content": a.question}],
            read_strategy(a.strategy, lm),
            i,
            length,
            a.seed,
            trace="none",
        )
        for i, a in enumerate(answers)
    ]
    began = time.perf_counter()
    done = fold(run(lm, requests, batch_size=1, live=True))
    steps = sum(g.usage.tokens + g.usage.latent_steps + g.usage.forced_tokens for g in done.values())
    return steps / (time.perf_counter() - began)


def check(lm: un.CausalLM, answer: Answer, length: int) -> str:
    """Whether the library alone gives the same, and if not, how near a tie it was."""
    from unspoken.web._strategies import read_strategy

    strategy: Strategy = read_strategy(answer.strategy, lm)
    prompt = [{"role": "user", "content": answer.question}]
    alone = fold(run(lm, [Request(prompt, strategy, "x", length, answer.seed, trace="full")], live=True))["x"]
    if alone.answer_text == answer.text:
        return "same"
    shown = 0
    for step in alone.steps:
        if step.phase != "answer":
            continue
        if answer.text[shown : shown + len(step.text)] != step.text:
            probs = sorted(step.top.probs, reverse=True) if step.top else [0.0, 0.0]
            return f"parts at step {step.index}: margin of the two likeliest there {probs[0] - probs[1]:.2g}"
        shown += len(step.text)
    return "parts at its end"


@contextlib.contextmanager
def prefills() -> Iterator[list[float]]:
    """The times at which prompts had been read."""
    times: list[float] = []
    original = Decoder.prefill

    def timed(*args: Any, **options: Any) -> Any:
        out = original(*args, **options)
        times.append(time.perf_counter())
        return out

    Decoder.prefill = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        Decoder.prefill = original  # type: ignore[method-assign]


@contextlib.contextmanager
def running(base: str, count: int) -> Iterator[None]:
    """Other requests that have begun, and run until this is left."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=base, timeout=600))
        for i in range(count):
            body = {"prompt": f"Tell story number {i}.", "strategy": {"name": "cot", "temperature": 1.2}}
            body |= {"max_new_tokens": 2000, "seed": i, "trace": "full"}
            response = stack.enter_context(client.stream("POST", "/api/stream", json=body))
            first_step(response)
        yield


def first_step(response: httpx.Response) -> float:
    """When the first step of a stream was here."""
    text = ""
    for piece in response.iter_text():
        text += piece
        if "event: step" in text and text.rpartition("event: step")[2].count("\n") >= 2:
            return time.perf_counter()
    raise SystemExit("A stream ended before its first step.")


def first_events(base: str, questions: Sequence[str], others: int) -> None:
    """Ask the questions one after the other while some others run, each until its first step; print what it took."""
    reading, after = [], []
    with prefills() as times, running(base, others), httpx.Client(base_url=base, timeout=600) as client:
        for i, question in enumerate(questions):
            body = {"prompt": question, "strategy": {"name": "soft", "T_e": 16}, "max_new_tokens": 32}
            times.clear()
            began = time.perf_counter()
            with client.stream("POST", "/api/stream", json={**body, "seed": i, "trace": "full"}) as response:
                here = first_step(response)
            reading.append(1000 * (times[0] - began))
            after.append(1000 * (here - times[0]))
            time.sleep(0.3)  # its row is free again
    whole = [a + b for a, b in zip(reading, after, strict=True)]
    print(
        f"first step at the client, {others} others running: {statistics.median(after):.0f} ms after the prompt was "
        f"read (at most {max(after):.0f}), {statistics.median(whole):.0f} ms after the request (at most "
        f"{max(whole):.0f}), {len(after)} requests"
    )


def loads(base: str, lm: un.CausalLM, options: argparse.Namespace) -> None:
    """One client, many clients, and the library alone; print how they compare."""
    count = options.clients * options.requests
    questions = [e.question for e in TASKS.find("arithmetic")(n=count, level=2).examples()]
    every = [Answer(q, STRATEGIES[i % len(STRATEGIES)], i) for i, q in enumerate(questions)]
    copies = [Answer(a.question, a.strategy, a.seed) for a in every[: options.single]]
    bare = library(lm, copies, options.tokens)
    one = load(base, [copies], "served", options.tokens)
    step = options.requests
    many = load(base, [every[i : i + step] for i in range(0, count, step)], "served", options.tokens)
    print(f"the library alone, one by one: {bare:.1f} tokens/s")
    for name, found in (("1 client", one), (f"{options.clients} clients", many)):
        answered = sum(a.status == 200 and a.tokens > 0 for a in found.answers)
        firsts = sorted(a.first for a in found.answers if a.first)
        middle = firsts[len(firsts) // 2] if firsts else float("nan")
        print(
            f"{name}: {answered} of {len(found.answers)} answered, {found.rate:.1f} tokens/s, "
            f"first text after {middle:.2f} s (median), {found.seconds:.1f} s in all"
        )
    print(f"throughput: {many.rate / one.rate:.2f} times that of one client")
    for answer in many.answers[: options.check]:
        print(f"{answer.strategy['name']} seed {answer.seed}: {check(lm, answer, options.tokens)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1, help="of each client")
    parser.add_argument("--single", type=int, default=3, help="requests of the single client")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--check", type=int, default=3, help="answers compared with the library alone")
    parser.add_argument("--first", type=int, default=10, help="requests timed to their first event")
    options = parser.parse_args()

    lm = un.load(options.model, dtype=options.dtype)
    engine = Engine(lm, batch_size=options.batch_size)
    settings = Settings(name="served")
    server = make_server(create_app(engine, settings), engine, settings)
    with bind("127.0.0.1", 0, "serving") as sock:
        thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        base = address(sock)
        load(base, [[Answer("Hello", STRATEGIES[0], 0)]], "served", 4)  # once, to warm up
        if options.clients:
            loads(base, lm, options)
        if options.first:
            asked = [e.question for e in TASKS.find("arithmetic")(n=options.first, level=2).examples()]
            for others in (0, 3):
                first_events(base, asked, others)
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
