"""Quantised networks as ONNX and OpenVINO models whose layers runtimes compute in integers.

Grids become QuantizeLinear and DequantizeLinear around plain layers, and weights' codes a
DequantizeLinear of int8: of these, runtimes make integer layers where they can. Codes that fit
4 bits lie two in a byte in the file. The weight of a layer that takes what is on no grid is
plain arithmetic with its codes, which ONNX Runtime computes once, when it loads the file.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from foveate.errors import require
from foveate.surgery.exported import CODES
from foveate.surgery.storage import pack as two_in_a_byte

OPSET = 21
"""The first with 4 bits; GELU is one operation since 20."""
LAYERS = ("Conv", "Gemm", "MatMul")
WEIGHT_MOVES = ("Reshape", "Slice", "Transpose")


def translations() -> dict[Any, Callable[..., Any]]:
    """What torch.onnx.export makes of the operations of `surgery.exported`."""
    onnx: Any = require("onnxscript", "deploy").opset21

    def on_grid(x: Any, scale: Any, zero: Any, low: int, high: int) -> Any:
        points = onnx.QuantizeLinear(x, scale, zero)
        if (low, high) not in ((0, 255), (-128, 127)):
            ends = (onnx.CastLike(onnx.Constant(value_int=end), zero) for end in (low, high))
            points = onnx.Clip(points, *ends)
        return onnx.DequantizeLinear(points, scale, zero)

    def from_codes(codes: Any, scale: Any, zero: Any) -> Any:
        return onnx.DequantizeLinear(codes, scale, zero, axis=0)

    own = torch.ops.foveate
    return {own.on_grid.default: on_grid, own.from_codes.default: from_codes}


# ---------------------------------------------------------------- ONNX


def finish(model: Any) -> None:
    """Write grids and codes of a translated onnx_ir model, in place, as runtimes take them best.

    Layers get the names that the network has them by.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in model.graph:
        if node.op_type in ("Relu", "Clip", "DequantizeLinear"):
            _drop_idle(node)
    named: set[str] = set()
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and (node.inputs[0].name or "").endswith(CODES):
            _finish_weight(model.graph, node, named)
    RemoveUnusedNodesPass()(model)


def layer_name(node_name: str) -> str:
    """The network's name of a layer, from what a node of it is called in a finished model, or by
    OpenVINO, which calls parts of it such as `conv1/WithoutBiases`."""
    return re.split("[:/]", node_name)[0]


@dataclass(frozen=True)
class _Grid:
    """What a DequantizeLinear of activations rounds, and the grid."""

    rounded: Any
    scale: float
    zero: int
    low: int
    high: int

    @classmethod
    def of(cls, value: Any) -> "_Grid | None":
        """The grid that a value lies on, or None."""
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear" or node.inputs[0].is_initializer():
            return None
        scale, zero = (part.const_value.numpy() for part in node.inputs[1:])
        ends, made = np.iinfo(zero.dtype), node.inputs[0].producer()
        low, high = ends.min, ends.max
        if made.op_type == "Clip":
            low, high = (int(part.const_value.numpy()) for part in made.inputs[1:])
            made = made.inputs[0].producer()
        return cls(made.inputs[0], float(scale), int(zero), low, high)

    def ends(self) -> tuple[float, float]:
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale


def _drop_idle(node: Any) -> None:
    """Leave out an activation or a grid that changes nothing of what is on a grid already."""
    own, taken = _Grid.of(node.outputs[0]), node.inputs[0]
    if own is not None:
        taken = own.rounded
    grid = _Grid.of(taken) if taken is not None else None
    if grid is None or node.outputs[0].is_graph_output():
        return
    if own is not None:
        idle = replace(own, rounded=None) == replace(grid, rounded=None)
    else:
        ends = [part.const_value for part in node.inputs[1:] if part is not None]
        low, high = [0.0, np.inf] if node.op_type == "Relu" else [float(e.numpy()) for e in ends]
        lowest, highest = grid.ends()
        idle = low <= lowest and highest <= high * (1 + 1e-6)
    if idle:
        node.outputs[0].replace_all_uses_with(taken)


def _finish_weight(graph: Any, node: Any, named: set[str]) -> None:
    """Write the weight that a DequantizeLinear makes as its layer needs it, and name the layer."""
    from onnx_ir import DataType

    codes, scale, zero = node.inputs
    layer = _layer(node)
    if layer is not None:
        name = codes.name.removesuffix(CODES)
        layer.name = f"{name}:{len(named)}" if name in named else name
        named.add(layer.name)
    zeros = zero.const_value.numpy()
    if layer is not None and _Grid.of(layer.inputs[0]) is not None:
        stored = _stored(graph, codes)
        if stored is not codes:
            stored = _insert(graph, node, "Cast", [stored], to=codes.dtype)
        grid = [scale]
        if zeros.any() or layer.op_type != "Conv":
            # ONNX Runtime wants them there; OpenVINO wants none that two kinds of layers share
            grid.append(_constant(graph, f"{codes.name}.zero", zeros))
        weight = _insert(graph, node, "DequantizeLinear", [stored, *grid], axis=0)
    else:
        numbers = [_insert(graph, node, "Cast", [_stored(graph, codes)], to=DataType.FLOAT)]
        sides = (-1, *[1] * (len(codes.shape) - 1)) if zeros.ndim else ()
        if zeros.any():
            zeros = zeros.reshape(sides).astype(np.float32)
            numbers.append(_constant(graph, f"{codes.name}.zero", zeros))
            numbers = [_insert(graph, node, "Sub", numbers)]
        steps = scale.const_value.numpy().reshape(sides)
        numbers.append(_constant(graph, f"{codes.name}.scale", steps))
        weight = _insert(graph, node, "Mul", numbers)
    node.outputs[0].replace_all_uses_with(weight)


