"""The tuned lens: the logit lens after an affine map that was trained for each layer (arXiv 2303.08112).

A lens is a small folder: `lens.json` says what it is and which model it reads, `lens.safetensors` holds the maps. The
folders of the original library (`config.json` and `params.pt`) are read, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unspoken.analysis._translators import Translators, unembed_hash
from unspoken.analysis.lens import Lens
from unspoken.errors import ConfigError, ModelError, RunError

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

DESCRIPTION, WEIGHTS = "lens.json", "lens.safetensors"
ORIGINAL_DESCRIPTION, ORIGINAL_WEIGHTS = "config.json", "params.pt"
SCHEMA = 1
_KEYS = ("kind", "rank", "bias", "layers", "width", "model", "unembed_hash")
_MAKE = "Train one: unspoken train tuned_lens -m MODEL --train_path FILE -o FOLDER"


class TunedLens(Lens):
    """Every state translated to the basis of the last one, and then read: `softmax(head(norm(h_l + W_l h_l + b_l)))`.

    ```python
    lens = un.TunedLens.load("runs/lens", lm)
    grid = lens("The capital of France is")  # as with un.LogitLens
    ```

    Args:
        lm: The model.
        translators: What was learnt, for as many blocks and as wide states as the model has.
        **options: Of every lens; see `un.LogitLens`.

    Raises:
        ConfigError: If an option is wrong.
        ModelError: If the translators are of another shape than the model.
    """

    name = "tuned"

    def __init__(self, lm: CausalLM, translators: Translators, **options: Any) -> None:
        super().__init__(lm, **options)
        found = (translators.layers, translators.width)
        wanted = (len(lm.anatomy.blocks), lm.hidden_size)
        if found != wanted:
            raise ModelError(
                f"The lens is for a model of {found[0]} blocks and width {found[1]}; {lm.source!r} has {wanted[0]} "
                f"and {wanted[1]}."
            )
        self.translators = translators.to(_head_device(lm)).eval()

    def transform(self, hidden: Tensor, layer: int) -> Tensor:
        """The translated states [n, d], in the dtype of `hidden`."""
        translated: Tensor = self.translators[layer + 1](hidden)
        return translated.to(hidden.dtype)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], lm: CausalLM, **options: Any) -> TunedLens:
        """The lens of a folder, for the model that it was trained for.

        A folder of the original library is recognised by its files. Its hash is of the head's printed corners, which
        depend on versions: where it differs there is a warning.

        Args:
            folder: As `save` or the original wrote it.
            lm: The model.
            **options: Of every lens.

        Raises:
            ConfigError: If there is no lens in the folder.
            ModelError: If it is damaged, or was trained for another model.
        """
        folder = Path(folder)
        if (folder / DESCRIPTION).is_file():
            translators = _read(folder, lm)
        elif (folder / ORIGINAL_WEIGHTS).is_file():
            translators = _read_original(folder, lm)
        else:
            raise ConfigError(f"There is no tuned lens in {str(folder)!r}.", _MAKE)
        return cls(lm, translators, **options)

    def save(self, folder: str | os.PathLike[str], *, provenance: dict[str, Any] | None = None) -> None:
        """Write the lens into a folder, at once or not at all; see `save_lens`."""
        save_lens(self.lm, self.translators, folder, provenance=provenance)


def is_lens(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a tuned lens."""
    return any((Path(folder) / name).is_file() for name in (DESCRIPTION, ORIGINAL_WEIGHTS))


