"""A report of runs: one Markdown file with figures beside it, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from unspoken.errors import ConfigError, MissingExtraError
from unspoken.evaluation._folder import flatten
from unspoken.evaluation._text import markdown, markdown_table, number
from unspoken.evaluation.comparison import TABLE, Comparison, compare
from unspoken.evaluation.grading import DISAGREEMENTS, GRADERS
from unspoken.evaluation.records import ResultRow, Run

SHOWN_ITEMS = 12
"""Problems shown in full, those first on which the runs disagree."""


def write_report(runs: Sequence[Run | str | Path], folder: str | Path) -> tuple[Path, Path]:
    """Write `report.md`, its figures, and `report.html`.

    Without matplotlib the report has no figures and says how to get them.

    Args:
        runs: The runs to compare; the first is the baseline.
        folder: Where to write; it is made where it is missing.

    Returns:
        The paths of the Markdown file and of the page.

    Raises:
        ConfigError: If the runs cannot be compared, or the folder cannot be written.
    """
    comparison = compare(*runs)
    folder = Path(folder)
    markdown_file, page = folder / "report.md", folder / "report.html"
    figures, missing = _figures(comparison)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, files in figures.items():
            (folder / f"{name}.png").write_bytes(files["png"])
        markdown_file.write_text(_markdown(comparison, figures, missing), encoding="utf-8")
        page.write_text(_page(comparison, figures, missing), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write a report to {str(folder)!r}: {error.strerror}.") from error
    return markdown_file, page


TITLES = {
    "accuracy": "Accuracy with 95 % intervals; the dashed line is the baseline",
    "steps": "Steps an answer: tokens and latent steps; box: middle half, dots: answers",
    "cost": "Accuracy against forward passes an answer; up and left is better",
}


def _figures(comparison: Comparison) -> tuple[dict[str, dict[str, bytes]], str | None]:
    """For each figure its `png`, `light` and `dark` (SVG) bytes; or none, and why."""
    from unspoken.analysis import plots

    entries = comparison.entries
    names = [e.name if len(e.name) <= 36 else e.name[:35] + "…" for e in entries]
    values = [e.accuracy for e in entries]
    bounds = [e.interval.low for e in entries], [e.interval.high for e in entries]
    steps = [[r.usage.tokens + r.usage.latent_steps for r in run.rows] for run in comparison.runs]
    costs = [e.forward_passes for e in entries]

    def draw(theme: plots.Theme) -> dict[str, Any]:
        return {
            "accuracy": plots.accuracy(names, values, *bounds, theme=theme),
            "steps": plots.distribution(names, steps, label="tokens and latent steps an answer", theme=theme),
            "cost": plots.cost_accuracy(
                names, costs, values, *bounds, label="forward passes an answer", theme=theme
            ),
        }

    try:
        light, dark = draw(plots.LIGHT), draw(plots.DARK)
    except MissingExtraError as error:
        return {}, f"No figures: matplotlib is not installed. {error.hint}"
    figures = {
        name: {
            "png": plots.render(light[name], "png"),
            "light": plots.render(light[name], "svg"),
            "dark": plots.render(dark[name], "svg"),
        }
        for name in light
    }
    return figures, None


def _title(comparison: Comparison) -> str:
    task = comparison.runs[0].config.get("task", {}).get("name")
    names = [entry.name for entry in comparison.entries]
    return f"{task}: {', '.join(names)}" if task else ", ".join(names)


_SETTINGS_FIRST = ("samples", "seed", "max_new_tokens", "batch_size", "device", "trace")


def _settings(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A table of all settings and of the environment: one line a key, one column a run."""
    columns = []
    for run, entry in zip(comparison.runs, comparison.entries, strict=True):
        config = flatten({k: v for k, v in run.config.items() if k not in ("limit", "start", "shard")})
        extent = {
            "examples": entry.n,
            "interval": f"95 %, {entry.interval.method}",
            "wall seconds (all rows compared)": number(run.wall_seconds),
            "total tokens": run.summary.usage.tokens,
            "total latent steps": run.summary.usage.latent_steps,
            "total forward passes": run.summary.usage.forward_passes,
        }
        ordered = {key: config.pop(key) for key in _SETTINGS_FIRST if key in config}
        columns.append(
            {**extent, **ordered, **config, **run.environment, "started": run.started, "state": run.state}
        )
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [
        [key, *("–" if column.get(key) is None else str(column[key]) for column in columns)] for key in keys
    ]
    return ["setting", *(entry.name for entry in comparison.entries)], rows


