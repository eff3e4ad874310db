"""The artifact: one folder with everything that using a model needs, and proof that it works.

`model.safetensors` and `model.json` rebuild the model; the exported programs
stand beside them; `check.npz` holds inputs and expected outputs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import foveate
from foveate.backbones import architecture_of, create_model
from foveate.errors import FoveateError
from foveate.surgery.lineage import lineage
from foveate.surgery.replay import replay
from foveate.vision import Preprocess, VisionModel

Factory = Callable[[], nn.Module]
"""Makes a network of one's own as it was before its first edit."""


def save(
    model: nn.Module, folder: str | Path, *, architecture: str | dict[str, Any] | None = None
) -> None:
    """Write a model alone: weights and what rebuilds it, its edits included.

    Args:
        model: a VisionModel or any network.
        folder: is made if it is not there.
        architecture: a name, or `{"name": ..., "kwargs": ...}`, as
            `foveate.create_model` takes them. Not needed for what that or timm
            made by name; a network of one's own is loaded with a factory.

    Raises: FoveateError if it cannot be written, or if what would be written
        does not rebuild the model.
    """
    folder = Path(folder)
    facts = describe(model, architecture)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if facts["architecture"]:
        _demand_fit(facts, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "model.safetensors")
        write_facts(folder, facts)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def describe(model: nn.Module, architecture: str | dict[str, Any] | None = None) -> dict[str, Any]:
    """What `model.json` says of the model itself; the architecture as in `save`."""
    if isinstance(architecture, str):
        architecture = {"name": architecture, "kwargs": {}}
    facts: dict[str, Any] = {"foveate": foveate.__version__, "lineage": lineage(model)}
    if not isinstance(model, VisionModel):
        return {**facts, "architecture": architecture or architecture_of(model)}
    return {
        **facts,
        "architecture": architecture or model.architecture or _without_classes(model.backbone),
        "preprocess": model.preprocess.to_json(),
        "labels": model.labels,
        "input": "float32 RGB in [0, 1], (B, 3, S, S); normalisation is inside",
    }


def load_model(folder: str | Path, factory: Factory | None = None) -> VisionModel:
    """Rebuild the model of an artifact, bit for bit. Nothing is unpickled.

    Args:
        folder: as `save` or `export` wrote it.
        factory: makes the backbone, if it is of one's own.

    Raises: FoveateError if the folder is no artifact or is damaged.
    """
    model = load_network(folder, factory)
    if not isinstance(model, VisionModel):
        raise FoveateError(
            f"{folder} holds a network without labels and preprocessing: foveate.load_network "
            "gives it"
        )
    return model


def load_network(folder: str | Path, factory: Factory | None = None) -> nn.Module:
    """Rebuild any network that `save` wrote, bit for bit, its edits included.

    Args:
        folder: as `save` wrote it.
        factory: makes the network as it was before its first edit, if it is of one's own.

    Returns: the network in evaluation mode; a VisionModel if it was one.
    Raises: FoveateError if the folder is no artifact or is damaged, or a factory is missing.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    verify(folder, facts, ("model.safetensors",))
    if not facts.get("architecture") and factory is None:
        raise FoveateError(
            f"the network in {folder} is of its maker's own: give factory, a function that makes "
            "it as it was before its first edit"
        )
    try:
        model = _rebuilt(facts, factory)
        _fit_state(model, load_file(folder / "model.safetensors"))
    except (
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
        SafetensorError,
    ) as error:
        raise damaged(folder, str(error).split("\n")[0]) from error
    return model.eval()


def _rebuilt(facts: dict[str, Any], factory: Factory | None) -> nn.Module:
    """A fresh model with the structure that facts say."""
    architecture = facts["architecture"]
    if "labels" not in facts:
        made = (
            factory() if factory else create_model(architecture["name"], **architecture["kwargs"])
        )
        return replay(made, facts["lineage"])
    preprocess = Preprocess.from_json(facts["preprocess"])
    if factory:
        model = VisionModel(factory(), preprocess, facts["labels"])
    else:
        made = VisionModel.create(
            architecture["name"], facts["labels"], preprocess.size, **architecture["kwargs"]
        )
        model = VisionModel(made.backbone, preprocess, facts["labels"], architecture)
    return replay(model, facts["lineage"])


def _without_classes(backbone: nn.Module) -> dict[str, Any]:
    """How a backbone was made, as a VisionModel has it: its labels say how many classes."""
    known = architecture_of(backbone) or {}
    kwargs = {key: value for key, value in known.get("kwargs", {}).items() if key != "num_classes"}
    return known and {**known, "kwargs": kwargs}


def _demand_fit(facts: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Raises: FoveateError if a model rebuilt from these facts does not take these weights."""
    try:
        _fit_state(_rebuilt(json.loads(json.dumps(facts)), None), state)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise FoveateError(
            f"{facts['architecture']['name']} with its options and edits does not rebuild the "
            f"model ({' '.join(str(error).split())[:300]}): give architecture, with all options "
            "that the model was made with"
        ) from error


