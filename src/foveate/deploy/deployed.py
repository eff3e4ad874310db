"""A network as it runs fastest here: called, saved, loaded."""

import json
import shutil
import tempfile
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from foveate import memory
from foveate.deploy.candidates import Candidate, start_candidate
from foveate.deploy.programs import Programs
from foveate.deploy.runtimes import Logits
from foveate.errors import FoveateError

FACTS = "fastest.json"


@dataclass(frozen=True)
class Deployed:
    """A network as it runs fastest here.

    Attributes:
        folder: with the chosen program alone; gone with this object, unless `save`d.
        chosen: how it runs.
        table: every candidate, the fastest first.
        coverage: what was done to the graph: (part, change) pairs.
        batch: images a call that it is made for; others are possible.
    """

    folder: Path
    chosen: Candidate
    table: list[Candidate]
    coverage: list[tuple[str, str]]
    batch: int
    runtime: Logits

    @classmethod
    def of(cls, programs: Programs, table: list[Candidate], known: dict[str, Any], batch: int):
        """The first of a table, with its program taken out of all programs.

        Args:
            known: what else is kept with it, JSON-ready.
        """
        chosen = table[0]
        runtime = programs.start(chosen, batch)
        folder = Path(tempfile.mkdtemp(prefix="foveate-"))
        if chosen.program:
            path = programs.path(chosen)
            for file in path.parent.glob(f"{path.stem}.*"):
                shutil.copy(file, folder)
        coverage = [(part, change) for part, change in known["coverage"]]
        facts = {**known, "chosen": asdict(chosen), "batch": batch}
        (folder / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
        deployed = cls(folder, chosen, table, coverage, batch, runtime)
        weakref.finalize(deployed, shutil.rmtree, folder, ignore_errors=True)
        return deployed

    def __call__(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Outputs float32 (B, ...) of inputs (B, C, H, W), as the network takes them."""
        if isinstance(images, Tensor):
            images = images.detach().cpu().numpy()
        return self.runtime(images)

    def save(self, folder: str | Path) -> None:
        """Copy the program and what says how to run it.

        Raises: FoveateError if it cannot be written, or the network runs in PyTorch.
        """
        if not self.chosen.program:
            raise FoveateError(
                f"{self.chosen.name} is fastest, which runs from memory: save the network's own "
                "weights, or look among other ways"
            )
        try:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        except OSError as error:
            raise FoveateError(
                f"cannot write the program to {folder} ({error}): make room or give another folder"
            ) from error


def load_fastest(folder: str | Path) -> Deployed:
    """What `Deployed.save` wrote; the process keeps large memory from then on, as by `load`.

    Raises: FoveateError if it is damaged or cannot be run here.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        table = [Candidate.of(row) for row in facts["table"]]
        chosen = Candidate.of(facts["chosen"])
        coverage = [(part, change) for part, change in facts["coverage"]]
        path = next(file for file in folder.iterdir() if file.suffix in (".onnx", ".xml"))
        runtime = start_candidate(chosen, path, facts["batch"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, StopIteration) as error:
        first = str(error).strip().split("\n")[0]
        raise FoveateError(
            f"{folder} holds no program that runs here ({first}): deploy the model again"
        ) from error
    memory.keep()
    return Deployed(folder, chosen, table, coverage, facts["batch"], runtime)
