"""`unspoken doctor` and `unspoken demo` from end to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unspoken.cli.main import main

Folder = Callable[[str], Path]


class TestDoctor:
    """`unspoken doctor`."""

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_all_well(self, family: str, tiny_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "-m", str(tiny_folder(family))]) == 0
        out = capsys.readouterr().out
        assert "FAIL" not in out
        for name in ("torch", "grading", "model", "anatomy", "cache", "mixtures"):
            assert f"ok    {name}" in out
        assert len(out.splitlines()) < 14

    def test_a_failing_check_is_named_and_the_others_go_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "-m", "./no-such-model"]) == 1
        out = capsys.readouterr().out
        assert "FAIL  model" in out
        assert "ok    torch" in out
        assert "1 failed: model" in out

    def test_a_wrong_mixture_is_found(
        self, tiny_folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from unspoken.lm.model import CausalLM

        monkeypatch.setattr(CausalLM, "mix", lambda self, ids, weights: torch.zeros(1, self.hidden_size))
        assert main(["doctor", "-m", str(tiny_folder("llama"))]) == 1
        assert "FAIL  mixtures" in capsys.readouterr().out


@pytest.mark.slow
class TestDemo:
    """`unspoken demo` on a tiny random model."""

    def test_table_report_and_resumption(
        self, tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["demo", "-m", str(tiny_folder("llama")), "--limit", "3", "-o", str(tmp_path / "demo")]
        assert main(words) == 0
        out = capsys.readouterr().out
        for name in ("cot-greedy", "soft-non_uniform", "control-hard_argmax", "What to try next", "Report:"):
            assert name in out
        assert (tmp_path / "demo" / "report" / "report.html").is_file()
        started = time.monotonic()
        assert main(words) == 0  # everything is there already
        assert time.monotonic() - started < 30
        assert capsys.readouterr().out.splitlines()[:7] == out.splitlines()[:7]
