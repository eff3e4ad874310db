"""Which layers of an INT8 program must compute in float so that it is accurate enough.

The program is compiled once more with a switch in front of every quantised layer, so
that another choice of layers costs a pass and no compilation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from foveate.deploy.quantise import quantised_layers, quantisers
from foveate.errors import require

SENSITIVITY_IMAGES = 8
"""Images that layers' sensitivity is measured on."""


def fallbacks(
    quantised: Any,
    images: np.ndarray,
    expected: np.ndarray,
    keeps: Callable[[np.ndarray], bool],
    left: Callable[[], float],
) -> Iterator[list[str]]:
    """Choices of layers that seem to keep a guard, the fewest first: try each for good.

    A layer's sensitivity is how much of the error in the logits goes when it alone
    takes its inputs in float. The most sensitive one returns to float, then 2, 4, 8, ...

    Args:
        quantised: an INT8 OpenVINO model; left as it is.
        images: float32 (N, C, H, W).
        expected: logits (N, K) of the float model.
        keeps: whether logits (N, K) are good enough.
        left: seconds that may still be spent; when half of them went into
            sensitivities, layers not yet measured count as insensitive.
    """
    names = quantised_layers(quantised)
    if not names:
        return
    switched = Switched(quantised, names, images.shape[1:])
    some, wanted = images[:SENSITIVITY_IMAGES], expected[:SENSITIVITY_IMAGES]
    half = left() / 2
    errors: dict[str, float] = {}
    for name in names:
        if left() < half:
            break
        errors[name] = float(np.square(switched(some, [name]) - wanted).mean())
    ranked = sorted(errors, key=lambda name: errors[name])
    counts = [2**i for i in range(len(ranked).bit_length())]
    for count in dict.fromkeys([*counts, len(ranked)]):
        if count and left() > 0 and keeps(switched(images, ranked[:count])):
            yield ranked[:count]


class Switched:
    """An INT8 model whose layers take their inputs quantised or in float, as each call says.

    Weights and corrected biases stay as they were quantised.

    Args:
        quantised: left as it is.
        names: layers that can be switched.
        shape: of an image, (C, H, W).
    """

    def __init__(self, quantised: Any, names: list[str], shape: tuple[int, ...]) -> None:
        openvino = require("openvino", "deploy")
        ops = openvino.opset13
        model = quantised.clone()
        gates = ops.parameter([len(names)], np.float32)
        each = dict(zip(names, ops.split(gates, 0, len(names)).outputs(), strict=True))
        for op in model.get_ordered_ops():
            gate = each.get(op.get_friendly_name())
            for position, quantiser in enumerate(quantisers(op) if gate else []):
                if quantiser is None or _is_weight(quantiser):
                    continue
                whole = quantiser.input_value(0)
                lost = ops.subtract(quantiser, whole)
                mixed = ops.add(whole, ops.multiply(lost, gate))
                op.input(position).replace_source_output(mixed.output(0))
        model.add_parameters([gates])
        model.reshape({0: [SENSITIVITY_IMAGES, *shape], 1: [len(names)]})
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self._names = names
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def __call__(self, images: np.ndarray, floats: list[str]) -> np.ndarray:
        """Logits (N, K) of images (N, C, H, W) with some layers' inputs in float."""
        gates = np.array([name not in floats for name in self._names], np.float32)
        size = SENSITIVITY_IMAGES
        rows = []
        for i in range(0, len(images), size):
            part = images[i : i + size]
            whole = part if len(part) == size else np.resize(part, (size, *part.shape[1:]))
            rows.append(np.array(self._compiled([whole, gates])[0])[: len(part)])
        return np.concatenate(rows)


def _is_weight(quantiser: Any) -> bool:
    return quantiser.input_value(0).get_node().get_type_name() == "Constant"
