"""INT8 programs for OpenVINO, and which layers must return to float so that a guard is kept."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foveate.deploy.quiet import quiet
from foveate.errors import require

KERNELS = ("Convolution", "GroupConvolution", "MatMul")
SENSITIVITY_IMAGES = 16
"""Images that layers' sensitivity is measured on."""

Score = Callable[[Any], bool]
"""Whether an OpenVINO model keeps the guard."""


def quantise(
    model: Any, images: np.ndarray, *, is_transformer: bool = False, floats: Sequence[str] = ()
) -> Any:
    """A float OpenVINO model in INT8, calibrated by NNCF.

    Args:
        model: left as it is.
        images: to calibrate on, float32 (N, C, H, W), as the model takes them.
        is_transformer: keep in float what attention needs, and smooth outliers.
        floats: names of layers to leave in float.
    """
    with quiet():
        nncf = require("nncf", "deploy")
        kind = nncf.ModelType.TRANSFORMER if is_transformer else None
        data = nncf.Dataset([image[None] for image in images])
        ignored = nncf.IgnoredScope(names=list(floats)) if floats else None
        return nncf.quantize(
            model.clone(),
            data,
            subset_size=len(images),
            model_type=kind,
            ignored_scope=ignored,
        )


def has_attention(model: Any) -> bool:
    """Whether an OpenVINO model computes a softmax of products anywhere."""
    kinds = {op.get_type_name() for op in model.get_ops()}
    return bool(kinds & {"Softmax", "SoftMax", "ScaledDotProductAttention"})


def with_fallback(
    quantised: Any,
    again: Callable[[list[str]], Any],
    images: np.ndarray,
    expected: np.ndarray,
    keeps: Score,
    *,
    seconds: float = 60,
) -> tuple[Any, list[str]] | None:
    """Return as few layers as possible to float, the most sensitive first, until a guard is kept.

    A layer's sensitivity is how much of the error in the logits goes when it
    alone computes in float. One layer returns, then 2, 4, 8, ... while time lasts.

    Args:
        quantised: as `quantise` gives it; left as it is.
        again: quantises the same model with some layers in float.
        images: float32 (N, C, H, W).
        expected: logits (N, K) of the float model.
        keeps: whether a model is good enough.
        seconds: for all of it; when half is spent, layers not yet measured count as insensitive.

    Returns: the model and names of the float layers; None if no such model was found.
    """
    start = time.perf_counter()
    some, wanted = images[:SENSITIVITY_IMAGES], expected[:SENSITIVITY_IMAGES]
    errors: dict[str, float] = {}
    for name in quantised_layers(quantised):
        if time.perf_counter() - start > seconds / 2:
            break
        given = run(in_float(quantised, [name]), some)
        errors[name] = float(np.square(given - wanted).mean())
    ranked = sorted(errors, key=lambda name: errors[name])
    count = 1
    while count <= len(ranked) and time.perf_counter() - start < seconds:
        model = again(ranked[:count])
        if keeps(model):
            return model, ranked[:count]
        count *= 2
    return None


def quantised_layers(model: Any) -> list[str]:
    """Names of the convolutions and products whose inputs are quantised."""
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in KERNELS and any(_quantisers(op))
    ]


def in_float(model: Any, names: list[str]) -> Any:
    """A copy of a quantised model in which some layers compute in float.

    Their biases stay as corrected for INT8: good for comparing layers, not for use.
    """
    edited = model.clone()
    for op in edited.get_ordered_ops():
        if op.get_friendly_name() in names:
            for position, quantiser in enumerate(_quantisers(op)):
                if quantiser is not None:
                    op.input(position).replace_source_output(quantiser.input_value(0))
    edited.validate_nodes_and_infer_types()
    return edited


def _quantisers(op: Any) -> list[Any]:
    """What quantises each input of a layer, or None."""
    sources = [value.get_node() for value in op.input_values()]
    return [s if s.get_type_name() == "FakeQuantize" else None for s in sources]


def run(model: Any, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Logits (N, K) of images (N, C, H, W), in float32 where the model is not quantised."""
    openvino = require("openvino", "deploy")
    batch = min(batch, len(images))
    fixed = model.clone()
    fixed.reshape([batch, *images.shape[1:]])
    compiled = openvino.Core().compile_model(fixed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = []
    for i in range(0, len(images), batch):
        start = min(i, len(images) - batch)  # the last part begins early, to be as long
        rows.append(np.array(compiled(images[start : start + batch])[0])[i - start :])
    return np.concatenate(rows)