def save_lens(
    lm: CausalLM,
    translators: Translators,
    folder: str | os.PathLike[str],
    *,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write translators and what they are for; each file is written aside and then renamed, the description last.

    Args:
        lm: The model that they read.
        translators: To be saved.
        folder: Made if missing; its other files stay.
        provenance: How they were made, JSON-ready.

    Raises:
        RunError: If they cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in translators.state_dict().items()}
    content = save(tensors)
    info = lm.info()
    described = {
        "schema": SCHEMA,
        "kind": translators.kind,
        "rank": translators.rank,
        "bias": translators.has_bias,
        "layers": translators.layers,
        "width": translators.width,
        "model": info["source"],
        "class": info["class"],
        "revision": info["revision"],
        "dtype": info["dtype"],
        "unembed_hash": unembed_hash(lm),
        "sha256": hashlib.sha256(content).hexdigest(),
        "provenance": provenance or {},
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (
            (WEIGHTS, content),
            (DESCRIPTION, (json.dumps(described, indent=1) + "\n").encode()),
        ):
            aside = folder / f".{name}.writing"
            aside.write_bytes(data)
            os.replace(aside, folder / name)
    except OSError as error:
        raise RunError(f"Cannot write the lens into {folder}: {error.strerror}.") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved lens, checked against the hash beside them.

    Raises:
        ModelError: If the two files do not belong together, or cannot be read.
    """
    from safetensors.torch import load

    described = _described(folder / DESCRIPTION)
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error.strerror}.", _MAKE) from error
    if hashlib.sha256(content).hexdigest() != described.get("sha256"):
        raise ModelError(
            f"{folder / WEIGHTS} is damaged, or not the one that {DESCRIPTION} describes.", _MAKE
        )
    return dict(load(content))


def _described(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", _MAKE) from error
    if not isinstance(described, dict):
        raise ModelError(f"{path} holds no description of a lens.", _MAKE)
    return described


def _read(folder: Path, lm: CausalLM) -> Translators:
    path = folder / DESCRIPTION
    described = _described(path)
    missing = [key for key in _KEYS if key not in described]
    if missing or not isinstance(described.get("schema"), int):
        raise ModelError(
            f"{path} holds no description of a lens: it lacks {', '.join(missing) or 'schema'}.", _MAKE
        )
    if described["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by a later version.")
    if described["unembed_hash"] != unembed_hash(lm):
        raise ModelError(
            f"The lens in {folder} was trained for {described['model']!r} ({described.get('dtype')}), whose final norm "
            f"and head are not those of {lm.source!r}.",
            f"Load that model, or train a lens for this one: unspoken train tuned_lens -m {lm.source} ...",
        )
    translators = Translators(
        described["layers"],
        described["width"],
        rank=described["rank"],
        bias_only=described["kind"] == "bias",
        bias=described["bias"],
    )
    return _filled(translators, read_tensors(folder), folder / WEIGHTS)


def _filled(translators: Translators, tensors: dict[str, Tensor], path: Path) -> Translators:
    try:
        translators.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ModelError(f"The tensors in {path} are not those of its description: {error}") from error
    return translators


# The original library's folders


def _read_original(folder: Path, lm: CausalLM) -> Translators:
    """Translators as the original saved them: `0.weight` [d, d] and `0.bias` [d] for each layer, in any dtype."""
    described = _described(folder / ORIGINAL_DESCRIPTION)
    path = folder / ORIGINAL_WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds no tensors by name.")
    tensors = {}
    for name, tensor in state.items():
        place, _, what = name.removeprefix("layer_translators.").partition(".")
        if not place.isdigit() or what not in ("weight", "bias") or not isinstance(tensor, Tensor):
            raise ModelError(
                f"{path} holds {name!r}, which is no part of a lens; it should be like 0.weight."
            )
        tensors[f"{place}.{what}"] = tensor
    places = sorted({int(name.partition(".")[0]) for name in tensors})
    if not places or places != list(range(len(places))) or "0.weight" not in tensors:
        raise ModelError(f"{path} has no translators, or not one for each layer.")
    width = tensors["0.weight"].shape[-1]
    stated = (described.get("num_hidden_layers", len(places)), described.get("d_model", width))
    if stated != (len(places), width):
        raise ModelError(
            f"{path} has {len(places)} translators of width {width}, but {ORIGINAL_DESCRIPTION} says {stated[0]} of "
            f"width {stated[1]}."
        )
    known = described.get("unembed_hash")
    if known and known != original_hash(lm):
        named = described.get("base_model_name_or_path")
        warnings.warn(
            f"The lens in {folder} names the head it was trained for by a hash that {lm.source!r} does not have; it "
            f"says that its model is {named!r}.",
            stacklevel=3,
        )
    return _filled(Translators(len(places), width, bias="0.bias" in tensors), tensors, path)


def original_hash(lm: CausalLM) -> str:
    """The head's hash as the original library computes it: of its corners as numpy prints them with one digit."""
    weight = lm.anatomy.head.weight.detach().float().cpu().numpy()  # type: ignore[operator]
    return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def _head_device(lm: CausalLM) -> torch.device:
    """Where states are read: the head's, since blocks may be spread over devices."""
    return next(lm.anatomy.head.parameters()).device
