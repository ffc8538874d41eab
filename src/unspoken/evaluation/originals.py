"""The result files of the original mixture-of-embeddings scripts, read and written.

`generation_comparison/<strategy>/<T_total>_<num_examples>_<temperature>/generation_comparison_T_e_<T_e>_k_<k>.json`
holds one run. Files are JSON only: pickles, which the originals write as well, are never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError, DataError
from unspoken.evaluation._lines import write_json
from unspoken.evaluation.records import ResultRow, Run
from unspoken.evaluation.stats import spread
from unspoken.types import Generation, Status, Usage

ROOT = "generation_comparison"
_FILE = re.compile(r"generation_comparison_T_e_(?P<T_e>\d+)_k_(?P<k>\d+)\.json")
_FOLDER = re.compile(r"(?P<T_total>\d+)_(?P<num_examples>\d+)_(?P<temperature>[\d.]+)")


def read_tree(path: Path) -> list[Run]:
    """All runs of a tree (or of any folder in it, or of one file), in order of their paths.

    Raises:
        DataError: If a file is not of this format.
    """
    if path.is_file():
        return [read_file(path)]
    return [
        read_file(file) for file in sorted(path.rglob(f"{ROOT}_T_e_*.json")) if _FILE.fullmatch(file.name)
    ]


def read_file(path: Path) -> Run:
    """Read one file.

    The files say nothing of stop reasons, seeds or seconds: these are empty, 0 and unknown. Forward passes
    are derived: one for the prompt and one for each position, as the originals' loop makes them.

    Raises:
        DataError: If the file is not of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        body = content["embedding_mixture"]
        metadata = content.get("metadata") or {}
        rows: list[ResultRow] = []
        seen: dict[str, int] = {}
        for index, result in enumerate(body["results"]):
            problem = str(result.get("problem_id", index))
            sample = seen.get(problem, 0)
            seen[problem] = sample + 1
            rows.append(_row(result, problem, sample))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is not a file of the originals' generation_comparison format ({reason})."
        ) from error
    rows.sort(key=lambda row: (row.index, row.sample))
    return Run(config=_config(path, metadata, rows), rows=rows, path=path, planned=len(rows))


