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

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"images": np.ascontiguousarray(images)})[0]


class OpenVinoRuntime:
    """OpenVINO on the CPU, tuned for the latency of single images.

    Args:
        model: path of an .xml, or a model in memory.
        precision: what floats are computed in, `f32` or `bf16`.
    """

    def __init__(self, model: Any, precision: str = "f32") -> None:
        openvino = require("openvino", "deploy")
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        core = openvino.Core()
        if isinstance(model, Path):
            model = core.read_model(model)
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        outputs = self._request.infer([np.ascontiguousarray(images)])
        return np.array(outputs[0])


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
