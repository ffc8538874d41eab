"""The tuned lens as it reads: shapes, folders, refusals, the original's layout, and scores in bits per byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lens_help import IDS, lens_lm, plain_logits, plain_metrics, plain_states

import unspoken as un
from unspoken.analysis._translators import Translators, unembed_hash
from unspoken.analysis.lens_scores import score, spread_positions, transfer
from unspoken.analysis.tuned_lens import original_hash
from unspoken.errors import ConfigError, ModelError

LAYERS, WIDTH = 4, 32


def random_translators(seed: int = 0, **options: Any) -> Translators:
    """Translators that do something."""
    translators = Translators(LAYERS, WIDTH, seed=seed, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in translators.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return translators


def naive(translators: Translators, i: int, state: torch.Tensor) -> torch.Tensor:
    """`h + W h + b` in float64, with W written out."""
    part = translators[i]
    weight = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    if part.weight is not None:
        weight = part.weight.double()
    elif part.a is not None:
        weight = part.a.double() @ part.b.double()
    bias = 0 if part.bias is None else part.bias.double()
    return state + state @ weight.T + bias


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"bias_only": True}], ids=["full", "rank", "bias"])
def test_at_the_start_it_is_the_logit_lens(family: str, options: dict[str, Any]) -> None:
    lm = lens_lm(family)
    logit = un.LogitLens(lm)(IDS)
    tuned = un.TunedLens(lm, Translators(LAYERS, WIDTH, **options))(IDS)
    assert tuned.lens == "tuned"
    for name, values in logit.values.items():
        np.testing.assert_array_equal(tuned.values[name], values, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"bias_only": True}], ids=["full", "rank", "bias"])
def test_grid_is_that_of_the_formula(options: dict[str, Any]) -> None:
    lm, translators = lens_lm("gemma2"), random_translators(**options)
    states = plain_states(lm, lm.embed(torch.tensor(IDS)))
    with torch.no_grad():
        changed = [naive(translators, i, state) for i, state in enumerate(states[:-1])] + [states[-1]]
        wanted = plain_metrics(plain_logits(lm, changed), states, [*IDS[1:], 0], [7], 5)
    grid = un.TunedLens(lm, translators)(IDS)
    for name in ("kl", "entropy"):
        np.testing.assert_allclose(grid[name], wanted[name], rtol=2e-3, atol=2e-4, err_msg=name)
    logit = un.LogitLens(lm)(IDS)
    assert (
        (np.abs(grid.kl[:-1] - logit.kl[:-1]) > 1e-3).any(-1).all()
    )  # every layer but the last is translated
    np.testing.assert_array_equal(grid.entropy[-1], logit.entropy[-1])  # the last one is the model's own


def test_shapes_and_sizes() -> None:
    assert {n: tuple(t.shape) for n, t in Translators(2, 8, rank=3).state_dict().items()} == {
        "0.bias": (8,), "0.a": (8, 3), "0.b": (3, 8), "1.bias": (8,), "1.a": (8, 3), "1.b": (3, 8),
    }  # fmt: skip
    assert {n for n, _ in Translators(1, 8).named_parameters()} == {"0.weight", "0.bias"}
    assert {n for n, _ in Translators(1, 8, bias_only=True).named_parameters()} == {"0.bias"}
    low = Translators(1, 512, rank=64)
    assert not low[0].b.any() and float(low[0].a.detach().var()) == pytest.approx(1 / 64, rel=0.05)
    with pytest.raises(ConfigError, match=r"2 problems"):
        Translators(2, 8, rank=9, bias_only=True)


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"bias_only": True}, {"bias": False}])
def test_folder_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    lm, translators = lens_lm("llama"), random_translators(**options)
    un.TunedLens(lm, translators).save(tmp_path / "lens", provenance={"steps": 3})
    assert {path.name for path in (tmp_path / "lens").iterdir()} == {"lens.json", "lens.safetensors"}
    described = json.loads((tmp_path / "lens" / "lens.json").read_text())
    assert (described["layers"], described["width"], described["rank"]) == (LAYERS, WIDTH, translators.rank)
    assert (described["kind"], described["provenance"]) == (translators.kind, {"steps": 3})
    again = un.TunedLens.load(tmp_path / "lens", lm).translators
    assert again.state_dict().keys() == translators.state_dict().keys()
    for name, tensor in translators.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_other_models_and_damage_are_refused(tmp_path: Path) -> None:
    lm = lens_lm("llama")
    un.TunedLens(lm, random_translators()).save(tmp_path)
    with pytest.raises(ModelError, match="final norm and head are not those"):
        un.TunedLens.load(tmp_path, lens_lm("gpt2"))
    with pytest.raises(ModelError, match="4 blocks and width 32; .* has 3"):
        un.TunedLens.load(tmp_path, lm.truncated(keep_first=3))
    with pytest.raises(ConfigError, match="There is no tuned lens"):
        un.TunedLens.load(tmp_path / "none", lm)
    weights = tmp_path / "lens.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\1\2\3\4")
    with pytest.raises(ModelError, match="damaged"):
        un.TunedLens.load(tmp_path, lm)
    weights.write_bytes(content)
    description = tmp_path / "lens.json"
    described = json.loads(description.read_text())
    for changed, said in (
        ({**described, "schema": 9}, "later version"),
        ({"schema": 1, "kind": "full"}, "it lacks rank, bias"),
    ):
        description.write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=said):
            un.TunedLens.load(tmp_path, lm)


def test_hash_knows_head_and_norm_but_not_the_dtype() -> None:
    import copy

    lm = lens_lm("llama")
    known = unembed_hash(lm)
    half = un.CausalLM(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    assert unembed_hash(half) == known
    for part in ("head", "norm"):
        other = un.CausalLM(copy.deepcopy(lm.model), lm.tokenizer)
        with torch.no_grad():
            getattr(other.anatomy, part).weight[-1] += 0.5
        assert unembed_hash(other) != known
    other = un.CausalLM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        next(other.anatomy.blocks[0].parameters()).add_(0.5)
    assert unembed_hash(other) == known


class TestOriginalFolders:
    """`config.json` and `params.pt`, as the original library writes them."""

    @staticmethod
    def write(folder: Path, state: Any, **config: Any) -> None:
        torch.save(state, folder / "params.pt")
        described = {
            "base_model_name_or_path": "x",
            "d_model": WIDTH,
            "num_hidden_layers": LAYERS,
            "bias": True,
        }
        described |= {"lens_type": "linear_tuned_lens", "base_model_revision": None, **config}
        (folder / "config.json").write_text(json.dumps(described))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("prefix", ["", "layer_translators."])
    def test_is_read(self, dtype: torch.dtype, prefix: str, tmp_path: Path) -> None:
        lm = lens_lm("llama")
        layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(LAYERS))
        state = {prefix + name: tensor for name, tensor in layers.state_dict().items()}
        self.write(tmp_path, state, unembed_hash=original_hash(lm))
        lens = un.TunedLens.load(tmp_path, lm)
        hidden = torch.randn(3, WIDTH)
        for layer in range(-1, LAYERS - 1):
            linear = layers[layer + 1].float()
            with torch.no_grad():
                torch.testing.assert_close(lens.transform(hidden, layer), hidden + linear(hidden))

    def test_another_head_is_a_warning(self, tmp_path: Path) -> None:
        state = {f"{i}.weight": torch.zeros(WIDTH, WIDTH) for i in range(LAYERS)}
        self.write(tmp_path, state, unembed_hash="0" * 64, bias=False)
        with pytest.warns(UserWarning, match="says that its model is 'x'"):
            lens = un.TunedLens.load(tmp_path, lens_lm("llama"))
        assert not lens.translators.has_bias

    @pytest.mark.parametrize(
        ("state", "config", "said"),
        [
            (
                {"0.weight": torch.zeros(32, 32), "2.weight": torch.zeros(32, 32)},
                {},
                "not one for each layer",
            ),
            ({"0.weight": torch.zeros(32, 32)}, {}, "1 translators of width 32, but config.json says 4"),
            ({"head.weight": torch.zeros(32, 32)}, {}, "no part of a lens"),
            ({"0.weight": torch.zeros(32, 32)}, {"num_hidden_layers": 1}, "for a model of 1 blocks"),
            ([1, 2], {}, "no tensors by name"),
        ],
    )
    def test_others_are_refused(self, state: Any, config: dict[str, Any], said: str, tmp_path: Path) -> None:
        self.write(tmp_path, state, **config)
        with pytest.raises(ModelError, match=said):
            un.TunedLens.load(tmp_path, lens_lm("llama"))

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"0.weight": Path("x")})
        with pytest.raises(ModelError, match="cannot be read"):
            un.TunedLens.load(tmp_path, lens_lm("llama"))


def test_scores_are_those_of_the_formula() -> None:
    lm, translators = lens_lm("gpt2"), random_translators(rank=3)
    rows = torch.tensor([IDS, IDS[::-1]])
    at = torch.tensor([[0, 3, 9], [2, 4, 5]])
    found = score(lm, {"logit": None, "tuned": translators}, [(rows[:1], at[:1]), (rows[1:], at[1:])], 0.5)
    wanted: dict[str, dict[str, list[torch.Tensor]]] = {
        lens: {"kl": [], "entropy": [], "ce": []} for lens in ("logit", "tuned")
    }
    for row, places in zip(rows, at, strict=True):
        states = plain_states(lm, lm.embed(row))
        for lens, read in wanted.items():
            with torch.no_grad():
                seen = states
                if lens == "tuned":
                    seen = [naive(translators, i, s) for i, s in enumerate(states[:-1])] + [states[-1]]
                metrics = plain_metrics(plain_logits(lm, seen), states, [*row[1:].tolist(), 0], [7], 5)
            read["kl"].append(metrics["kl"][:, places])
            read["entropy"].append(metrics["entropy"][:, places])
            read["ce"].append(metrics["cross_entropy"][:, places])
    for lens, of in wanted.items():
        for name, parts in of.items():
            every = torch.cat(parts, 1)
            np.testing.assert_allclose(found.lenses[lens][name], every.mean(1), rtol=1e-3, atol=1e-4)
        kl = torch.cat(of["kl"], 1)
        error = kl.std(1, correction=0) / math.sqrt(6)
        np.testing.assert_allclose(found.standard_error[lens], error, rtol=1e-2, atol=1e-3)
    assert found.positions == 6
    written = found.to_dict()
    assert written["baseline"]["ce"] == pytest.approx(0.5 * found.lenses["logit"]["ce"][-1])
    assert written["tuned"]["kl"]["input"] == pytest.approx(0.5 * found.lenses["tuned"]["kl"][0])
    assert list(written["tuned"]["kl"]) == ["input", "layer_0", "layer_1", "layer_2", "layer_3"]


def test_transfer_reads_each_layer_with_each_translator() -> None:
    lm, translators = lens_lm("llama"), random_translators()
    rows, at = torch.tensor([IDS]), torch.tensor([[1, 5, 7]])
    table = transfer(lm, translators, [(rows, at)])
    own = score(lm, {"tuned": translators}, [(rows, at)], 1.0).lenses["tuned"]["kl"]
    np.testing.assert_allclose(np.diag(table), own[:-1], rtol=1e-4)
    states = plain_states(lm, lm.embed(rows[0]))
    with torch.no_grad():
        logits = plain_logits(lm, [naive(translators, 2, states[0]), states[-1]])
    kl = plain_metrics(logits, [states[0], states[-1]], [0] * len(IDS), [7], 5)["kl"][0, at[0]].mean()
    assert table[2][0] == pytest.approx(float(kl), rel=1e-3)


def test_spread_positions() -> None:
    assert spread_positions(9, 0) == list(range(8))
    assert spread_positions(9, 4) == [1, 3, 5, 7]
    assert spread_positions(9, 100) == list(range(8))
    assert spread_positions(2, 1) == [0]
