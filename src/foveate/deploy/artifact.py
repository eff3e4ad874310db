"""The artifact: one folder with everything that using a model needs, and proof that it works.

`model.safetensors` and `model.json` rebuild the model; the exported programs
stand beside them; `check.npz` holds inputs and expected outputs.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import foveate
from foveate.errors import FoveateError
from foveate.vision import Preprocess, VisionModel


def save(model: VisionModel, folder: Path) -> None:
    """Write a model alone: weights and what rebuilds them.

    Raises: FoveateError if it cannot be written.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "model.safetensors")
        write_facts(folder, describe(model))
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def describe(model: VisionModel) -> dict[str, Any]:
    """What `model.json` says of the model itself."""
    return {
        "foveate": foveate.__version__,
        "architecture": model.architecture,
        "lineage": model.lineage,
        "preprocess": model.preprocess.to_json(),
        "labels": model.labels,
        "input": "float32 RGB in [0, 1], (B, 3, S, S); normalisation is inside",
    }


def load_model(folder: str | Path) -> VisionModel:
    """Rebuild the model of an artifact, bit for bit. Nothing is unpickled.

    Raises: FoveateError if the folder is no artifact or is damaged.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    verify(folder, facts, ("model.safetensors",))
    try:
        architecture = facts["architecture"]
        preprocess = Preprocess.from_json(facts["preprocess"])
        model = VisionModel.create(
            architecture["name"],
            facts["labels"],
            preprocess.size,
            mean=preprocess.mean,
            std=preprocess.std,
            **architecture["kwargs"],
        )
        model.preprocess = preprocess
        model.lineage = facts["lineage"]
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise damaged(folder, str(error).split("\n")[0]) from error
    return model.eval()


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
