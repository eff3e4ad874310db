"""Running an exported model: one small class a runtime.

Each maps float32 images (B, 3, S, S) in [0, 1] to logits float32 (B, K).
"""

import copy
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foveate.deploy.executed import Executed, by_onnxruntime, by_openvino
from foveate.deploy.formats import Program
from foveate.errors import require
from foveate.ops.kernels import accelerate
from foveate.ops.merge import merge
from foveate.vision import VisionModel

KEPT_BATCHES = 3
"""Sizes of batches that programs are kept for, besides the usual one."""

Logits = Callable[[np.ndarray], np.ndarray]


class TorchRuntime:
    """PyTorch, eager, channels_last, merged, with Foveate's kernels.

    Args:
        network: takes images (B, C, H, W); stays as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        own = merge(copy.deepcopy(network)).to(memory_format=torch.channels_last)  # pyright: ignore
        accelerate(own)
        self._network = own

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(images).to(memory_format=torch.channels_last)
        return self._network(batch).numpy()


class ExportRuntime:
    """A torch.export program."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.module()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._module(torch.from_numpy(images)).numpy()


class OnnxRuntime:
    """ONNX Runtime on the CPU; its threads rest between runs, so as not to slow others down.

    Args:
        path: of an .onnx.
        threads: how many compute; 0 for all.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        runtime = require("onnxruntime", "deploy")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._path = path

    def in_integers(self) -> list[str]:
        """As `executed.by_onnxruntime` gives them."""
        return by_onnxruntime(self._path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]


class OpenVinoRuntime:
    """OpenVINO on the CPU, compiled for each size of batch that comes, the last few kept.

    Args:
        model: path of an .xml or .onnx, or a model in memory.
        precision: what floats are computed in, `f32` or `bf16`.
        batch: images that most calls bring; compiled for at once.
        streams: parts of a batch, if they divide it, that are computed at the same time.
        threads: how many compute such a batch; 0 for all.
    """

    def __init__(
        self,
        model: Any,
        precision: str = "f32",
        *,
        batch: int = 1,
        streams: int = 1,
        threads: int = 0,
    ) -> None:
        openvino = require("openvino", "deploy")
        self._core = openvino.Core()
        self._tensor = partial(openvino.Tensor, shared_memory=True)
        self._model = self._core.read_model(model) if isinstance(model, Path) else model
        # or linear layers with small weights would round what they take, as nobody asked for
        exact = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        self._options = {"INFERENCE_PRECISION_HINT": precision, **exact}
        self._batch = batch
        self._streams = streams
        self._threads = threads
        self._requests = {batch: self._compile(batch)}

    def _compile(self, batch: int) -> list[Any]:
        """As many requests as streams, which share the images of a batch."""
        streams = self._streams if batch % self._streams == 0 else 1
        model = self._model.clone()
        shape = model.input(0).get_partial_shape()
        shape[0] = batch // streams
        model.reshape(shape)
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if streams > 1:
            hints = {"NUM_STREAMS": streams}
        if self._threads and batch == self._batch:
            hints["INFERENCE_NUM_THREADS"] = self._threads
        compiled = self._core.compile_model(model, "CPU", {**self._options, **hints})
        return [compiled.create_infer_request() for _ in range(streams)]

    def in_integers(self) -> list[str]:
        """As `executed.by_openvino` gives them, for the usual batch."""
        return by_openvino(self._requests[self._batch][0].get_compiled_model())

    def _of(self, batch: int) -> list[Any]:
        if batch not in self._requests:
            if len(self._requests) > KEPT_BATCHES:
                self._requests.pop(next(size for size in self._requests if size != self._batch))
            self._requests[batch] = self._compile(batch)
        return self._requests[batch]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        requests = self._of(len(images))
        # OpenVINO's own infer() costs up to 40 microseconds more of Python a call
        for request, part in zip(requests, np.split(images, len(requests)), strict=True):
            request.set_input_tensor(0, self._tensor(part))
            request.start_async()
        for request in requests:
            request.wait()
        found = [request.get_output_tensor(0).data for request in requests]
        return found[0].copy() if len(found) == 1 else np.concatenate(found)


def executed(runtime: Logits, layers: Collection[str]) -> Executed:
    """How a runtime computes the quantised layers of a network.

    Args:
        layers: their names. PyTorch computes all of them in floats that hold integers.
    """
    found = getattr(runtime, "in_integers", list) if layers else list
    return Executed.of(layers, found())


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    openvino = require("openvino", "deploy")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


FILES: dict[str, tuple[str, ...]] = {
    "torch": ("model.safetensors",),
    "torch.export": ("model.pt2",),
    "onnx": ("model.onnx",),
    "onnx-int8": ("model-int8.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "openvino-bf16": ("model.xml", "model.bin"),
    "openvino-int8": ("model-int8.xml", "model-int8.bin"),
    "openvino-int8-bf16": ("model-int8.xml", "model-int8.bin"),
}
"""The files of each format in an artifact."""


def start(
    name: str, folder: Path, model: VisionModel, *, streams: int = 1, threads: int = 0
) -> Logits:
    """The runtime of a format in an artifact's folder.

    `torch.export` programs are not started from files: reading one may unpickle.

    Args:
        streams: parts of a batch that OpenVINO computes at the same time.
        threads: how many compute one image; 0 for all.

    Raises: FoveateError if the runtime's library is not installed; KeyError for
        a format that is not started from files.
    """
    file = folder / FILES[name][0]
    if name == "torch":
        return TorchRuntime(Program(model))
    if name in ("onnx", "onnx-int8"):
        return OnnxRuntime(file, threads)
    if not name.startswith("openvino"):
        raise KeyError(name)
    precision = "bf16" if name.endswith("bf16") else "f32"
    return OpenVinoRuntime(file, precision, streams=streams, threads=threads)
