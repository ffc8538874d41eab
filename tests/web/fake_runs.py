"""Recordings of runs that never ran: made of numbers alone, so that a test knows what the page must show."""

from __future__ import annotations

import math
from typing import Any

WORDS = [
    "",
    "He",
    "has",
    "three",
    "boxes",
    "of",
    "twelve",
    "pencils",
    ",",
    "so",
    "thirty",
    "six",
    ";",
    "nine",
    "go",
    ",",
    "and",
    "twenty",
    "seven",
    "are",
    "left",
    ".",
][1:]
Event = dict[str, Any]


def _top(i: int, k: int, fed: int, chosen: int = 0) -> dict[str, Any]:
    """Candidates of step i, best first; the first `fed` are mixed, or `chosen` alone is fed."""
    raw = [math.exp(-j * (0.5 + (i % 5) / 5)) for j in range(k)]
    probs = [round(0.95 * p / sum(raw), 6) for p in raw]
    if fed:
        weights = [round(p / sum(probs[:fed]), 6) if j < fed else 0.0 for j, p in enumerate(probs)]
    else:
        weights = [float(j == chosen) for j in range(k)]
    texts = [f" {WORDS[(i + j) % len(WORDS)]}" for j in range(k)]
    return {
        "ids": [100 + (i + j) % 300 for j in range(k)],
        "probs": probs,
        "weights": weights,
        "texts": texts,
    }


def _token(i: int, text: str | None = None, k: int = 8, **more: Any) -> Event:
    chosen = 1 if i % 7 == 3 else 0
    top = _top(i, k, 0, chosen)
    step = {
        "event": "step",
        "row": 0,
        "index": i,
        "phase": "answer",
        "kind": "token",
        "token_id": top["ids"][chosen],
        "text": top["texts"][chosen] if text is None else text,
        "logprob": math.log(top["probs"][chosen]),
        "sampled_logprob": math.log(top["probs"][chosen]),
        "top": top,
        "entropy": 0.4 + 1.5 * abs(math.sin(i / 3)),
    }
    return step | more


def _soft(i: int, k: int = 8) -> Event:
    return {
        "event": "step",
        "row": 0,
        "index": i,
        "phase": "think",
        "kind": "soft",
        "top": _top(i, k, 5),
        "entropy": 0.4 + 1.5 * abs(math.sin(i / 3)),
        "end_prob": min(0.06, 0.001 * i),
        "norm_ratio": 0.9,
    }


def _note(name: str, value: Any) -> Event:
    return {"event": "note", "row": 0, "name": name, "value": value}


def _forced(i: int, text: str) -> Event:
    return {
        "event": "step",
        "row": 0,
        "index": i,
        "phase": "transition",
        "kind": "forced",
        "token_id": 4,
        "text": text,
    }


def soft(n: int, k: int = 8) -> list[Event]:
    """Half the steps are mixtures, then the transition, then words."""
    half = n // 2
    events = [_soft(i, k) for i in range(half)]
    events += [_note("think_end", "end_prob"), _note("think_steps", half)]
    events += [_forced(half, "</think>"), _forced(half + 1, "<answer>")]
    return events + [_token(i, k=k) for i in range(half + 2, n)]


def latent(n: int) -> list[Event]:
    """Hidden states, of which only the first half has a reading."""
    events = []
    for i in range(6):
        step: Event = {
            "event": "step",
            "row": 0,
            "index": i,
            "phase": "think",
            "kind": "latent",
            "norm_ratio": 1.1,
        }
        events.append(step | ({"top": {**_top(i, 4, 0), "weights": [0.0] * 4}} if i < 3 else {}))
    return events + [_token(i) for i in range(6, n)]


def power(n: int) -> list[Event]:
    """One refused move, one that is accepted, and one that proposes the present text."""
    first = [_token(i) for i in range(n)]
    refused = [_token(i, " refused") for i in range(n - 5, n)]
    taken = [_token(i, " taken") for i in range(n - 3, n)]

    def move(number: int, accepted: bool) -> Event:
        values = {"block": 0, "move": number, "cut": n - 5, "apart": n - 5, "accepted": accepted}
        return _note("mcmc", {**values, "log_ratio": -1.5, "logprob": -20.0 + number, "length": n})

    same = {"block": 0, "move": 2, "cut": n - 2, "apart": n, "accepted": True, "log_ratio": 0.0}
    same |= {"logprob": -19.0, "length": n}

    back = {"event": "rewind", "row": 0, "to": n - 5}
    again = {"event": "rewind", "row": 0, "to": n - 3}
    return [
        *first, back, *refused, move(0, False), back, *first[n - 5 :], again, *taken, move(1, True),
        _note("mcmc", same), _note("power", {"moves": 3, "acceptance": 2 / 3, "unchanged": 1}),
    ]  # fmt: skip


def make(name: str, body: dict[str, Any], n: int) -> dict[str, Any]:
    """A whole run of a strategy for a request."""
    events = {"soft": soft, "power": power, "continuous": latent}.get(
        name, lambda n: [_token(i) for i in range(n)]
    )(n)
    if "<script" in body["prompt"] or "onerror" in body["prompt"]:
        events[-1] = _token(n - 1, body["prompt"])  # a model that echoes what it was told
        events[-1]["top"]["texts"][0] = body["prompt"]
    text = "".join(e.get("text", "") for e in events if e["event"] == "step" and e["phase"] == "answer")
    gold = body.get("gold")
    grade = {"grade": {"status": "correct" if gold == "27" else "wrong", "answer": "27"}} if gold else {}
    usage = {
        "prompt_tokens": 9,
        "tokens": n,
        "latent_steps": 0,
        "forced_tokens": 0,
        "forward_passes": n,
        "seconds": 0.5,
    }
    return {
        "start": {
            "id": "x",
            "model": "tiny",
            "prompt_text": f"<|im_start|>user\n{body['prompt']}<|im_end|>",
            "prompt_tokens": 9,
            "strategy": {"T_e": 200, **body["strategy"]},
            "seed": body.get("seed", 0),
            "max_new_tokens": body.get("max_new_tokens", 256),
            "end_ids": [4],
            "thresholds": {"end_prob": 0.05} if name == "soft" else {},
        },
        "events": events,
        "done": {
            "reason": "eos",
            "usage": usage,
            "text": text,
            "answer_text": text,
            "thinking_text": "",
            "answer": "27",
            **grade,
        },
    }
