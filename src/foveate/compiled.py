"""The libraries that are compiled when Foveate is built, and which of them this machine runs.

Their sources lie in folders named `native` beside the code that calls them. Each
is compiled once for each level of instruction sets, and loaded through ctypes,
which lets other threads run meanwhile; a user needs no compiler. Whatever they
do is done without them too, in more time.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""The level for each capability that PyTorch finds in a processor."""
VARIABLE = "FOVEATE_KERNELS"
"""Environment variable: `off` leaves the libraries out, the name of a level insists on it."""


@cache
def level() -> str:
    """The level of instruction sets that is used, or nothing where there is none."""
    from torch.backends.cpu import get_cpu_capability

    wanted = os.environ.get(VARIABLE)
    if wanted:
        return "" if wanted == "off" else wanted
    return LEVELS.get(get_cpu_capability(), "")


@cache
def library(folder: Path) -> ctypes.CDLL | None:
    """The library of a folder at this machine's level, or None where there is none.

    Args:
        folder: holds the sources, and the libraries where they have been compiled.
    """
    path = folder / f"{level()}.so"
    return ctypes.CDLL(str(path)) if path.is_file() else None


def forget() -> None:
    """Look again, after the environment variable has changed."""
    level.cache_clear()
    library.cache_clear()
