"""Using an artifact: images in, labels out."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate import memory
from foveate.data import Split
from foveate.deploy import artifact
from foveate.deploy.images import split_input, to_input
from foveate.deploy.runtimes import FILES, Logits, start
from foveate.errors import FoveateError
from foveate.vision import Preprocess


@dataclass(frozen=True)
class Prediction:
    """The most probable label, its probability, and the probability of every label."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """A model ready for use; made by `load`.

    Attributes:
        labels: names of the classes.
        preprocess: size and normalisation.
        format: which exported form is running.
    """

    def __init__(
        self, labels: list[str], preprocess: Preprocess, format: str, runtime: Logits
    ) -> None:
        self.labels = labels
        self.preprocess = preprocess
        self.format = format
        self._runtime = runtime

    def predict(self, images: Any, batch_size: int = 64) -> list[Prediction]:
        """What is in each image.

        Args:
            images: paths, PIL images, arrays (H, W, 3) or (B, H, W, 3), tensors
                (3, H, W) or (B, 3, H, W), uint8 or floats in [0, 1]; one or a list.
            batch_size: images at once.

        Raises: FoveateError that names what cannot be read.
        """
        items = list(images) if isinstance(images, list | tuple) else [images]
        found = []
        for i in range(0, len(items), batch_size):
            logits = self.logits(to_input(items[i : i + batch_size], self.preprocess))
            found += [self._prediction(row) for row in softmax(logits)]
        if not found:
            raise FoveateError("there are no images to predict: give at least one")
        return found

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (N, K) of prepared images, float32 (N, 3, S, S) in [0, 1]."""
        return self._runtime(inputs)

    def split_logits(self, split: Split, batch_size: int = 64) -> np.ndarray:
        """Logits (N, K) of every image of a split."""
        parts = np.array_split(np.arange(len(split)), max(1, -(-len(split) // batch_size)))
        rows = [self.logits(split_input(split, part, self.preprocess)) for part in parts]
        return np.concatenate(rows)

    def evaluate(self, split: Split) -> dict[str, Any]:
        """Top-1 in [0, 1], mean cross-entropy in nats, and top-1 of each label that has images."""
        if not len(split):
            raise FoveateError("the split has no images: choose another")
        if split.targets.max() >= len(self.labels):
            raise FoveateError(
                "the data has more classes than the model knows: give Dataset.labelled_as's"
            )
        chances = softmax(self.split_logits(split))
        hits = chances.argmax(1) == split.targets
        own = chances[np.arange(len(split)), split.targets]
        return {
            "top1": float(hits.mean()),
            "loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
            "n": len(split),
            "per_class": {
                label: float(hits[of].mean()) if (of := split.targets == i).any() else None
                for i, label in enumerate(self.labels)
            },
        }

    def _prediction(self, chances: np.ndarray) -> Prediction:
        best = int(chances.argmax())
        every = {label: float(p) for label, p in zip(self.labels, chances, strict=True)}
        return Prediction(self.labels[best], float(chances[best]), every)


def load(folder: str | Path, *, format: str | None = None) -> Predictor:
    """Load an artifact, and check that it computes what it did when it was written.

    From then on the process keeps the memory of large activations (`foveate.memory`).

    Args:
        folder: as `foveate fit` or `export` wrote it.
        format: the exported form to run; by default the one that was chosen,
            or the next fastest if its library is not installed.

    Raises: FoveateError if it is no artifact, is damaged, or fails its check.
    """
    folder = Path(folder)
    facts = artifact.read_facts(folder)
    names = [format] if format else _by_speed(facts)
    startable = [name for name in FILES if name != "torch.export"]
    known = [row["name"] for row in facts.get("formats", []) if row["name"] in startable]
    if format and format not in known:
        raise FoveateError(
            f"{folder} cannot be run as {format!r}: choose from {', '.join(known) or 'torch'}"
        )
    options = {row["name"]: row.get("options", {}) for row in facts.get("formats", [])}
    model = artifact.load_model(folder)
    memory.keep()
    for name in names:
        artifact.verify(folder, facts, FILES[name])
        try:
            runtime = start(name, folder, model, **options.get(name, {}))
        except FoveateError as error:
            if format:
                raise
            print(f"note: {name} cannot be used here ({error})", file=sys.stderr)
            continue
        _prove(folder, facts, name, runtime)
        return Predictor(model.labels, model.preprocess, name, runtime)
    raise FoveateError(f"no format of {folder} can be run here: install foveate[deploy]")


def _by_speed(facts: dict[str, Any]) -> list[str]:
    """The chosen format, then the others that passed, the fastest first."""
    rows = [r for r in facts.get("formats", []) if r["passed"] and r["name"] != "torch.export"]
    rows.sort(key=lambda row: (not row["chosen"], row["latency_ms"]["median"]))
    return [row["name"] for row in rows] or ["torch"]


def _prove(folder: Path, facts: dict[str, Any], name: str, runtime: Logits) -> None:
    """Compare with `check.npz`, where the artifact has one."""
    if name not in facts.get("tolerances", {}):
        return
    artifact.verify(folder, facts, ("check.npz",))
    images, expected = artifact.read_check(folder)
    error = float(np.abs(runtime(images) - expected).max())
    if not error <= facts["tolerances"][name]:
        raise FoveateError(
            f"{name} of {folder} does not compute here what it computed when it was written (off "
            f"by {error:.3g}): try --format onnx or torch, or export it again on this machine"
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) of logits (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
