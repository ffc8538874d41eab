"""Every form of `internalize` learns a few rows by heart along its whole curriculum, and then writes their answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rows_help import word_lm

from unspoken.tasks.multiplication import Multiplication
from unspoken.training._base import Data
from unspoken.training._options import Options
from unspoken.training.internalize import Internalize

STEPS = 100
CHAINS = Multiplication(digits=2, n_train=12, n_valid=0, n_test=1).chains("train")
SHIFT = {
    "remove_every_n_step": 4,
    "removal_smoothing_lambda": 4.0,
}  # nothing is left of 8 words after 32 steps
SWITCH = {"remove_from_n_steps": 10, "ramp_end": 0.4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"preset": "explicit_cot"},
        {"preset": "no_cot", "sep_mode": "distinct", "keep_position": True},
        {"preset": "icot_si", **SHIFT},
        {**SHIFT, "removal_side": "right", "remove_separator": True},
        {**SHIFT, "remove_every_n_step": 0, "schedule": "fraction", "unit": "step", "ramp_end": 0.4},
        {"preset": "filler_replace", **SHIFT, "fill_kind": "distinct", "fill_target": "cot"},
        {**SHIFT, "mode": "replace", "fill_kind": "text", "fill_target": "fill", "fill_loss_weight": 0.5},
        {**SHIFT, "mode": "ratio", "fill_ratio": 0.5, "fill_kind": "distinct"},
        {**SHIFT, "mode": "replace", "fill_pattern": "random"},
        {"preset": "filler_fixed", **SHIFT, "n_fillers": 3},
        {**SHIFT, "mode": "capped", "n_fillers": 3, "removal_side": "right"},
        {"preset": "seed_switch", **SWITCH},
        {"preset": "seed_switch", **SWITCH, "switch_mode": "sequential", "fill_ratio": 0.5},
    ],
    ids=lambda fields: "-".join(
        str(v) for name, v in fields.items() if name not in {**SHIFT, **SWITCH, "fill_loss_weight": 0}
    ),
)
def test_rows_learnt_by_heart(fields: dict[str, Any]) -> None:
    lm = word_lm(CHAINS, width=64)
    options = Options(batch_size=len(CHAINS), epochs=STEPS)
    work = Internalize(**fields).prepare(lm, Data(CHAINS, CHAINS), options)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=5e-3, fused=True)
    everyone, previous = torch.arange(len(CHAINS)), {}
    for t in range(STEPS):
        if work.resets_optimizer(t, previous):
            optimizer.state.clear()
        batch = work.batch(t, everyone, torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        (work.loss(lm.model, batch, detailed=False).total / work.items(batch)).backward()
        optimizer.step()
    state = torch.get_rng_state()
    seen = work.evaluate(lm, "valid", STEPS, limit=None, generate=False)
    written = work.evaluate(lm, "valid", STEPS, limit=None, generate=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert written["exact_match"] >= 0.95
    if "exact_match" in seen:  # where one forward says what decoding would write
        assert seen["exact_match"] == written["exact_match"]
    else:
        assert fields["preset"] == "explicit_cot" and seen["teacher_forced_exact"] <= written["exact_match"]
