"""A model in the form that it would be deployed in, at once: what edits are judged and timed by."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from foveate.deploy.formats import Program, to_openvino, write_onnx
from foveate.deploy.quiet import quiet
from foveate.deploy.runtimes import Logits, OpenVinoRuntime, TorchRuntime
from foveate.errors import FoveateError, require
from foveate.surgery.storage import StoredLayer
from foveate.vision import VisionModel

Runtime = Literal["OpenVINO", "PyTorch"]


def start_in(runtime: Runtime, model: VisionModel) -> Logits:
    """Run a model, merged, for one image at a time.

    Args:
        runtime: "OpenVINO", in integers where the model has stored grids; or "PyTorch", eager.
        model: stays as it is.

    Returns: maps float32 (1, 3, S, S) in [0, 1] to logits (1, K).
    Raises: FoveateError if OpenVINO is not installed, or does not take the model.
    """
    program = Program(model).eval()
    if runtime == "PyTorch":
        return TorchRuntime(program)
    require("openvino", "deploy")
    try:
        return OpenVinoRuntime(_with_grids(program, model) if _has_grids(model) else _lean(model))
    except FoveateError:
        raise
    except Exception as error:  # whatever an exporter says of an operation that it lacks
        first = str(error).strip().split("\n")[0]
        raise FoveateError(f"OpenVINO does not take the model ({first})") from error


def _has_grids(model: VisionModel) -> bool:
    """Whether activations are rounded, too: to grids that are constants, as runtimes want them."""
    stored = [module for module in model.modules() if isinstance(module, StoredLayer)]
    return any(layer.output_grid is not None for layer in stored)


def _with_grids(program: Program, model: VisionModel) -> Any:
    """An OpenVINO model from the graph as PyTorch exports it, where it finds integers."""
    openvino = require("openvino", "deploy")
    size = model.preprocess.size
    with quiet(), torch.no_grad():
        return openvino.convert_model(torch.export.export(program, (torch.rand(1, 3, size, size),)))


def _lean(model: VisionModel) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(model, path)
        return to_openvino(path)
