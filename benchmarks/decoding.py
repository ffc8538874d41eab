"""Decoding speed and memory against `model.generate` on the same weights, side by side.

    python benchmarks/decoding.py                     # everything, about 25 minutes on 2 cores
    python benchmarks/decoding.py --parts steps trace --dtypes float32 --repeats 3

Every figure is a ratio from one interleaved run: the variants of a cell take turns. The ratio is of their best
rounds; the range beside it is that of the rounds taken in pairs, and shows how quiet the machine was. Parts:

    steps    fixed-length decoding at batch 1, 8 and 32: greedy chain of thought and soft thinking
    ragged   64 questions with EOS at temperature 0.6: continuous refill against static batches
    memory   peak resident memory of the same work, each variant in a process of its own
    trace    what `trace="summary"` and `trace="full"` cost
    scaling  seconds against the number of prompts and against the length

Questions come from GSM8K in the folder named by UNSPOKEN_DATA, else from the `arithmetic` task.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

import unspoken as un
from unspoken.decoding import Request, run
from unspoken.discovery import TASKS
from unspoken.types import Done, Step

hf_logging.set_verbosity_error()
PARTS = ("steps", "ragged", "memory", "trace", "scaling")
NEW_TOKENS = 64
RAGGED_TOKENS, RAGGED_BATCH, RAGGED_QUESTIONS = 256, 16, 64


def questions(n: int) -> list[str]:
    """Questions of natural, unequal length."""
    folder = os.environ.get("UNSPOKEN_DATA")
    if folder and (path := Path(folder) / "gsm8k_train.jsonl").is_file():
        lines = path.read_text(encoding="utf-8").splitlines()[:n]
        return [json.loads(line)["question"] for line in lines]
    task = TASKS.find("arithmetic")(n=n, level=4)
    return [example.question for example in task.examples()]


# -- the alternatives ---------------------------------------------------------------------------


def generate(lm: Any, prompts: list[str], batch: int, length: int, *, temperature: float, eos: bool) -> int:
    """Transformers' own generate over static, left-padded batches; returns tokens produced."""
    tokens = 0
    for first in range(0, len(prompts), batch):
        ids = [lm.tokens.encode_prompt(p) for p in prompts[first : first + batch]]
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        ends = sorted(lm.eos_ids) if eos else None
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        lm.model.generation_config.eos_token_id = ends
        with torch.no_grad():
            out = lm.model.generate(
                padded.to(lm.device),
                attention_mask=mask.to(lm.device),
                max_new_tokens=length,
                pad_token_id=0,
                eos_token_id=ends,
                **sampling,
            )
        new = out[:, width:]
        if not eos:
            tokens += new.numel()
            continue
        for row in new.tolist():
            tokens += next((i + 1 for i, t in enumerate(row) if t in lm.eos_ids), len(row))
    return tokens


def ours(
    lm: Any, prompts: list[str], batch: int, length: int, strategy: Any, *, eos: bool, trace: str = "none"
) -> int:
    """The step loop over the same prompts; returns positions produced."""
    kept = lm.eos_ids
    lm.eos_ids = kept if eos else frozenset()
    try:
        requests = [
            Request(p, strategy, id=i, seed=i, max_new_tokens=length, trace=trace)  # type: ignore[arg-type]
            for i, p in enumerate(prompts)
        ]
        steps = 0
        for event in run(lm, requests, batch_size=batch):
            steps += isinstance(event, Step)
            if isinstance(event, Done) and event.reason.startswith("error"):
                raise RuntimeError(event.reason)
        return steps
    finally:
        lm.eos_ids = kept


def soft(length: int) -> un.SoftThinking:
    """Soft thinking for `length` steps that never ends early: every step is a mixture."""
    return un.SoftThinking(k=5, T_e=length, T_total=length, min_end_prob=1.0, think_open="none")


# -- measuring ----------------------------------------------------------------------------------