def _stored(graph: Any, codes: Any) -> Any:
    """Codes, in 4 bits if they fit."""
    small = _in_four_bits(codes.const_value.numpy())
    return codes if small is None else _constant(graph, f"{codes.name}.packed", small)


def _layer(node: Any) -> Any:
    """The layer that takes a weight, or None."""
    uses = [use.node for use in node.outputs[0].uses()]
    while len(uses) == 1 and uses[0].op_type in WEIGHT_MOVES:
        uses = [use.node for use in uses[0].outputs[0].uses()]
    return uses[0] if len(uses) == 1 and uses[0].op_type in LAYERS else None


def _in_four_bits(codes: np.ndarray) -> np.ndarray | None:
    """Integers in a type of 4 bits, or None where they don't fit."""
    import ml_dtypes

    low, high = (0, 15) if codes.dtype == np.uint8 else (-8, 7)
    if codes.min() < low or codes.max() > high:
        return None
    return codes.astype(ml_dtypes.int4 if low else ml_dtypes.uint4)


def _constant(graph: Any, name: str, values: np.ndarray) -> Any:
    """A new constant of a graph, or the one of that name."""
    import onnx_ir

    if name not in graph.initializers:
        tensor = onnx_ir.Tensor(values, name=name)
        kind = onnx_ir.TensorType(tensor.dtype)
        made = onnx_ir.Value(name=name, const_value=tensor, type=kind, shape=tensor.shape)
        graph.register_initializer(made)
    return graph.initializers[name]


def _insert(graph: Any, before: Any, kind: str, inputs: list[Any], **attributes: Any) -> Any:
    """A new operation's output."""
    import onnx_ir

    made = onnx_ir.node(kind, inputs, attributes)
    graph.insert_before(before, made)
    return made.outputs[0]


# ---------------------------------------------------------------- OpenVINO


def pack(model: Any) -> None:
    """Store codes of 4 bits of an OpenVINO model, in place, two in a byte.

    They become int8, around zero, when the model is compiled, and so integer layers.
    """
    openvino = require("openvino", "deploy")
    for convert in model.get_ordered_ops():
        if convert.get_type_name() == "Convert":
            codes, kinds = convert.input_value(0), (openvino.Type.i8, openvino.Type.u8)
            is_constant = codes.get_node().get_type_name() == "Constant"
            if is_constant and codes.get_element_type() in kinds and len(codes.get_shape()) > 1:
                _pack_one(convert, codes.get_node().get_data())


def _pack_one(convert: Any, codes: np.ndarray) -> None:
    ops = require("openvino", "deploy").opset13
    if _in_four_bits(codes) is None:
        return
    centred = ops.convert(_constant_of_four_bits(codes), "i8")
    last = convert
    if codes.dtype == np.uint8 and (found := _zeros_taken_off(convert)) is not None:
        last, zeros = found
        centred = ops.subtract(centred, ops.constant(zeros.astype(np.int8)))
    numbers = ops.convert(centred, "f32").output(0)
    for taker in last.output(0).get_target_inputs():
        taker.replace_source_output(numbers)


def _zeros_taken_off(convert: Any) -> tuple[Any, np.ndarray] | None:
    """The operation that alone takes converted codes and subtracts their zeros, and the zeros."""
    takers = [taker.get_node() for taker in convert.output(0).get_target_inputs()]
    if len(takers) != 1 or takers[0].get_type_name() != "Subtract":
        return None
    zeros = takers[0].input_value(1).get_node()
    if zeros.get_type_name() == "Convert":
        zeros = zeros.input_value(0).get_node()
    return (takers[0], zeros.get_data()) if zeros.get_type_name() == "Constant" else None


def _constant_of_four_bits(codes: np.ndarray) -> Any:
    openvino = require("openvino", "deploy")
    kind = openvino.Type.u4 if codes.dtype == np.uint8 else openvino.Type.i4
    tensor = openvino.Tensor(kind, openvino.Shape(codes.shape))
    tensor.data[:] = two_in_a_byte(torch.from_numpy(codes.astype(np.uint8) & 15)).numpy()
    return openvino.op.Constant(tensor, shared_memory=False)
