"""Whether a program runs at all: tried in a process of its own, which may crash in our stead.

Some INT8 programs write beyond their memory in OpenVINO (2026.4 does so where products of
attention are quantised and the rest computes in float32, as EdgeNeXt's), and the process dies at
once, later, or never but computes with what was overwritten. Where glibc serves, its checking
allocator makes most such writes fatal in the trial.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 60
SCRIPT = """
import json, sys, numpy, openvino
path, precision, batches, sides = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
core = openvino.Core()
for batch in batches:
    model = core.read_model(path)
    model.reshape([batch, *sides])
    program = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    images = numpy.random.default_rng(0).random((batch, *sides), dtype=numpy.float32)
    for _ in range(3):
        program(images)
"""
FALSE_ALARM = b"free(): invalid next size (fast)"
"""What the checking allocator says of OpenVINO's float32 ResNet-50, too, every second time."""


def is_sound(
    path: Path, precision: str, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 4)
) -> bool:
    """Whether a process that runs an OpenVINO program ends well.

    Args:
        path: of the .xml.
        precision: what floats are computed in, `f32` or `bf16`.
        shape: of an image, (C, H, W).
        batches: images a call, which the program must take.
    """
    if not sys.executable:
        return True
    asked = [str(path), precision, json.dumps(batches), json.dumps(shape)]
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
