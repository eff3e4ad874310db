"""INT8 programs: OpenVINO's are calibrated by NNCF, and edited so that some layers compute in float
again; ONNX Runtime's by its own tool."""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from foveate.deploy.formats import INPUT
from foveate.deploy.integers import LAYERS
from foveate.deploy.overflow import sums_overflow
from foveate.deploy.quiet import quiet
from foveate.errors import require

CALIBRATION_IMAGES = 128
"""Images that INT8 is calibrated on, at most."""
CALIBRATION_BATCH = 16
"""NNCF takes the mean of the batches' largest values: of single images', that mostly cuts off too
much, but serves attention, where few values are far larger than all others."""
SMOOTHED = "/nncf_smooth_quant"
"""What NNCF has names end in of what scales the inputs of layers whose weights it scaled back."""
KERNELS = ("Convolution", "GroupConvolution", "MatMul")


def quantise(
    model: Any,
    images: np.ndarray,
    *,
    together: int = CALIBRATION_BATCH,
    is_transformer: bool = False,
) -> Any:
    """A float OpenVINO model in INT8, with 7 bits for weights where sums of 8 would overflow here.

    Args:
        model: left as it is.
        images: to calibrate on, float32 (N, C, H, W), as the model takes them.
        together: images a batch.
        is_transformer: keep in float what attention needs, and smooth outliers.
    """
    batches = [images[i : i + together] for i in range(0, len(images), together)]
    with quiet():
        nncf = require("nncf", "deploy")
        fix = nncf.OverflowFix.ENABLE if sums_overflow() else None
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )


def quantise_onnx(program: Path, images: np.ndarray, to: Path) -> None:
    """Write a float ONNX program in INT8 for ONNX Runtime, with 7 bits for weights where needed.

    Layers alone are quantised, and products give floats: what lies between layers, and attention's
    products of what are no weights, would lose accuracy in integers, and gain no time.

    Args:
        program: as `write_program` writes it; left as it is.
        images: to calibrate on, float32 (N, C, H, W), as the program takes them.
        to: where it goes.
    """
    require("onnxruntime", "deploy")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            parts = range(0, len(images), CALIBRATION_BATCH)
            self._rest = [images[i : i + CALIBRATION_BATCH] for i in parts]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {INPUT: self._rest.pop()} if self._rest else None

    with tempfile.TemporaryDirectory() as folder, quiet():
        ready = Path(folder, "ready.onnx")
        quant_pre_process(program, ready, skip_symbolic_shape=True)
        graph = require("onnx", "deploy").load(ready).graph
        weights = {tensor.name for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        quantize_static(
            ready,
            to,
            Batches(),
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=[node.name for node in products if not weights & {*node.input}],
            per_channel=True,
            reduce_range=sums_overflow(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )


def has_attention(model: Any) -> bool:
    """Whether an OpenVINO model computes a softmax of products anywhere."""
    kinds = {op.get_type_name() for op in model.get_ops()}
    return bool(kinds & {"Softmax", "SoftMax", "ScaledDotProductAttention"})


def quantised_layers(model: Any) -> list[str]:
    """Names of the convolutions and products whose inputs are quantised."""
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in KERNELS and any(quantisers(op))
    ]


def quantisers(op: Any) -> list[Any]:
    """What quantises each input of a layer, or None."""
    sources = [value.get_node() for value in op.input_values()]
    return [s if s.get_type_name() == "FakeQuantize" else None for s in sources]


def in_float(quantised: Any, model: Any, names: Collection[str]) -> Any:
    """A copy of a quantised model in which some layers compute as those of the float one do.

    Args:
        quantised: what `quantise` made of `model`.
        model: the float one; both are left as they are.
        names: of layers, as `quantised_layers` gives them.
    """
    edited = quantised.clone()
    own = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() in KERNELS}
    for op in edited.get_ordered_ops():
        name = op.get_friendly_name()
        if name not in names:
            continue
        for position, quantiser in enumerate(quantisers(op)):
            if quantiser is not None:
                op.input(position).replace_source_output(quantiser.input_value(0))
        taken = op.input_value(0).get_node()
        if taken.get_friendly_name().endswith(SMOOTHED):
            op.input(0).replace_source_output(taken.input_value(0))
        for position, value in enumerate(own[name].input_values()):
            if value.get_node().get_type_name() == "Constant":
                op.input(position).replace_source_output(_constant(value.get_node().get_data()))
        corrected, bias = _bias(op), _bias(own[name])
        if corrected is not None:
            values = bias.get_node().get_data() if bias is not None else 0.0
            new = _constant(np.broadcast_to(values, corrected.get_node().get_data().shape))
            for taker in corrected.get_target_inputs():
                taker.replace_source_output(new)
    edited.validate_nodes_and_infer_types()
    return edited


def _bias(op: Any) -> Any:
    """The constant output that is added to what a layer gives, or None."""
    for taker in op.output(0).get_target_inputs():
        add = taker.get_node()
        if add.get_type_name() == "Add":
            other = add.input_value(1 - taker.get_index())
            if other.get_node().get_type_name() == "Constant":
                return other
    return None


def _constant(values: np.ndarray) -> Any:
    """The output of a new constant in float32."""
    ops = require("openvino", "deploy").opset13
    return ops.constant(np.ascontiguousarray(values, np.float32)).output(0)
