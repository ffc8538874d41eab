"""Make the tiny models of the zoo again, from their recipes, and write their cards.

    python recipes/make_zoo.py                       # all of them, about 20 minutes on one CPU core
    python recipes/make_zoo.py tiny-arithmetic -o runs/zoo
    python recipes/make_zoo.py --only-pack           # from runs that are there

Those in the package were made when tiny models had the tanh form of GELU (their config.json says so): now the recipes
give other weights, whose accuracies the recipes tell.

Each is trained by `unspoken train` (a run that is there is gone on with), measured on its test rows, and packed
without its logs into src/unspoken/zoo/NAME.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import unspoken as un
from unspoken.cli.main import main as unspoken
from unspoken.discovery import TASKS

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "src" / "unspoken" / "zoo"
KEPT = ("config.json", "generation_config.json", "model.safetensors", "unspoken.json", "chat_template.jinja")
TRAIN = {
    "tiny-arithmetic": ["-c", "recipes/cpu_sums.yaml"],
    "tiny-filler": ["-c", "recipes/cpu_sum3lite.yaml"],
    "tiny-icot-modsum": ["-c", "recipes/cpu_modsum.yaml"],
    "tiny-icot-mult": ["-c", "recipes/cpu_multiplication.yaml"],
}
ABOUT = {
    "tiny-arithmetic": "Sums of five one-digit numbers, with running totals in a thinking block.",
    "tiny-filler": "Do three of five numbers sum to 0 modulo 16? Ten filler tokens in place of a chain of thought.",
    "tiny-icot-mult": "Products of two-digit numbers, answered at once: the chain was removed step by step.",
    "tiny-icot-modsum": "Sums of six numbers modulo 5, answered at once: the chain was removed step by step.",
}
TEST = {
    "tiny-arithmetic": ("sums", {"n_test": 500}, un.ChainOfThought(temperature=1.0)),
    "tiny-filler": ("sum3lite", {"n": 5, "m": 16, "n_test": 500}, None),
    "tiny-icot-mult": ("multiplication", {"digits": 2, "n": 500, "n_valid": 500, "n_train": 7100}, None),
    "tiny-icot-modsum": ("modsum", {"n": 6, "p": 5, "n_test": 500}, None),
}


def make(name: str, runs: Path, *, only_pack: bool) -> None:
    """Train, measure and pack one model."""
    run = runs / name
    if not only_pack and (code := unspoken(["train", *TRAIN[name], "-o", str(run)])):
        raise SystemExit(code)
    lm = un.load(run)
    task_name, fields, strategy = TEST[name]
    task = TASKS.find(task_name)(**fields)
    strategy = strategy or lm.strategy
    done = un.evaluate(lm, task, strategy, batch_size=64, output=runs / f"{name}-test", force=True)
    home = ZOO / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for file in run.iterdir():
        if file.name in KEPT or file.name.startswith("tokenizer"):
            shutil.copy(file, home / file.name)
    settings = json.loads((run / "training.json").read_text(encoding="utf-8"))
    card = [
        f"{ABOUT[name]}",
        "",
        f"Made from random weights by `unspoken train {' '.join(TRAIN[name])} -o runs/{name}`",
        f"in {settings['steps']} steps and {settings['seconds']:.0f} seconds on one CPU core.",
        "MIT licence, like the code.",
        "",
        f"On {len(done.rows)} test rows of `{task_name}` ({fields}), decoded by `{strategy.name}`:",
        f"{done.summary}".strip(),
        "",
        "It knows its task and nothing else. It exists so that ways of decoding can be compared in seconds.",
    ]
    (home / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in home.iterdir()) / 2**20
    print(f"{name}: {size:.2f} MiB\n{done.summary}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*TRAIN, []], default=list(TRAIN))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only-pack", action="store_true", help="train nothing")
    args = parser.parse_args()
    for name in args.names:
        make(name, args.output, only_pack=args.only_pack)


if __name__ == "__main__":
    main()