def _fit_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights, in the type that they have."""
    floats = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        model.to(floats.pop())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


# ---------------------------------------------------------------- model.json and checksums


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `model.json` with the checksums of the files beside it, and its own."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "model.json")
    facts = {**facts, "checksums": {p.name: _checksum(p) for p in files}}
    facts["self"] = _own_checksum(facts)
    (folder / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False))


def read_facts(folder: Path) -> dict[str, Any]:
    """Read `model.json`. Raises: FoveateError if it is missing or damaged."""
    if not folder.is_dir() or not (folder / "model.json").is_file():
        raise FoveateError(
            f"{folder} is no model's folder, as it has no model.json: give the folder that "
            "`foveate fit` wrote, such as RUN/model"
        )
    try:
        facts = json.loads((folder / "model.json").read_text())
        if facts.pop("self") != _own_checksum(facts):
            raise ValueError("model.json was changed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, "model.json does not hold what was written") from error
    return facts


def verify(folder: Path, facts: dict[str, Any], names: tuple[str, ...]) -> None:
    """Compare files with their checksums. Raises: FoveateError."""
    for name in names:
        if not (folder / name).is_file():
            raise damaged(folder, f"{name} is missing")
        if _checksum(folder / name) != facts["checksums"].get(name):
            raise damaged(folder, f"{name} does not hold what was written")


def damaged(folder: Path, why: str) -> FoveateError:
    """The error for an artifact that cannot be trusted."""
    return FoveateError(
        f"the model in {folder} is damaged ({why}): copy it anew, or export it again from its run"
    )


def cannot_write(folder: Path, error: Exception) -> FoveateError:
    """The error for a folder that does not take what is written to it."""
    why = getattr(error, "strerror", None) or error
    return FoveateError(
        f"cannot write the model to {folder} ({why}): make room or give another folder"
    )


def _own_checksum(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# ---------------------------------------------------------------- writing it whole


class Draft:
    """A folder that takes the place of `final` only when it is complete.

    Raises: FoveateError if `final` holds something else than a model.
    """

    def __init__(self, final: Path) -> None:
        if final.is_file() or (
            final.is_dir() and any(final.iterdir()) and not (final / "model.json").exists()
        ):
            raise FoveateError(
                f"{final} holds something that is no model: give an empty or new folder"
            )
        self.final = final
        self.folder = final.with_name(f".{final.name}.draft")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def publish(self) -> None:
        """Put it in place; what was there before goes last."""
        old = self.final.with_name(f".{self.final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.replace(old)
        self.folder.replace(self.final)
        shutil.rmtree(old, ignore_errors=True)


def write_check(folder: Path, images: np.ndarray, logits: np.ndarray) -> None:
    """Write `check.npz`: inputs float32 (N, 3, S, S) and the trained model's logits (N, K)."""
    np.savez_compressed(folder / "check.npz", images=images, logits=logits)


def read_check(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read `check.npz`. Raises: FoveateError."""
    try:
        with np.load(folder / "check.npz", allow_pickle=False) as arrays:
            return arrays["images"], arrays["logits"]
    except (OSError, ValueError, KeyError) as error:
        raise damaged(folder, "check.npz cannot be read") from error