def _items(comparison: Comparison) -> list[list[ResultRow]]:
    """Problems to show, each with the first answer of every run: disagreements first, then in order."""
    firsts = [{row.example: row for row in reversed(run.rows)} for run in comparison.runs]
    groups = [[rows[example] for rows in firsts] for example in comparison.runs[0].by_example()]
    groups.sort(key=lambda group: len({row.correct for row in group}) == 1)
    return groups[:SHOWN_ITEMS]


def _markdown(comparison: Comparison, figures: dict[str, Any], missing: str | None) -> str:
    lines = [f"# {markdown(_title(comparison))}", "", comparison.markdown(), ""]
    lines += [missing, ""] if missing else []
    lines += [f"![{TITLES[name]}]({name}.png)\n" for name in figures]
    headers, rows = _settings(comparison)
    lines += ["## Settings", "", *markdown_table(headers, rows), "", "## Answers", ""]
    for group in _items(comparison):
        lines += [f"**{markdown(group[0].question)}** (gold: {markdown(group[0].gold)})", ""]
        cells = [
            [entry.name, row.status, row.answer or "–", _cut(row.text, 160)]
            for entry, row in zip(comparison.entries, group, strict=True)
        ]
        lines += [*markdown_table(["run", "status", "answer", "text"], cells), ""]
    return "\n".join(lines).rstrip() + "\n"


def _page(comparison: Comparison, figures: dict[str, dict[str, bytes]], missing: str | None) -> str:
    title = html.escape(_title(comparison))
    style = resources.files("unspoken.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    body = [f"<h1>{title}</h1>", _list(comparison.sentences, "findings")]
    body += [_table(TABLE, comparison.rows())]
    if len(comparison.entries) > 1:
        body += [
            "<h2>Paired differences, in percentage points</h2>",
            _table(comparison.paired_headers, comparison.paired_rows()),
        ]
    if comparison.graders():
        body += ["<h2>Graders</h2>", _table(GRADERS, comparison.graders())]
    if comparison.disagreements():
        body += [_table(("run", *DISAGREEMENTS), comparison.disagreements())]
    body += [_list(comparison.warnings, "notes")]
    body += [f'<p class="notes">{html.escape(missing)}</p>'] if missing else []
    body += [_figure(TITLES[name], files) for name, files in figures.items()]
    body += [
        "<h2>Answers</h2>",
        "<p>Problems on which the runs disagree come first. Only the answer phase is graded.</p>",
    ]
    body += [_item(comparison, group) for group in _items(comparison)]
    body += ["<h2>Settings</h2>", _table(*_settings(comparison))]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No scripts and no network, whatever a model may have written.
        '<meta http-equiv="Content-Security-Policy" content="'
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in headers)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(c)}</td>" for c in rest)
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'


def _list(sentences: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{html.escape(s)}</li>" for s in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _figure(title: str, files: dict[str, bytes]) -> str:
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(files[k]).decode() for k in ("light", "dark")
    )
    alt = html.escape(title)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{alt}"></picture><figcaption>{alt}</figcaption></figure>'
    )


def _item(comparison: Comparison, group: Sequence[ResultRow]) -> str:
    """One problem with the answer of each run, folded away."""
    question, gold = html.escape(group[0].question), html.escape(group[0].gold)
    answers = []
    for entry, row in zip(comparison.entries, group, strict=True):
        answer = f" {html.escape(row.answer)}" if row.answer is not None else ""
        thinking = f'<pre class="thinking">{html.escape(row.thinking)}</pre>' if row.thinking else ""
        answers.append(
            f"<section><h3>{html.escape(entry.name)} "
            f'<span class="{row.status}">{row.status}{answer}</span></h3>'
            f"{thinking}<pre>{html.escape(row.text)}</pre></section>"
        )
    marks = "".join("✓" if row.correct else "✗" for row in group)
    return f"<details><summary>{marks} {question} <b>{gold}</b></summary>{''.join(answers)}</details>"


def _cut(text: str, length: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
