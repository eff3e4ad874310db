"""The programs of one network's candidates, each written when it is first asked for."""

import tempfile
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from foveate.deploy.candidates import Candidate, start_candidate
from foveate.deploy.formats import save_openvino, to_openvino, write_program
from foveate.deploy.quantise import (
    CALIBRATION_BATCH,
    has_attention,
    in_float,
    quantise,
    quantise_onnx,
)
from foveate.deploy.runtimes import Logits, TorchRuntime
from foveate.deploy.soundness import is_sound
from foveate.errors import FoveateError
from foveate.surgery.exported import exportable, exported_layers
from foveate.surgery.hard_swish import is_smooth, take_hard_swish
from foveate.surgery.lean import largest_error, lean

PROVEN = 1e-3
"""Largest error of a lean graph that counts as rounding, against the largest output."""
HARD = "hard"
"""Name of the leanest graph with hard-swish for its GELU and SiLU, which is an approximation."""
FITTED_ON = 16
"""Images that hard-swish is fitted on."""


class Programs:
    """Graphs of a network as files, in float and in INT8; they go when this object goes.

    Args:
        model: any network, in evaluation mode, on the CPU.
        images: float32 (N, C, H, W), two or more: graphs are proven on the first two.
        calibration: for INT8.
        told: called with a word on what is under way.

    Attributes:
        folder: where the files lie.
        coverage: what was done to the lean graph: (part, change) pairs.
        hardened: what was done to it besides, in the hard one.
        layers: names of those that the network brings quantised, and keeps so.
    """

    def __init__(
        self,
        model: nn.Module,
        images: np.ndarray,
        calibration: np.ndarray,
        told: Callable[[str], None],
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="foveate-"))
        self.coverage: list[tuple[str, str]] = []
        self.hardened: list[tuple[str, str]] = []
        self.layers = exported_layers(model)
        self._model = model
        self._network = exportable(model) if self.layers else model
        self._pair = torch.from_numpy(images[:2])
        self._calibration = calibration
        self._told = told
        self._floats: dict[str, Any] = {}
        self._quantised: dict[tuple[str, bool, bool], Any] = {}
        self._sound: dict[str, bool] = {}
        self._smooth: fx.GraphModule | None = None
        weakref.finalize(self, rmtree, self.folder, ignore_errors=True)

    @cached_property
    def graphs(self) -> list[str]:
        """Which graphs there are: the leanest that is proven, and the network as it came."""
        lean_one = next((name for name in ("maps", "merged") if self.write(name)), None)
        self.write("plain")
        return [lean_one, "plain"] if lean_one else ["plain"]

    @cached_property
    def has_hard(self) -> bool:
        """Whether there is a hard graph: a lean one that has GELU or SiLU to approximate."""
        return self.graphs[0] != "plain" and self._smooth is not None and self.write(HARD)

    def write(self, graph: str) -> bool:
        """Write a graph, if it is not there; whether there is one to be judged."""
        path = self.folder / f"{graph}.onnx"
        if path.exists():
            return True
        self._told(f"writing the {graph} graph")
        network = self._made(graph)
        if network is not None:
            write_program(network, self._pair, path)
        return network is not None

    def _made(self, graph: str) -> nn.Module | None:
        if graph == "plain":
            return self._network
        return self._hard() if graph == HARD else self._lean(graph)

    def _lean(self, graph: str) -> nn.Module | None:
        try:
            network, changes = lean(self._network, self._pair, rewrite_maps=graph == "maps")
        except FoveateError as error:
            self.coverage = [("the network", str(error))]
            return None
        error = largest_error(self._network, network, self._pair)
        if error > PROVEN:
            self.coverage = [("the network", f"left as it came: {graph} is {error:.1e} off")]
            return None
        self.coverage = [(line.name, line.why) for line in changes]
        self._smooth = network if is_smooth(network) else None
        return network

    def _hard(self) -> nn.Module | None:
        network, self._smooth = self._smooth, None  # it is changed in place
        if network is None:
            return None
        images = torch.from_numpy(self._calibration[:FITTED_ON])
        changes = take_hard_swish(network, images)
        self.hardened = [(line.name, line.why) for line in changes]
        return network if any(line.changed for line in changes) else None

    def float32(self, graph: str) -> Any:
        """A graph as an OpenVINO model."""
        if graph not in self._floats:
            self.write(graph)
            self._floats[graph] = to_openvino(self.folder / f"{graph}.onnx")
        return self._floats[graph]

    def has_attention(self, graph: str) -> bool:
        return has_attention(self.float32(graph))

    def int8(self, row: Candidate) -> Any:
        """A candidate's graph as an OpenVINO model in INT8, before layers return to float."""
        key = row.graph, row.tight, row.gentle
        if key not in self._quantised:
            self._told(f"quantising the {row.graph} graph")
            self._quantised[key] = quantise(
                self.float32(row.graph),
                self._calibration,
                together=1 if row.tight else CALIBRATION_BATCH,
                is_transformer=row.gentle,
            )
        return self._quantised[key]

    def path(self, row: Candidate) -> Path:
        """The file of a candidate, written if it is not there."""
        path = self.folder / row.program
        if not row.is_quantised:
            self.write(row.graph)
        elif not path.exists() and row.runtime == "onnxruntime":
            self.write(row.graph)
            self._told(f"quantising the {row.graph} graph for ONNX Runtime")
            quantise_onnx(self.folder / f"{row.graph}.onnx", self._calibration, path)
        elif not path.exists():
            model = self.int8(row)
            if row.floats:
                model = in_float(model, self.float32(row.graph), row.floats)
            save_openvino(model, path)
        return path

    def is_sound(self, row: Candidate) -> bool:
        """Whether a candidate's program runs without crashing; only OpenVINO's integers have been
        seen to."""
        if row.runtime != "openvino" or not (row.is_quantised or self.layers):
            return True
        if row.program not in self._sound:
            self._told(f"trying the {row.graph} graph in integers")
            self._sound[row.program] = is_sound(self.path(row), tuple(self._pair.shape[1:]))
        return self._sound[row.program]

    def start(self, row: Candidate, batch: int) -> Logits:
        """Run a candidate, for batches of a size."""
        if row.runtime == "torch":
            return TorchRuntime(self._model)
        return start_candidate(row, self.path(row), batch)
