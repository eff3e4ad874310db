"""Compile the kernels when Foveate is built.

The compiler is Zig's, which comes as a Python package into the build's own
environment: whoever installs from source needs none, and whoever installs a
wheel gets the libraries in it. Where there is no Zig, or it fails, Foveate is
built without kernels and computes everything with PyTorch.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = (Path("src/foveate/ops/kernels/native"), Path("src/foveate/data/native"))
LEVELS = {"x86-64-v4": ("x86_64_v4", 16), "x86-64-v3": ("x86_64_v3", 8)}
"""For each instruction set its name in Zig, and how many floats a register holds."""
FLAGS = (
    *("-target", "x86_64-linux-gnu.2.17", "-O3", "-fPIC", "-shared", "-s"),
    *("-Wall", "-Wextra", "-Wno-unused-function"),
    *("-fwrapv", "-ffp-contract=fast", "-fno-math-errno", "-mprefer-vector-width=512"),
)


class Kernels(BuildHookInterface):
    """Put a library for each instruction set beside the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return
        try:
            for source in SOURCES:
                compile_folder(Path(self.root, source))
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            self.app.display_warning(
                f"the kernels could not be compiled ({error}): Foveate will use PyTorch's"
            )
            return
        build_data["artifacts"] += [f"{source}/*.so" for source in SOURCES]
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-manylinux_2_17_x86_64"


def compile_folder(folder: Path) -> None:
    """Write the libraries of a folder that are missing or older than a source."""
    newest = max(path.stat().st_mtime for path in (*folder.glob("*.[ch]"), Path(__file__)))
    for level in LEVELS:
        library = folder / f"{level}.so"
        if not library.exists() or library.stat().st_mtime < newest:
            compile_library(folder, level, library)


def compile_library(folder: Path, level: str, library: Path) -> None:
    """Write one library; it replaces an older one at once, which may be in use."""
    import ziglang

    processor, lanes = LEVELS[level]
    with tempfile.TemporaryDirectory() as cache:
        draft = library.with_suffix(".draft")
        subprocess.run(
            [
                str(Path(ziglang.__file__).with_name("zig")),
                *("cc", *FLAGS, f"-mcpu={processor}", f"-DLANES={lanes}", "-o", str(draft)),
                *map(str, sorted(folder.glob("*.c"))),
            ],
            check=True,
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache},
        )
        draft.replace(library)
