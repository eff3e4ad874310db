"""Checkpoints: one file each, whole or absent, with nothing in them that could run.

A checkpoint is a safetensors file. Its header carries the rest of the state as
JSON and a digest of everything, so a damaged one is noticed and the one before
it is used.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.errors import FoveateError


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader sees all of it or none of it.

    Raises: FoveateError if it cannot be written; what was there stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    text = json.dumps(state, sort_keys=True)
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, draft, {"state": text, "digest": _digest(plain, text)})
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise FoveateError(
            f"cannot write the checkpoint {path} ({error}): make room and run the same command "
            "again; the checkpoint before it is untouched"
        ) from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises: FoveateError if it is damaged or no checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        if header["digest"] != _digest(tensors, header["state"]):
            raise ValueError("its digest differs")
        return tensors, json.loads(header["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FoveateError(
            f"the checkpoint {path} is damaged ({error}): delete it to go on from the one before"
        ) from error


class Shelf:
    """The checkpoints of a run: the newest few, and the best.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.best = folder / "best.safetensors"
        self._keep = keep

    def put(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Keep a checkpoint, and let the oldest go."""
        path = self.folder / f"step-{step:08d}.safetensors"
        save(path, tensors, state)
        for old in self._newest_first()[self._keep :]:
            old.unlink()
        return path

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole; damaged ones are renamed aside."""
        for path in self._newest_first():
            try:
                return load(path)
            except FoveateError:
                path.replace(path.with_suffix(".damaged"))
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON."""
    tensors, numbers = {}, {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            key = f"optimizer/{index}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                numbers[key] = value
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """The opposite of `pack_optimizer`; other tensors are left alone."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
