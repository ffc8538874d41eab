"""The logit lens against the plain recipe, on the same prompts: seconds and memory.

    python benchmarks/lens.py                       # about a minute on 2 cores
    python benchmarks/lens.py --rounds 3 --prompts 4

Both sides read prompts of 128 tokens one after another and compute KL(final || layer) of every layer at every
position, in float32. The plain recipe asks transformers for the hidden states, makes the logits of all layers of a
prompt at once and takes `log_softmax` of both sides. They take turns; the ratio is of the best rounds, the range
beside it that of the rounds taken in pairs. Memory is the peak of a process of its own, less what the model alone
takes after one short forward. `--all` also times every default metric of the lens, which the plain recipe has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

import unspoken as un
from unspoken.discovery import TASKS

hf_logging.set_verbosity_error()
LENGTH = 128
VARIANTS = ("plain", "lens", "all metrics")


def prompts(lm: Any, n: int) -> list[list[int]]:
    """Rows of `LENGTH` tokens of questions."""
    questions = [example.question for example in TASKS.find("arithmetic")(n=40 * n, level=4).examples()]
    ids = lm.tokens.encode("\n".join(questions))
    return [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(n)]


def plain(lm: Any, ids: list[int]) -> torch.Tensor:
    """[L, T] KL as in a notebook; the last hidden state is normed already."""
    norm, head = lm.anatomy.norm, lm.anatomy.head
    with torch.no_grad():
        out = lm.model(torch.tensor([ids], device=lm.device), output_hidden_states=True)
        states = torch.cat([norm(torch.cat(out.hidden_states[:-1])), out.hidden_states[-1]])
        logq = head(states).log_softmax(-1)  # [L, T, V]
        logp = out.logits[0].log_softmax(-1)  # [T, V]
        return (logp.exp() * (logp - logq)).sum(-1).cpu()


def exact(lm: Any, ids: list[int]) -> torch.Tensor:
    """[L, T] the same from the same states in float64, a layer at a time."""
    norm, head = lm.anatomy.norm, lm.anatomy.head.weight.double()
    with torch.no_grad():
        hidden = lm.model(torch.tensor([ids], device=lm.device), output_hidden_states=True).hidden_states
        logp = (hidden[-1][0].double() @ head.T).log_softmax(-1)
        states = [*(norm(h[0]) for h in hidden[:-1]), hidden[-1][0]]
        kl = [(logp.exp() * (logp - (h.double() @ head.T).log_softmax(-1))).sum(-1) for h in states]
        return torch.stack(kl).cpu()


def work(lm: Any, rows: list[list[int]], variant: str) -> Callable[[], list[Any]]:
    if variant == "plain":
        return lambda: [plain(lm, ids) for ids in rows]
    lens = un.LogitLens(lm, metrics=("kl",), top_k=0) if variant == "lens" else un.LogitLens(lm)
    return lambda: [torch.from_numpy(lens(ids).kl) for ids in rows]


def peak() -> float:
    """Peak MiB of the GPU, or resident of this process (not getrusage: its peak is inherited from the parent)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_of(variant: str, model: str, n: int) -> None:
    lm = un.load(model, dtype="float32")
    rows = prompts(lm, n)
    with torch.no_grad():
        lm.model(torch.tensor([rows[0][:8]], device=lm.device))
    # Loading peaks above what the model takes: the mark is set back to what is held now.
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak()
    if variant != "model":
        work(lm, rows, variant)()
    print(json.dumps([before, peak()]))


def memory(model: str, n: int) -> dict[str, dict[str, float]]:
    found = {}
    for variant in ("model", *VARIANTS):
        command = [sys.executable, __file__, "--model", model, "--prompts", str(n), "--peak-of", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, after = json.loads(done.stdout.splitlines()[-1])
        found[variant] = {"peak_mib": after, "extra_mib": after - before}
    for variant, m in found.items():
        print(
            f"  {variant:<12} peak {m['peak_mib']:7.0f} MiB, above the loaded model {m['extra_mib']:7.0f} MiB"
        )
    for name in VARIANTS[1:]:
        share = {k: found[name][k] / found["plain"][k] for k in ("extra_mib", "peak_mib")}
        print(f"  {name} / plain: {share['extra_mib']:.3f} above the model, {share['peak_mib']:.3f} in all")
    return found


def speed(model: str, n: int, rounds: int, variants: list[str]) -> dict[str, Any]:
    lm = un.load(model, dtype="float32")
    rows = prompts(lm, n)
    works = {variant: work(lm, rows, variant) for variant in variants}
    right = exact(lm, rows[0])
    worst = {name: float((work(lm, rows[:1], name)()[0] - right).abs().max()) for name in VARIANTS[:2]}
    told = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
    print(f"  largest difference of a KL from float64: {told} nats, of at most {float(right.max()):.0f}")
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, run in works.items():
            start = time.perf_counter()
            run()
            seconds[variant].append(time.perf_counter() - start)
    result: dict[str, Any] = {"difference": worst, "seconds": seconds}
    for variant in variants:
        paired = [a / b for a, b in zip(seconds["plain"], seconds[variant], strict=True)]
        ratio = min(seconds["plain"]) / min(seconds[variant])
        result[variant] = {"ratio": ratio, "low": min(paired), "high": max(paired)}
        print(
            f"  {variant:<12} {min(seconds[variant]):6.2f} s   {ratio:.2f} times as fast "
            f"[{min(paired):.2f}, {max(paired):.2f}]",
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="also time every default metric")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/bench"))
    parser.add_argument("--peak-of", choices=("model", *VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        peak_of(args.peak_of, args.model, args.prompts)
        return
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} threads"
    print(f"{args.model}, float32, {args.prompts} prompts of {LENGTH} tokens, {where}")
    variants = list(VARIANTS if args.all else VARIANTS[:2])
    results = {"speed": speed(args.model, args.prompts, args.rounds, variants)}
    results["memory"] = memory(args.model, min(args.prompts, 2))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "lens.json"
    path.write_text(json.dumps({"machine": where, "torch": torch.__version__, **results}, indent=1) + "\n")
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
