"""Which layers a runtime computes in integers, read off the program that it made for itself."""

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.deploy.integers import layer_name
from foveate.errors import require

OPENVINO_KINDS = ("Convolution", "FullyConnected", "MatMul", "Gemm")
SCALED_BEHIND = "/DequantizationMultiply"
"""What OpenVINO adds to a layer's name for what turns the integers that it gives to floats."""
ONNX_KINDS = ("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger")
ONNX_KINDS += ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Executed:
    """How a program computes the quantised layers of a network.

    Attributes:
        integers, floats: names of layers.
    """

    integers: list[str]
    floats: list[str]

    @classmethod
    def of(cls, layers: Collection[str], found: Collection[str]) -> "Executed":
        """From names of layers, and of those that were found to run in integers."""
        inside = {layer_name(name) for name in found}
        return cls(
            [name for name in layers if name in inside],
            [name for name in layers if name not in inside],
        )


def by_openvino(compiled: Any) -> list[str]:
    """Names of the operations that a compiled OpenVINO model computes layers in integers for."""
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        names = facts["originalLayersNames"].split(",")
        if facts["layerType"] == "Subgraph":  # several small layers in one
            found += [name for name in names if name.endswith(SCALED_BEHIND)]
        elif facts["layerType"] in OPENVINO_KINDS and facts["primitiveType"].endswith("_I8"):
            found += names  # the kernel says it: a precision may be that of weights alone
    return found


def by_onnxruntime(path: Path) -> list[str]:
    """Names of the operations of an .onnx that ONNX Runtime computes layers in integers for."""
    runtime, onnx = require("onnxruntime", "deploy"), require("onnx", "deploy")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        made = onnx.load(options.optimized_model_filepath)
    nodes = [node for node in made.graph.node if node.op_type in ONNX_KINDS]
    return [re.sub(r"_token_\d+$", "", node.name) for node in nodes]
