"""Writing a model as the programs that runtimes take.

Every program takes float32 RGB images in [0, 1] as `images` (B, 3, S, S) and
normalises them itself.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import require
from foveate.ops.merge import is_mergeable, merge
from foveate.vision import VisionModel

OPSET = 18
CALIBRATION_IMAGES = 300


class Program(nn.Module):
    """The part of a VisionModel that is exported: images in [0, 1] of the right size to logits.

    Args:
        model: it is not changed.
        merged: fold what only training needed, where the backbone has such parts.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: VisionModel, merged: bool = False) -> None:
        super().__init__()
        self.backbone = model.backbone
        if merged and is_mergeable(model.backbone):
            self.backbone = merge(copy.deepcopy(model.backbone))
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone((images - self.mean) / self.std)


def write_torch(model: VisionModel, path: Path) -> torch.export.ExportedProgram:
    """A torch.export program with a dynamic batch."""
    size = model.preprocess.size
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet():
        program = torch.export.export(
            Program(model, merged=True).eval(),
            (torch.rand(2, 3, size, size),),
            dynamic_shapes={"images": {0: batch}},
        )
        torch.export.save(program, path)
    return program


def write_onnx(model: VisionModel, path: Path) -> None:
    """An ONNX model with a dynamic batch, checked by ONNX itself. Raises: FoveateError."""
    onnx = require("onnx", "deploy")
    require("onnxscript", "deploy")
    size = model.preprocess.size
    with _quiet():
        torch.onnx.export(
            Program(model, merged=True).eval(),
            (torch.rand(2, 3, size, size),),
            path,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        onnx.checker.check_model(str(path))


def to_openvino(onnx_path: Path) -> Any:
    """An OpenVINO model of an ONNX one."""
    openvino = require("openvino", "deploy")
    with _quiet():
        return openvino.convert_model(onnx_path)


def write_openvino(onnx_path: Path, path: Path) -> Any:
    """An OpenVINO model in float32."""
    openvino = require("openvino", "deploy")
    model = to_openvino(onnx_path)
    openvino.save_model(model, path, compress_to_fp16=False)
    return model


def write_int8(model: Any, images: np.ndarray, path: Path) -> None:
    """An OpenVINO model quantised to INT8.

    Args:
        model: the float OpenVINO model; left as it is.
        images: training images to calibrate on, float32 (N, 3, S, S) in [0, 1].
        path: of the .xml to write.
    """
    openvino = require("openvino", "deploy")
    with _quiet():
        nncf = require("nncf", "deploy")
        data = nncf.Dataset([image[None] for image in images])
        quantised = nncf.quantize(model.clone(), data, subset_size=len(images))
    openvino.save_model(quantised, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters' notes off the terminal; their errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
