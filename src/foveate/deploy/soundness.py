"""Whether a program runs at all: tried in a process of its own, which may crash in our stead.

Some INT8 programs write beyond OpenVINO's memory (seen with cross-covariance attention
quantised beside float32), and the process dies at once or later.
"""

import subprocess
import sys
from pathlib import Path

SECONDS = 120
IMAGES = 4
SCRIPT = """
import sys, numpy, openvino
path, precision, shape = sys.argv[1], sys.argv[2], [int(side) for side in sys.argv[3:]]
core = openvino.Core()
model = core.read_model(path)
model.reshape(shape)
program = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
images = numpy.random.default_rng(0).random(shape, dtype=numpy.float32)
for _ in range(3):
    program(images)
"""


def is_sound(path: Path, precision: str, shape: tuple[int, ...]) -> bool:
    """Whether a process that runs an OpenVINO program ends well.

    Args:
        path: of the .xml.
        precision: what floats are computed in, `f32` or `bf16`.
        shape: of an image, (C, H, W).
    """
    if not sys.executable:
        return True
    sides = [str(side) for side in (IMAGES, *shape)]
    command = [sys.executable, "-c", SCRIPT, str(path), precision, *sides]
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False
