"""The ways of running a network: which there are, how each is called, and starting one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.deploy.overflow import sums_overflow
from foveate.deploy.runtimes import Logits, OnnxRuntime, OpenVinoRuntime, computes_bfloat16

Way = tuple[str, str]
"""A runtime and a precision."""

WAYS: tuple[Way, ...] = (
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("onnxruntime", "float32"),
    ("torch", "float32"),
    ("openvino", "int8"),
    ("openvino", "int8-bfloat16"),
    ("onnxruntime", "int8"),
)


def promising() -> list[Way]:
    """The ways that may be the fastest on this processor.

    With VNNI OpenVINO's integers were faster than ONNX Runtime's in all of ten networks; without
    it, where OpenVINO gains nothing by products of tokens in integers, either may be.
    """
    ways = [way for way in WAYS if "bfloat16" not in way[1] or computes_bfloat16()]
    return [way for way in ways if way != ("onnxruntime", "int8") or sums_overflow()]


@dataclass(frozen=True)
class Candidate:
    """One way of running a network, and how it did.

    Attributes:
        graph: `maps` (merged, channels first), `merged`, `plain` as it came, or `hard`: the first
            of `maps` and `merged` that is proven, with hard-swish for GELU and SiLU.
        runtime: `torch`, `onnxruntime` or `openvino`.
        precision: `float32`, `bfloat16`, `int8`, or `int8-bfloat16` where what is
            not quantised computes in bfloat16.
        streams: parts of a batch that are computed at the same time.
        threads: how many compute; 0 for all.
        tight: ranges were read image by image, so that what few images reach is cut off.
        gentle: what attention needs stays in float.
        floats: layers of an INT8 program that compute in float.
        integers: how many layers that were quantised before this program really computes in
            integers; `precision` is what the others compute in.
        score: points of accuracy.
        error: largest error of the logits, against the largest logit.
        milliseconds: a batch; its bounds are `low` and `high`, where it raced (`measure.race`).
        why: why it may not be chosen, or "".
    """

    graph: str
    runtime: str
    precision: str
    streams: int = 1
    threads: int = 0
    tight: bool = False
    gentle: bool = False
    floats: tuple[str, ...] = ()
    score: float = 0.0
    error: float = 0.0
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    integers: int = 0

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Candidate":
        """From what `asdict` and JSON made of one."""
        return cls(**{**row, "floats": tuple(row["floats"])})

    @property
    def name(self) -> str:
        parts = [f"{self.runtime} {self.precision}"]
        if self.tight:
            parts.append("tight ranges")
        if self.gentle:
            parts.append("attention in float")
        if self.floats:
            parts.append(f"{len(self.floats)} layers in float")
        if self.integers:
            parts.append(f"{self.integers} layers in integers")
        if self.streams > 1:
            parts.append(f"{self.streams} streams")
        if self.threads:
            parts.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        return ", ".join([*parts, f"{self.graph} graph"])

    @property
    def way(self) -> Way:
        return self.runtime, self.precision

    @property
    def is_quantised(self) -> bool:
        return "int8" in self.precision

    @property
    def program(self) -> str:
        """Name of the file that it runs; PyTorch runs from memory."""
        if self.runtime == "torch":
            return ""
        if not self.is_quantised:
            return f"{self.graph}.onnx"
        if self.runtime == "onnxruntime":
            return f"{self.graph}-integers.onnx"
        ranges = "-gentle" if self.gentle else "-tight" if self.tight else ""
        floats = f"-{len(self.floats)}-floats" if self.floats else ""
        return f"{self.graph}{ranges}{floats}-int8.xml"


def start_candidate(row: Candidate, path: Path, batch: int) -> Logits:
    """Run the program of a candidate. Raises: FoveateError if its library is missing.

    Args:
        path: its file.
        batch: images that most calls bring.
    """
    if row.runtime == "onnxruntime":
        return OnnxRuntime(path, row.threads)
    precision = "bf16" if "bfloat16" in row.precision else "f32"
    return OpenVinoRuntime(path, precision, batch=batch, streams=row.streams, threads=row.threads)
