"""Running an exported model: one small class a runtime.

Each maps float32 images (B, 3, S, S) in [0, 1] to logits float32 (B, K).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.deploy.formats import Program
from foveate.errors import require
from foveate.vision import VisionModel

KEPT_BATCHES = 3
"""Sizes of batches that programs are kept for, besides the usual one."""

Logits = Callable[[np.ndarray], np.ndarray]


class TorchRuntime:
    """PyTorch, eager, channels_last."""

    def __init__(self, model: VisionModel) -> None:
        self._program = Program(model, merged=True).eval().to(memory_format=torch.channels_last)  # pyright: ignore

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(images).to(memory_format=torch.channels_last)
        return self._program(batch).numpy()


class ExportRuntime:
    """A torch.export program."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.module()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._module(torch.from_numpy(images)).numpy()


class OnnxRuntime:
    """ONNX Runtime on the CPU; its threads rest between runs, so as not to slow others down."""

    def __init__(self, path: Path) -> None:
        runtime = require("onnxruntime", "deploy")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]


class OpenVinoRuntime:
    """OpenVINO on the CPU, compiled for each size of batch that comes, the last few kept.

    Args:
        model: path of an .xml or .onnx, or a model in memory.
        precision: what floats are computed in, `f32` or `bf16`.
        batch: images that most calls bring; compiled for at once.
        streams: parts of such a batch that are computed at the same time.
    """

    def __init__(
        self, model: Any, precision: str = "f32", *, batch: int = 1, streams: int = 1
    ) -> None:
        openvino = require("openvino", "deploy")
        self._core = openvino.Core()
        self._model = self._core.read_model(model) if isinstance(model, Path) else model
        self._options = {"INFERENCE_PRECISION_HINT": precision}
        self._batch = batch
        self._streams = streams if batch % streams == 0 else 1
        self._requests = {batch: self._compile(batch, self._streams)}

    def _compile(self, batch: int, streams: int = 1) -> list[Any]:
        """As many requests as streams, which share the images of a batch."""
        model = self._model.clone()
        shape = model.input(0).get_partial_shape()
        shape[0] = batch // streams
        model.reshape(shape)
        hint = {"NUM_STREAMS": streams} if streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}
        compiled = self._core.compile_model(model, "CPU", {**self._options, **hint})
        return [compiled.create_infer_request() for _ in range(streams)]

    def _of(self, batch: int) -> list[Any]:
        if batch not in self._requests:
            if len(self._requests) > KEPT_BATCHES:
                self._requests.pop(next(size for size in self._requests if size != self._batch))
            self._requests[batch] = self._compile(batch)
        return self._requests[batch]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images)
        requests = self._of(len(images))
        if len(requests) == 1:
            return np.array(requests[0].infer([images], share_inputs=True)[0])
        for request, part in zip(requests, np.split(images, len(requests)), strict=True):
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    openvino = require("openvino", "deploy")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


FILES: dict[str, tuple[str, ...]] = {
    "torch": ("model.safetensors",),
    "torch.export": ("model.pt2",),
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "openvino-bf16": ("model.xml", "model.bin"),
    "openvino-int8": ("model-int8.xml", "model-int8.bin"),
}
"""The files of each format in an artifact."""


def start(name: str, folder: Path, model: VisionModel) -> Logits:
    """The runtime of a format in an artifact's folder.

    `torch.export` programs are not started from files: reading one may unpickle.

    Raises: FoveateError if the runtime's library is not installed; KeyError for
        a format that is not started from files.
    """
    makers: dict[str, Callable[[], Logits]] = {
        "torch": lambda: TorchRuntime(model),
        "onnx": lambda: OnnxRuntime(folder / "model.onnx"),
        "openvino": lambda: OpenVinoRuntime(folder / "model.xml"),
        "openvino-bf16": lambda: OpenVinoRuntime(folder / "model.xml", "bf16"),
        "openvino-int8": lambda: OpenVinoRuntime(folder / "model-int8.xml"),
    }
    return makers[name]()
