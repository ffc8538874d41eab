"""Numbers and tables as text, the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unspoken.evaluation.stats import Interval

NOTHING = "–"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def percent_interval(interval: Interval, signed: bool = False) -> str:
    """An interval of shares in percent, without the sign."""
    form = "+.1f" if signed else ".1f"
    return f"[{100 * interval.low:{form}}, {100 * interval.high:{form}}]"


def points(difference: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * difference:+.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals, or a dash."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """A ratio such as 1.25×, or a dash."""
    return NOTHING if value is None else f"{value:.2f}×"


def p_value(p: float) -> str:
    """A p value, small ones as a bound."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first to the left, the others to the right. A header may have two lines."""
    broken = [header.split("\n") for header in headers]
    height = max(map(len, broken))
    titles = [[""] * (height - len(parts)) + parts for parts in broken]
    head = list(zip(*titles, strict=True))
    columns = zip(*head, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [*(_aligned(h, widths) for h in head), rule, *(_aligned(row, widths) for row in rows)]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; cells are escaped."""
    lines = ["| " + " | ".join(map(markdown, headers)) + " |"]
    lines.append("| --- |" + " ---: |" * (len(headers) - 1))
    lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in rows]
    return lines


def markdown(text: str) -> str:
    """One line of text in which nothing is Markdown or HTML."""
    flat = " ".join(text.split())
    for sign in "\\`*_[]<>|#":
        flat = flat.replace(sign, "\\" + sign)
    return flat.replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")
