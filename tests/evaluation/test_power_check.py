"""The user's check of power sampling: it agrees with chains, and it can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from unspoken.cli.main import main
from unspoken.decoding._power import Target
from unspoken.decoding.power import PowerSampling
from unspoken.evaluation import _power_check as check
from unspoken.evaluation._power_exact import Laws, markov
from unspoken.lm.tiny import letters_lm

sys.path.append(str(Path(__file__).parents[1] / "decoding"))
from power_oracle import DEFECTS, Oracle, residual


def oracle(laws: Laws, **fields: object) -> Oracle:
    """The oracle of a table."""

    def law(prefix: tuple[int, ...]) -> np.ndarray:
        p = np.zeros(4)
        for token, lp in laws.lp[prefix].items():
            p[token] = np.exp(lp)
        return p

    return Oracle(law, laws.ends, laws.limit, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["final", "full", "original", "reference", "no_op"])
def test_the_law_of_a_run_is_that_of_the_oracle(mode: str) -> None:
    laws = markov(3, 5, 0.5, seed=3)
    fields = {"mode": "reference"} if mode == "reference" else {"stop_mode": mode}
    fields = {"cut": "no_op"} if mode == "no_op" else fields
    strategy = PowerSampling(alpha=2.0, block_size=2, mcmc_steps=3, **fields)  # type: ignore[arg-type]
    if mode == "reference":
        want = oracle(laws, defects=DEFECTS).published(2, 3)
    else:
        cuts = "block" if mode == "no_op" else "present"
        want = oracle(laws, cuts=cuts).result(2, 3, strategy.stop_mode)
    got = laws.result(strategy)
    assert got.sum() == pytest.approx(1.0, abs=1e-12)
    for sequence, i in laws.place.items():
        assert got[i] == pytest.approx(want.get(sequence, 0.0), abs=1e-12)


def test_more_moves_help_ours_and_not_the_published_loop() -> None:
    row = check.distances(3, 5, 2.0, tables=2)
    for ours in (row.corrected, row.no_op):
        assert row.low_temperature > ours[0] > ours[1] > ours[2] < 0.01
    assert row.published[2] > row.published[0] > 0.05
    assert row.early_return[2] > row.corrected[2]


def test_a_kernel_without_the_correction_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = markov(3, 4, 0.5, seed=7)
    assert check.stationarity(laws, Target(2.0, 0.5)) < check.EXACT
    monkeypatch.setattr(Target, "log_ratio", lambda self, new, n_new, old, n_old: new - old)
    assert check.stationarity(markov(3, 4, 0.5, seed=7), Target(2.0, 0.5)) > 1e-3
    assert max(residual(*oracle(laws, defects=frozenset(["C4"])).matrix(4))) > 1e-3


def test_p_values() -> None:
    """Uniform for draws from the law itself; next to nothing for others."""
    laws = markov(3, 4, 0.5, seed=1)
    pi = laws.target(2.0)
    random = np.random.default_rng(0)
    found = []
    for _ in range(100):
        drawn = random.choice(len(pi), size=400, p=pi)
        found.append(check.chi_square(laws, pi, [laws.sequences[i] for i in drawn]))
    assert 0.4 < np.mean(found) < 0.6 and min(found) > 1e-4
    other = random.choice(len(pi), size=400, p=laws.target(1.0))
    assert check.chi_square(laws, pi, [laws.sequences[i] for i in other]) < 1e-3
    assert check.chi_square(laws, pi, [laws.sequences[1]] * 9 + [()]) == 0.0


def test_a_model_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BATCH", 16)
    found = list(check._engine("x", letters_lm(6), [1, 0], check._strategy(top_k=3), 3, 60, (1,)))
    assert len(found) == 2 and all(f.ok for f in found)
    laws = check.engine_laws(letters_lm(6), [1, 0], 3, 0.5, top_k=3)
    assert set(map(len, laws.lp.values())) == {3}


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check, "TOYS", ((3, 4),))
    monkeypatch.setattr(check, "TABLES", 1)
    monkeypatch.setattr(check, "SETTINGS", {"corrected": {}})
    assert main(["doctor", "power"]) == 0
    out = capsys.readouterr().out
    assert "published loop" in out and out.endswith("Power sampling has the law that it says.\n")
    assert "FAIL" not in out and "chains: corrected, 300" in out
    monkeypatch.setattr(Target, "log_ratio", lambda self, new, n_new, old, n_old: new - old)
    assert main(["doctor", "power"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["doctor", "power", "--ful"]) == 2
