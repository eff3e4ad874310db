"""Whether a program runs at all: tried in a process of its own, which may crash in our stead.

Some INT8 programs write beyond their memory in OpenVINO (2026.4 does so for EdgeNeXt's, unless
its attention stays in float), and the process dies at once, later, or never but computes with
what was overwritten. Where glibc serves, its checking allocator makes such writes fatal in the
trial: mostly in float32, seldom in bfloat16, so a program must pass in both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 30
SCRIPT = """
import json, sys, numpy, openvino
path, batches, sides = sys.argv[1], *map(json.loads, sys.argv[2:])
core = openvino.Core()
able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
for batch in batches:
    images = numpy.random.default_rng(0).random((batch, *sides), dtype=numpy.float32)
    model = core.read_model(path)
    model.reshape(images.shape)
    for precision in ["f32", "f32"] + ["bf16"] * ("BF16" in able):
        program = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        program([images])
        program([images])
        del program
"""
FALSE_ALARM = b"free(): invalid next size (fast)"
"""What the checking allocator says of OpenVINO's float32 ResNet-50, too, every second time."""


def is_sound(path: Path, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 4)) -> bool:
    """Whether a process that runs an OpenVINO program in each of its precisions ends well.

    Args:
        path: of the .xml.
        shape: of an image, (C, H, W).
        batches: images a call, which the program must take.
    """
    if not sys.executable:
        return True
    asked = [str(path), json.dumps(batches), json.dumps(shape)]
    preloaded = [os.environ.get("LD_PRELOAD", ""), "libc_malloc_debug.so.0"]
    checking = {"MALLOC_CHECK_": "3", "LD_PRELOAD": " ".join(preloaded).strip()}
    for extra in [checking, {}] if sys.platform == "linux" else [{}]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, *asked],
                capture_output=True,
                timeout=SECONDS,
                env={**os.environ, **extra},
            )
        except subprocess.TimeoutExpired:
            return False
        if FALSE_ALARM not in done.stderr:
            return done.returncode == 0
    return False
