"""Quantised networks as ONNX and OpenVINO models whose layers runtimes compute in integers.

Grids become QuantizeLinear and DequantizeLinear around plain layers, and weights' codes a
DequantizeLinear of int8: of these, runtimes make integer layers where they can. Codes that fit
4 bits lie two in a byte in the file. The weight of a layer that takes what is on no grid is
plain arithmetic with its codes, which ONNX Runtime computes once, when it loads the file.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from foveate.errors import require
from foveate.surgery.exported import CODES
from foveate.surgery.storage import pack as two_in_a_byte

OPSET = 21
"""The first with 4 bits."""
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
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    for node in nodes:
        if not node.inputs[0].is_initializer():
            _drop_repeated(node)
    named: set[str] = set()
    for node in nodes:
        if (node.inputs[0].name or "").endswith(CODES):
            _finish_weight(model.graph, node, named)


def layer_name(node_name: str) -> str:
    """The network's name of a layer, from what a node of it is called in a finished model, or by
    OpenVINO, which calls parts of it such as `conv1/WithoutBiases`."""
    return re.split("[:/]", node_name)[0]


def _drop_repeated(node: Any) -> None:
    """Leave out a grid that stands on the same grid."""
    taken = _grid(node)
    if taken is None:
        return
    before = taken[0].producer()
    if before is None or before.op_type != "DequantizeLinear" or before.inputs[0].is_initializer():
        return
    given = _grid(before)
    if given and all(np.array_equal(a, b) for a, b in zip(taken[1], given[1], strict=True)):
        node.outputs[0].replace_all_uses_with(before.outputs[0])


def _grid(node: Any) -> tuple[Any, list[np.ndarray]] | None:
    """What a DequantizeLinear's grid is put around, and all numbers that the grid has."""
    numbers = [value.const_value.numpy() for value in node.inputs[1:]]
    made = node.inputs[0].producer()
    if made is not None and made.op_type == "Clip":
        numbers += [value.const_value.numpy() for value in made.inputs[1:]]
        made = made.inputs[0].producer()
    if made is None or made.op_type != "QuantizeLinear":
        return None
    return made.inputs[0], numbers


def _finish_weight(graph: Any, node: Any, named: set[str]) -> None:
    """Write the weight that a DequantizeLinear makes as its layer needs it, and name the layer."""
    from onnx_ir import DataType

    codes, layer = node.inputs[0], _layer(node)
    if layer is not None:
        name = codes.name.removesuffix(CODES)
        layer.name = f"{name}:{len(named)}" if name in named else name
        named.add(layer.name)
    values, scale, zero = (value.const_value.numpy() for value in node.inputs)
    small = _in_four_bits(values)
    stored = codes if small is None else _constant(graph, f"{codes.name}.packed", small)
    if layer is not None and _comes_from_grid(layer.inputs[0]):
        if small is not None:
            node.replace_input_with(0, _insert(graph, node, "Cast", [stored], to=codes.dtype))
    else:
        sides = (-1, *[1] * (values.ndim - 1)) if scale.ndim else ()
        weight = _insert(graph, node, "Cast", [stored], to=DataType.FLOAT)
        for kind, numbers in (("Sub", zero), ("Mul", scale)):
            if numbers.any():
                numbers = numbers.astype(np.float32).reshape(sides)
                other = _constant(graph, f"{codes.name}.{kind.lower()}", numbers)
                weight = _insert(graph, node, kind, [weight, other])
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
    if not codes.uses():
        graph.initializers.pop(codes.name)


def _layer(node: Any) -> Any:
    """The layer that takes a weight, or None."""
    uses = [use.node for use in node.outputs[0].uses()]
    while len(uses) == 1 and uses[0].op_type in WEIGHT_MOVES:
        uses = [use.node for use in uses[0].outputs[0].uses()]
    return uses[0] if len(uses) == 1 and uses[0].op_type in LAYERS else None


def _comes_from_grid(value: Any) -> bool:
    made = value.producer()
    return made is not None and made.op_type == "DequantizeLinear"


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
    for convert in model.get_ordered_ops():
        if convert.get_type_name() == "Convert":
            codes = convert.input_value(0).get_node()
            if codes.get_type_name() == "Constant" and len(codes.output(0).shape) > 1:
                _pack_one(convert, codes.get_data())


def _pack_one(convert: Any, codes: np.ndarray) -> None:
    ops = require("openvino", "deploy").opset13
    if codes.dtype not in (np.int8, np.uint8) or _in_four_bits(codes) is None:
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
