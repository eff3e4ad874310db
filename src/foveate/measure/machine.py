"""What machine a figure was measured on."""

import os
import platform
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

EXTENSIONS = {
    "AMX": {"amx_int8", "amx_bf16"},
    "AVX-512": {"avx512f"},
    "AVX2": {"avx2"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "SVE": {"sve"},
    "dot products": {"asimddp"},
}
"""Instruction sets that decide how fast networks run, and the flags by which Linux names them."""
PACKAGES = ("foveate", "torch", "torchvision", "timm", "openvino", "onnxruntime", "nncf", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, threads in use, memory in GiB, system, versions and date, JSON-ready.

    The processor is named with its instruction sets where Linux tells them, since machines that
    are rented often say no more of it than its maker.
    """
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(facts: dict[str, Any], packages: Collection[str] = ("torch",)) -> str:
    """What `machine` gave in a line: processor, threads, versions of some packages, and the day."""
    threads, versions = facts["threads"], facts["versions"]
    return ", ".join(
        [
            facts["processor"],
            "1 thread" if threads == 1 else f"{threads} threads",
            *(f"{name} {versions[name]}" for name in packages if name in versions),
            facts["date"][:10],
        ]
    )


def instruction_sets() -> list[str]:
    """Those of `EXTENSIONS` that the processor has, as far as Linux tells them."""
    return _sets(_told())


def processor(told: str) -> str:
    """A processor's name and instruction sets, from what Linux tells of it in `/proc/cpuinfo`."""
    name, sets = _said(told).get("model name", platform.machine()), _sets(told)
    return f"{name} ({', '.join(sets)})" if sets else name


def _processor() -> str:
    told = _told()
    return processor(told) if told else platform.processor() or platform.machine()


def _told() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _said(told: str) -> dict[str, str]:
    parts = (line.partition(":") for line in told.splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def _sets(told: str) -> list[str]:
    said = _said(told)
    flags = {*said.get("flags", "").split(), *said.get("Features", "").split()}
    return [name for name, names in EXTENSIONS.items() if names & flags]


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
