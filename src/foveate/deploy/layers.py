"""Single layers as they run deployed: what tables of latency are measured with."""

from functools import cache

import torch
from torch import Tensor, nn

from foveate.deploy.quiet import quiet
from foveate.deploy.runtimes import OpenVinoRuntime
from foveate.errors import require
from foveate.measure import timing


def deployed_seconds(layer: nn.Module, x: Tensor) -> float:
    """Median seconds of a layer in OpenVINO on the CPU, less what a call takes by itself.

    As `latency` of `Deactivate` it has pieces measured as they will run.

    Args:
        layer: in evaluation mode.
        x: an input of it.

    Raises: FoveateError if OpenVINO is missing.
    """
    return max(_seconds(layer, x) - _call(), 1e-7)


@cache
def _call() -> float:
    """Seconds of a program that computes next to nothing."""
    return _seconds(nn.ReLU(), torch.zeros(1, 1))


def _seconds(layer: nn.Module, x: Tensor) -> float:
    openvino = require("openvino", "deploy")
    with quiet():
        model = openvino.convert_model(layer, example_input=x)
    runtime = OpenVinoRuntime(model, batch=len(x))
    images = x.float().cpu().numpy()
    return timing(lambda: runtime(images), seconds=0.05).median
