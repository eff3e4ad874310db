"""A model in the form that it would be deployed in, at once: what edits are judged and timed by."""

import tempfile
from pathlib import Path
from typing import Literal

from foveate.deploy.formats import Program, to_openvino, write_onnx
from foveate.deploy.runtimes import Logits, OpenVinoRuntime, TorchRuntime
from foveate.errors import FoveateError, require
from foveate.vision import VisionModel

Runtime = Literal["OpenVINO", "PyTorch"]


def start_in(runtime: Runtime, model: VisionModel) -> Logits:
    """Run a model, merged, for one image at a time.

    Args:
        runtime: "OpenVINO", in integers where the model has them; or "PyTorch", eager.
        model: stays as it is.

    Returns: maps float32 (1, 3, S, S) in [0, 1] to logits (1, K).
    Raises: FoveateError if OpenVINO is not installed, or does not take the model.
    """
    if runtime == "PyTorch":
        return TorchRuntime(Program(model).eval())
    require("openvino", "deploy")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            write_onnx(model, path)
            return OpenVinoRuntime(to_openvino(path))
    except FoveateError:
        raise
    except Exception as error:  # whatever an exporter says of an operation that it lacks
        first = str(error).strip().split("\n")[0]
        raise FoveateError(f"OpenVINO does not take the model ({first})") from error