def export_originals(run: Run, root: str | Path) -> Path:
    """Write a run into a tree in the originals' layout, for their own viewers.

    With several samples each is a result of its own, with the same `problem_id`. The lists of token ids
    need a run made with `trace="full"`; otherwise they are empty and the counts alone are given.

    Args:
        run: A run of the two-phase decoder (`soft`), or one that was read from such a file.
        root: Where `generation_comparison/` is, or is to be; the folder itself may be named as well.

    Returns:
        The file written.

    Raises:
        ConfigError: If the run's strategy has no two phases, or the file cannot be written.
    """
    strategy = run.config.get("strategy", {})
    missing = [name for name in ("mixture", "T_e", "k", "temperature") if strategy.get(name) is None]
    if missing:
        raise ConfigError(
            "Only runs of the two-phase decoder fit the originals' layout; "
            f"{run.name!r} has no {', '.join(missing)}."
        )
    if not run.rows:
        raise ConfigError(f"{run.name!r} has no rows to export.")
    total = int(strategy.get("T_total") or run.config["max_new_tokens"])
    examples = len(run.by_example())
    root = Path(root)
    root = root if root.name == ROOT else root / ROOT
    folder = root / str(strategy["mixture"]) / f"{total}_{examples}_{strategy['temperature']}"
    path = folder / f"{ROOT}_T_e_{strategy['T_e']}_k_{strategy['k']}.json"
    traces = {generation.row: generation for generation in run.traces()}
    results = [_result(row, traces.get(row.id), strategy["T_e"], total) for row in run.rows]
    counts = [result["token_count"] for result in results]
    if not run.summary.graded:
        raise ConfigError(f"The answers of {run.name!r} are not graded; the originals' files hold grades.")
    correct = sum(row.correct for row in run.rows)
    phases = ("phase1_tokens", "phase2_tokens", "transition_tokens", "phase1_rounds_completed")
    described = spread(counts)
    names = ("mean", "median", "std", "min", "max")
    content = {
        "metadata": {
            "strategy": strategy["mixture"],
            "T_e": strategy["T_e"],
            "T_total": total,
            "k": strategy["k"],
            "temperature": strategy["temperature"],
            "min_end_prob": strategy.get("min_end_prob"),
            "num_examples": examples,
            "model": run.config.get("model", {}).get("source"),
            "seed": run.config.get("seed"),
            "config": run.config,
            "environment": run.environment,
        },
        "embedding_mixture": {
            "accuracy": correct / len(results),
            "correct": correct,
            "total": len(results),
            "token_counts": counts,
            "results": results,
            "stats": {
                **{f"{name}_tokens": getattr(described, name) for name in names},
                **{f"mean_{p}": sum(r["phase_info"][p] for r in results) / len(results) for p in phases},
            },
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise ConfigError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
    return path


def _result(row: ResultRow, trace: Generation | None, thinking: int, total: int) -> dict[str, Any]:
    """One element of `results`."""
    phases = {name: row.phases.get(name, 0) for name in ("think", "transition", "answer")}
    steps = trace.steps if trace is not None else []
    mixtures: list[tuple[list[int], list[float]]] = []
    for step in steps:
        if step.phase != "think":
            continue
        if step.top is not None:
            fed = [(i, w) for i, w in zip(step.top.ids, step.top.weights, strict=True) if w > 0]
            mixtures.append(([i for i, _ in fed], [w for _, w in fed]))
        elif step.token_id is not None:
            mixtures.append(([step.token_id], [1.0]))
    count = sum(phases.values())
    return {
        "problem_id": row.index,
        "question": row.question,
        "ground_truth": row.gold,
        "predicted_answer": row.answer,
        "is_correct": row.correct,
        "token_count": count,
        "phase_info": {
            "total_tokens": count,
            "phase1_tokens": phases["think"],
            "phase2_tokens": phases["answer"],
            "transition_tokens": phases["transition"],
            "phase1_rounds_completed": phases["think"],
            "phase1_rounds_requested": thinking,
            "phase2_rounds_requested": max(0, total - thinking),
            "phase1_token_ids": mixtures,
            "phase2_token_ids": [s.token_id for s in steps if s.phase == "answer"],
            "transition_token_ids": [s.token_id for s in steps if s.phase == "transition"],
        },
        "answer_text": row.text,
    }


def _row(result: Mapping[str, Any], problem: str, sample: int) -> ResultRow:
    info = result.get("phase_info") or {}
    latent = int(info.get("phase1_tokens") or info.get("phase1_rounds_completed") or 0)
    forced = int(info.get("transition_tokens") or 0)
    tokens = info.get("phase2_tokens")
    if tokens is None:
        tokens = max(0, int(result.get("token_count") or 0) - latent - forced)
    answer = result.get("predicted_answer")
    # The originals fold answers that could not be read into wrong ones; here they are told apart again.
    status: Status = "correct" if result["is_correct"] else ("unparsed" if answer is None else "wrong")
    return ResultRow(
        id=f"{problem}#{sample}",
        example=problem,
        index=int(problem) if problem.isdigit() else 0,
        sample=sample,
        seed=0,
        question=str(result.get("question", "")),
        gold=_text(result.get("ground_truth")) or "",
        status=status,
        answer=_text(answer),
        rule=None,
        reason="",
        text=str(result.get("answer_text") or ""),
        thinking="",
        usage=Usage(
            tokens=int(tokens),
            latent_steps=latent,
            forced_tokens=forced,
            forward_passes=1 + latent + forced + int(tokens),
        ),
        phases={"think": latent, "transition": forced, "answer": int(tokens)},
    )


def _text(value: Any) -> str | None:
    """A number as people write it: the originals keep answers as floats."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return None if value is None else str(value)


def _config(path: Path, metadata: Mapping[str, Any], rows: list[ResultRow]) -> dict[str, Any]:
    """The configuration: as we wrote it, or else from the metadata, or else from the path."""
    if isinstance(metadata.get("config"), dict):
        return dict(metadata["config"])
    named: dict[str, Any] = {}
    folder, file = _FOLDER.fullmatch(path.parent.name), _FILE.fullmatch(path.name)
    if folder:
        named["T_total"] = int(folder["T_total"])
        named["temperature"] = float(folder["temperature"])
        named["mixture"] = path.parent.parent.name
    if file:
        named.update(T_e=int(file["T_e"]), k=int(file["k"]))
    for key in ("T_e", "T_total", "k", "temperature", "min_end_prob"):
        if metadata.get(key) is not None:
            named[key] = metadata[key]
    if isinstance(metadata.get("strategy"), str):
        named["mixture"] = metadata["strategy"]
    model = metadata.get("model") or metadata.get("model_name")
    samples = max((row.sample + 1 for row in rows), default=1)
    return {
        "strategy": {"name": "soft", **named},
        **({"model": {"source": str(model)}} if model else {}),
        "samples": samples,
    }
