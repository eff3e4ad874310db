"""What was measured on this machine before, so that it need not be measured again."""

import hashlib
import json
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.measure import machine

FRESH_DAYS = 30
LIBRARIES = ("foveate", "torch", "openvino", "onnxruntime", "nncf")


def key(model: nn.Module, **asked: Any) -> str:
    """A name for a question: this model, on this machine, with these libraries, asked so.

    Args:
        asked: whatever else decides the answer, JSON-ready.
    """
    facts = {name: machine()[name] for name in ("processor", "cores", "threads")}
    versions = {name: _version(name) for name in LIBRARIES}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([facts, versions, asked], sort_keys=True).encode())
    digest.update(str(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def recall(name: str) -> Any:
    """What was answered in the last 30 days, or None."""
    path = _folder() / f"{name}.json"
    try:
        if time.time() - path.stat().st_mtime > FRESH_DAYS * 86400:
            return None
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def remember(name: str, answer: Any) -> None:
    """Keep an answer, JSON-ready; where that is not possible, it is measured again next time."""
    path = _folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(answer), "utf-8")
        draft.replace(path)
    except OSError:
        pass


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "foveate" / "fastest"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
