"""What a run's folder holds, read so that whatever is missing or cut off is simply not there."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import FoveateError


@dataclass(frozen=True)
class Folder:
    """A run as the report sees it.

    Args:
        path: the run's folder.
        facts: run.json.
        train, evaluations: the lines of metrics.jsonl, in the order of their steps.
        arrays: analysis.npz, empty where there is none.
    """

    path: Path
    facts: dict[str, Any]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]

    def get(self, *keys: str) -> Any:
        """What run.json holds under these keys, one inside the other, or None."""
        return dig(self.facts, *keys)

    @property
    def labels(self) -> list[str]:
        """The names of the classes; numbers where they are not known."""
        named = [str(label) for label in listed(self.get("data", "labels"))]
        logits = self.arrays.get("logits")
        classes = logits.shape[1] if logits is not None else 0
        return named + [str(i) for i in range(len(named), classes)]


def read(path: Path) -> Folder:
    """Read a run's folder.

    Raises: FoveateError if it holds no run.json, or one that is damaged.
    """
    metrics = read_metrics(path / "metrics.jsonl")
    return Folder(
        path,
        read_facts(path / "run.json"),
        [line for line in metrics if line.get("kind") == "train"],
        [line for line in metrics if line.get("kind") == "eval"],
        read_arrays(path / "analysis.npz"),
    )


def read_facts(path: Path) -> dict[str, Any]:
    """run.json. Raises: FoveateError if it is missing or damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FoveateError(
            f"cannot read {path} ({error.strerror}): give the folder of a run that foveate fit made"
        ) from error
    except ValueError as error:
        raise FoveateError(f"{path} is damaged: bring it back, or fit again elsewhere") from error
    if not isinstance(facts, dict):
        raise FoveateError(f"{path} is damaged: bring it back, or fit again elsewhere")
    return facts


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; of a step that was logged again after a resume, the last."""
    if not path.is_file():
        return []
    latest: dict[tuple[str, float], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            latest[str(entry["kind"]), float(entry["step"])] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return [latest[key] for key in sorted(latest, key=lambda key: key[1])]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """analysis.npz without pickles; empty if it is missing, damaged or does not fit together."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return {}
    return arrays if _fit_together(arrays) else {}


def _fit_together(arrays: dict[str, np.ndarray]) -> bool:
    logits, targets = arrays.get("logits"), arrays.get("targets")
    if logits is None or targets is None or logits.ndim != 2 or targets.shape != logits.shape[:1]:
        return False
    return len(targets) > 0 and bool((targets >= 0).all() and (targets < logits.shape[1]).all())


def dig(value: Any, *keys: str) -> Any:
    """What lies under these keys, one inside the other, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def listed(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def rows(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list, an empty list for anything else."""
    return [row for row in listed(value) if isinstance(row, dict)]
