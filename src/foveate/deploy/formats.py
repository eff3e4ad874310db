"""Writing a model as the programs that runtimes take.

Every program takes float32 RGB images in [0, 1] as `images` (B, 3, S, S) and
normalises them itself.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.deploy import integers
from foveate.deploy.quiet import quiet
from foveate.errors import FoveateError, require
from foveate.ops.merge import is_mergeable, merge
from foveate.surgery.exported import exportable, is_exported
from foveate.surgery.lean import lean
from foveate.vision import VisionModel

INPUT = "images"
"""What programs call what they take."""


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
    with quiet():
        program = torch.export.export(
            Program(model, merged=True).eval(),
            (torch.rand(2, 3, size, size),),
            dynamic_shapes={"images": {0: batch}},
        )
        torch.export.save(program, path)
    return program


def write_onnx(model: VisionModel, path: Path) -> None:
    """An ONNX model in its leanest form, with a dynamic batch. Raises: FoveateError."""
    size = model.preprocess.size
    images = torch.rand(2, 3, size, size)
    write_program(leanest(exportable(Program(model)), images), images, path)


def leanest(program: nn.Module, images: Tensor) -> nn.Module:
    """The leanest form of a network; where its graph cannot be captured, with merged branches."""
    try:
        return lean(program, images)[0]
    except FoveateError:
        return merge(copy.deepcopy(program))


def write_program(program: nn.Module, images: Tensor, path: Path) -> None:
    """Any network as an ONNX model with a dynamic batch, checked by ONNX itself.

    Args:
        program: in evaluation mode; it takes `images` alone. Its quantised layers are written
            as integers where they are as `surgery.exported` makes them.
        images: a batch of two or more.

    Raises: FoveateError if a library is missing.
    """
    onnx = require("onnx", "deploy")
    require("onnxscript", "deploy")
    passes = require("onnx_ir.passes.common", "deploy")
    on_grids = is_exported(program)
    with quiet():
        made = torch.onnx.export(
            program,
            (images[:2],),
            opset_version=integers.OPSET,
            input_names=[INPUT],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            dynamo=True,
            verbose=False,
            optimize=False,
            custom_translation_table=integers.translations() if on_grids else None,
        )
        assert made is not None
        passes.NameFixPass()(made.model)  # a buffer may be called as what an operation gives
        made.optimize()
        if on_grids:
            integers.finish(made.model)
        _forget_origins(made.model)
        made.save(path)
        onnx.checker.check_model(str(path))


def _forget_origins(model: Any) -> None:
    """Take out of an onnx_ir model from which lines of Python it came, which is much."""
    for node in model.graph:
        for part in (node, *node.outputs):
            part.metadata_props.clear()


def to_openvino(onnx_path: Path) -> Any:
    """An OpenVINO model of an ONNX one."""
    openvino = require("openvino", "deploy")
    with quiet():
        model = openvino.convert_model(onnx_path)
        integers.pack(model)
    return model


def save_openvino(model: Any, path: Path) -> None:
    """Write an OpenVINO model as .xml and .bin, its weights as they are."""
    require("openvino", "deploy").save_model(model, path, compress_to_fp16=False)
