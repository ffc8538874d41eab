"""What cannot be loaded, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.errors import ConfigError, ModelError, UnspokenError
from unspoken.lm.model import CausalLM, load

Folder = Callable[[str], Path]
Tiny = Callable[[str], CausalLM]


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What cannot be loaded


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "No model was named"),
        ("./no/such/folder", "no folder './no/such/folder'"),
        ("/no/such/folder", "no folder"),
        ("a/b/c", "no folder 'a/b/c'"),
        ("no such model", "no folder"),
        ("missing.gguf", "no GGUF file"),
        (Path("qwen"), "no folder 'qwen'"),
        (__file__, "not a GGUF file"),
    ],
)
def test_unknown_sources_say_what_a_source_is(source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(source)
    if "GGUF file" not in message or source == __file__:
        assert all(word in str(caught.value) for word in ("smollm2", "folder", "GGUF", "hub id"))


def test_a_hub_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        load("nobody/nothing")
    assert "unspoken pull smollm2" in str(caught.value)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("of another package")])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = []

    def unreachable(url: str, **_: Any) -> None:
        asked.append(url)
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("unspoken.lm.sources.AutoConfig", None)  # its client would try again and again
    with pytest.raises(ModelError, match="hub cannot be reached"):
        load("nobody/nothing")
    assert len(asked) == 1 and "nobody/nothing" in asked[0]


def test_what_the_hub_answers_is_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, FileMetadataError

    for answer in (EntryNotFoundError, FileMetadataError):
        error = answer.__new__(answer)  # their arguments differ by version

        def answers(url: str, error: Exception = error, **_: Any) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answers)
        # Without a network, reading fails as it does elsewhere; here it only has to be tried.
        config = type("Config", (), {"from_pretrained": staticmethod(lambda *_, **__: 1 / 0)})
        monkeypatch.setattr("unspoken.lm.sources.AutoConfig", config)
        with pytest.raises(ZeroDivisionError):
            load("nobody/nothing")


@pytest.mark.parametrize("name", ["smolm2", "my-model", "a--b"])
def test_a_name_that_the_hub_cannot_have_is_not_asked_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", None)
    with pytest.raises(ConfigError, match=f"Unknown model '{name}'") as caught:
        load(name)
    assert ("Did you mean 'smollm2'?" in str(caught.value)) == (name == "smolm2")


def test_a_short_name_of_the_hub_is_asked_of_it() -> None:
    with pytest.raises(ModelError, match="'gpt2-large' is no folder here.*the hub cannot be reached"):
        load("gpt2-large")


def test_a_misspelt_folder_is_suggested(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("llama")
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(ModelError, match=f"Did you mean '{folder.parent.name}/llama'?"):
        load(f"{folder.parent.name}/lama")
    with pytest.raises(ConfigError, match=f"Did you mean '{folder}'?"):
        load(f"{folder.parent}/lama")


def test_all_wrong_options_are_listed_with_what_is_allowed(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tiny_folder("llama"), dtype="int3", device="quantum", attn="flash")
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    assert "float32, bfloat16, float16" in text and "sdpa or eager" in text and "auto, cpu" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError, match="'cuda' cannot be used"):
        load(tiny_folder("llama"), device="cuda")


def test_a_checkpoint_without_a_tokenizer_says_how_to_give_one(checkpoint: Path) -> None:
    for file in checkpoint.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        load(checkpoint)
    assert "un.CausalLM(model, tokenizer)" in str(caught.value)


def test_pickled_weights_are_refused_and_never_opened(checkpoint: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Trap()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        load(checkpoint)
    assert not (tmp_path / "sprung").exists()


def test_missing_weights_are_named(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(checkpoint)


@pytest.mark.parametrize(
    "damage", ["no config", "broken config", "no weights", "broken weights", "unknown type"]
)
def test_damaged_folders_give_one_message(checkpoint: Path, damage: str) -> None:
    if damage == "no config":
        (checkpoint / "config.json").unlink()
    elif damage == "broken config":
        (checkpoint / "config.json").write_text("{")
    elif damage == "no weights":
        (checkpoint / "model.safetensors").unlink()
    elif damage == "broken weights":
        (checkpoint / "model.safetensors").write_bytes(b"nothing")
    else:
        edit(checkpoint, model_type="not_yet_invented")
    with pytest.raises(ModelError, match="checkpoint"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "is a LlamaForSequenceClassification, not a causal",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM, not a causal"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM .*recurrent"),
        ({"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}, "Qwen3NextForCausalLM"),
        ({"model_type": "rwkv", "architectures": ["RwkvForCausalLM"]}, "RwkvForCausalLM .*recurrent"),
        (
            {
                "model_type": "lfm2",
                "architectures": ["Lfm2ForCausalLM"],
                "layer_types": ["conv", "full_attention"],
            },
            "Lfm2ForCausalLM .*conv",
        ),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "is a ViTModel, not a causal"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **values}))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_own_code_needs_the_flag(checkpoint: Path, tmp_path: Path) -> None:
    edit(
        checkpoint,
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    )
    (checkpoint / "own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    with pytest.raises(ConfigError, match="trust_remote_code=True"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["gguf", "accelerate"])
def test_a_gguf_file_without_its_packages_gives_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UnspokenError, match=r"pip install 'unspoken\[gguf\]'"):
        load(tmp_path / "model.gguf")
