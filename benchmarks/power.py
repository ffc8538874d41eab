"""Power sampling against the published way to run it, at the same law, side by side.

    python benchmarks/power.py                    # SmolLM2, 16 problems; about 8 minutes on 2 cores
    python benchmarks/power.py --problems 4 --tokens 48

The alternative is a naive loop of the same corrected rule: transformers' `generate`, one chain after the other, the
whole prefix read again for every proposal, scores of all steps kept. Both have the same alpha, moves, blocks and
limit, and draw their own random numbers: token counts agree in law, not number by number. The order of the runs is
ours, naive, ours; a ratio takes the faster of ours.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from decoding import questions
from transformers.utils import logging as hf_logging

import unspoken as un
from unspoken.decoding import Request, run
from unspoken.decoding.power import PowerSampling
from unspoken.lm.decode import Decoder
from unspoken.types import fold

hf_logging.set_verbosity_error()


@dataclass
class Cost:
    """What a way of sampling cost, over all problems."""

    seconds: float = 0.0
    decoded: int = 0  # tokens drawn, each with a forward or from a kept law
    prefilled: int = 0  # positions read that were not drawn just before
    forwards: int = 0  # of the model, whatever their batch
    kept: int = 0  # tokens of the answers
    acceptance: float = 0.0
    live: float = 1.0  # mean share of the batch that was live in a step


@torch.no_grad()
def naive(lm: Any, prompts: list[list[int]], s: PowerSampling, total: int, seed: int) -> Cost:
    """The corrected rule in the published form: one chain, `generate` from scratch for every proposal."""
    cost, moves, accepted = Cost(), 0, 0
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ends = sorted(lm.eos_ids)
    target = s.target

    def draw(prompt: list[int], kept: list[int], cap: int) -> tuple[list[int], list[float]]:
        ids = torch.tensor([prompt + kept], device=lm.device)
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=cap - len(kept),
            do_sample=True,
            temperature=target.tau,
            top_k=0,
            eos_token_id=ends,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        new = out.sequences[0, ids.shape[1] :]
        lp = torch.stack(out.logits)[:, 0].float().log_softmax(-1).gather(-1, new[:, None])[:, 0]
        lq = torch.stack(out.scores)[:, 0].float().log_softmax(-1).gather(-1, new[:, None])[:, 0]
        cost.decoded += len(new)
        cost.prefilled += ids.shape[1]
        cost.forwards += len(new)
        return kept + new.tolist(), (target.alpha * lp - lq).tolist()

    started = time.perf_counter()
    for prompt in prompts:
        x, w = draw(prompt, [], 0 + s.caps(total)[0])
        caps = s.caps(total)
        for block, cap in enumerate(caps):
            done = x[-1] in lm.eos_ids
            if done and block:
                cap = total
            elif block:
                x, more = draw(prompt, x, cap)
                w = w + more
            for _ in range(s.mcmc_steps):
                m = rng.randrange(len(x))
                y, tail = draw(prompt, x[:m], cap)
                log_r = sum(tail) - sum(w[m:]) + math.log(len(x)) - math.log(len(y))
                moves += 1
                if math.log(rng.random()) < log_r:
                    x, w, accepted = y, w[:m] + tail, accepted + 1
            if done and block:
                break
        cost.kept += len(x)
    cost.seconds = time.perf_counter() - started
    cost.acceptance = accepted / moves
    return cost


def ours(lm: Any, prompts: list[list[int]], s: PowerSampling, total: int, seed: int, batch: int) -> Cost:
    """All chains in one batch."""
    steps: list[int] = []
    step = Decoder.step

    def counted(self: Decoder, vectors: torch.Tensor, gaps: Any = None) -> Any:
        steps.append(vectors.shape[0])
        return step(self, vectors, gaps)

    requests = [
        Request(prompt, s, id=i, max_new_tokens=total, seed=seed + i, trace="none")
        for i, prompt in enumerate(prompts)
    ]
    Decoder.step = counted  # type: ignore[method-assign]
    started = time.perf_counter()
    try:
        out = fold(run(lm, requests, batch_size=batch))
    finally:
        Decoder.step = step  # type: ignore[method-assign]
    notes = [g.notes["power"] for g in out.values()]
    return Cost(
        seconds=time.perf_counter() - started,
        decoded=sum(g.usage.tokens for g in out.values()),
        prefilled=sum(map(len, prompts)) + sum(steps) - sum(g.usage.tokens for g in out.values()),
        forwards=len(steps) + 1,
        kept=sum(len(g.steps) for g in out.values()),
        acceptance=sum(n["acceptance"] for n in notes) / len(notes),
        live=sum(steps) / len(steps) / batch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--mcmc-steps", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--no-naive", action="store_true", help="only ours, to profile it")
    parser.add_argument("--output", type=Path, default=Path("results/bench/power.json"))
    args = parser.parse_args()
    lm = un.load(args.model, dtype=args.dtype)
    s = PowerSampling(alpha=args.alpha, block_size=args.block_size, mcmc_steps=args.mcmc_steps)
    prompts = [lm.tokens.encode_prompt(q) for q in questions(args.problems)]
    runs: dict[str, Cost] = {"ours": ours(lm, prompts, s, args.tokens, 0, args.batch)}
    if not args.no_naive:
        runs["naive"] = naive(lm, prompts, s, args.tokens, 0)
        runs["ours again"] = ours(lm, prompts, s, args.tokens, 1000, args.batch)
    for name, cost in runs.items():
        print(
            f"{name:12} {cost.seconds:7.1f} s  {cost.decoded:6} decoded  {cost.prefilled:6} prefilled  "
            f"{cost.forwards:6} forwards  {cost.kept:5} kept  {cost.acceptance:.2f} accepted  {cost.live:.2f} live"
        )
    if not args.no_naive:
        mine = [runs["ours"], runs["ours again"]]
        faster = runs["naive"].seconds / min(c.seconds for c in mine)
        fewer = runs["naive"].decoded / (sum(c.decoded for c in mine) / 2)
        print(f"\nfaster: {faster:.1f} x, decoded tokens: {fewer:.2f} x fewer")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps({"arguments": vars(args), "runs": {k: asdict(v) for k, v in runs.items()}}, default=str)
    )


if __name__ == "__main__":
    main()