def interleave(variants: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, Any]]:
    """Run the variants in turns; the first is the baseline of the ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    produced: dict[str, int] = {}
    for _ in range(repeats):
        for name, work in variants.items():
            start = time.perf_counter()
            produced[name] = work()
            seconds[name].append(time.perf_counter() - start)
    base = next(iter(variants))
    rates = {n: [produced[n] / s for s in seconds[n]] for n in variants}
    result = {}
    for name in variants:
        paired = [a / b for a, b in zip(rates[name], rates[base], strict=True)]
        result[name] = {
            "tokens_per_s": max(rates[name]),
            "ratio": max(rates[name]) / max(rates[base]),
            "ratio_min": min(paired),
            "ratio_max": max(paired),
            "seconds": seconds[name],
            "tokens": produced[name],
        }
    return result


def show(title: str, cell: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    for name, r in cell.items():
        print(
            f"  {name:<22} {r['tokens_per_s']:8.1f} tok/s   ratio {r['ratio']:.2f} "
            f"[{r['ratio_min']:.2f}, {r['ratio_max']:.2f}]",
            flush=True,
        )


def steps(lm: Any, repeats: int, batches: list[int]) -> dict[str, Any]:
    cells = {}
    greedy = un.ChainOfThought(temperature=0)
    for batch in batches:
        prompts = questions(batch)
        variants = {
            "generate, greedy": lambda p=prompts, b=batch: generate(
                lm, p, b, NEW_TOKENS, temperature=0, eos=False
            ),
            "cot, greedy": lambda p=prompts, b=batch: ours(lm, p, b, NEW_TOKENS, greedy, eos=False),
            "soft, k=5": lambda p=prompts, b=batch: ours(lm, p, b, NEW_TOKENS, soft(NEW_TOKENS), eos=False),
        }
        cells[f"batch {batch}"] = interleave(variants, repeats)
        show(f"{lm.dtype}, batch {batch}, {NEW_TOKENS} new tokens", cells[f"batch {batch}"])
    return cells


def ragged(lm: Any, repeats: int) -> dict[str, Any]:
    prompts = questions(RAGGED_QUESTIONS)
    strategy = un.ChainOfThought(temperature=0.6)
    torch.manual_seed(0)
    cell = interleave(
        {
            "generate, static": lambda: generate(
                lm, prompts, RAGGED_BATCH, RAGGED_TOKENS, temperature=0.6, eos=True
            ),
            "cot, refill": lambda: ours(lm, prompts, RAGGED_BATCH, RAGGED_TOKENS, strategy, eos=True),
        },
        max(1, repeats - 1),
    )
    show(f"{lm.dtype}, ragged: {RAGGED_QUESTIONS} questions, batch {RAGGED_BATCH}", cell)
    return cell


def trace(lm: Any, repeats: int) -> dict[str, Any]:
    cells = {}
    prompts = questions(8)
    for name, strategy in (("cot", un.ChainOfThought(temperature=0.6)), ("soft", soft(NEW_TOKENS))):
        variants = {
            f"trace={level}": lambda s=strategy, t=level: ours(
                lm, prompts, 8, NEW_TOKENS, s, eos=False, trace=t
            )
            for level in ("none", "summary", "full")
        }
        cells[name] = interleave(variants, repeats)
        show(f"{lm.dtype}, {name}, batch 8: cost of the trace", cells[name])
    return cells


def scaling(lm: Any) -> dict[str, Any]:
    strategy = un.ChainOfThought(temperature=0)
    result: dict[str, Any] = {"prompts": {}, "length": {}}
    for n in (8, 16, 32, 64):
        start = time.perf_counter()
        ours(lm, questions(n), 16, 32, strategy, eos=False)
        result["prompts"][n] = time.perf_counter() - start
    for length in (64, 128, 256, 512):
        start = time.perf_counter()
        ours(lm, questions(8), 8, length, strategy, eos=False)
        result["length"][length] = time.perf_counter() - start
    print(f"\n{lm.dtype}, seconds against prompts (batch 16, 32 tokens): {_round(result['prompts'])}")
    print(f"{lm.dtype}, seconds against length (batch 8): {_round(result['length'])}", flush=True)
    return result


def _round(values: dict[int, float]) -> str:
    return ", ".join(f"{k}: {v:.1f}" for k, v in values.items())


def memory(model: str, dtype: str) -> dict[str, float]:
    """Peak resident MiB of loading and 16 ragged rows of 128 tokens, each in its own process."""
    peaks = {}
    for variant in ("load", "generate", "cot", "soft"):
        command = [sys.executable, __file__, "--model", model, "--dtypes", dtype, "--peak-of", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[variant] = float(done.stdout.split()[-1])
    print(f"\n{dtype}, peak memory MiB: " + ", ".join(f"{k} {v:.0f}" for k, v in peaks.items()))
    ratios = ", ".join(f"{k} / generate {peaks[k] / peaks['generate']:.3f}" for k in ("cot", "soft"))
    print(f"  {ratios} (what loading alone takes bounds both from below)", flush=True)
    return peaks


def peak_of(model: str, dtype: str, variant: str) -> None:
    lm = un.load(model, dtype=dtype)
    prompts = questions(16)
    if variant == "generate":
        generate(lm, prompts, 16, 128, temperature=0.6, eos=False)
    elif variant == "cot":
        ours(lm, prompts, 16, 128, un.ChainOfThought(temperature=0.6), eos=False)
    elif variant == "soft":
        ours(lm, prompts, 16, 128, soft(128), eos=False)
    # Not getrusage: its peak is inherited from the parent, which has held a model.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="of the part `steps`")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/bench"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        peak_of(args.model, args.dtypes[0], args.peak_of)
        return
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "dtypes": {}}
    args.output.mkdir(parents=True, exist_ok=True)
    for dtype in args.dtypes:
        lm = un.load(args.model, dtype=dtype)
        ours(lm, questions(2), 2, 4, un.ChainOfThought(temperature=0), eos=False)  # first-call costs
        generate(lm, questions(2), 2, 4, temperature=0, eos=False)
        found: dict[str, Any] = {}
        for part in args.parts:
            if part == "memory":
                found[part] = memory(args.model, dtype)
            elif part == "scaling":
                found[part] = scaling(lm)
            elif part == "steps":
                found[part] = steps(lm, args.repeats, args.batches)
            else:
                found[part] = {"ragged": ragged, "trace": trace}[part](lm, args.repeats)
        results["dtypes"][dtype] = found
        (args.output / "decoding.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\nSaved {args.output / 'decoding.json'}")


if __name__ == "__main__":
    main()
