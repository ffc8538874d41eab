"""Evaluate, compare and report. Importing this imports neither torch nor matplotlib."""

from unspoken.evaluation.comparison import Comparison, compare
from unspoken.evaluation.records import ResultRow, Run, Summary
from unspoken.evaluation.runner import evaluate, load_run, load_runs

__all__ = ["Comparison", "ResultRow", "Run", "Summary", "compare", "evaluate", "load_run", "load_runs"]
