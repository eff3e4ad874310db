"""What this machine can do at most, and how near to it each layer comes.

Sources: the roofline of Williams, Waterman and Patterson (doi 10.1145/1498765.1498785);
efficiency gap and waterline of convfirst_efficiency (arXiv 2404.03617): latency is
work over (peak times efficiency), and a sequence of kernels can be no faster than
each of them under its own roof, one after the other.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foveate.catalog import implements
from foveate.measure.counting import Count, count
from foveate.measure.machine import machine

SECONDS_PER_CEILING = 0.5
MATRIX_SIDE = 1024
CONVOLUTIONS = ((256, 32, 1), (512, 32, 1), (256, 56, 3))  # channels, side, kernel
BATCH = 4
COPIED_BYTES = 1 << 28
FRESH_DAYS = 30


@dataclass(frozen=True)
class Ceilings:
    """The most that was measured on a machine at the threads in use.

    Attributes:
        flops: arithmetic operations a second in float32, of matrix products and convolutions.
        by: which of them reached it; libraries for the two differ on some processors.
        bytes: bytes a second, read and written, of a copy that no cache holds.
        threads: that torch used.
        date: when.
    """

    flops: float
    by: str
    bytes: float
    threads: int
    date: str

    @property
    def balance(self) -> float:
        """Operations a byte at which arithmetic and movement take equally long."""
        return self.flops / self.bytes

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so much arithmetic and movement."""
        return max(flops / self.flops, moved / self.bytes)


def ceilings(*, fresh: bool = False) -> Ceilings:
    """Measure the ceilings, or read them where they were measured in the last 30 days.

    They lie in the user's cache, by processor, instruction sets, threads and torch's version.

    Args:
        fresh: measure again.
    """
    facts = machine()
    path = _cache_path(facts)
    if not fresh and path.exists() and time.time() - path.stat().st_mtime < FRESH_DAYS * 86400:
        try:
            return Ceilings(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            path.unlink()
    flops, by = _most_flops()
    found = Ceilings(flops, by, _most_bytes(), torch.get_num_threads(), facts["date"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(found)))
    except OSError:
        pass  # a cache that cannot be written costs two seconds the next time
    return found


@dataclass(frozen=True)
class Placed:
    """A layer under the roof.

    Attributes:
        name, kind: as of the counted layer.
        seconds: that it took by itself.
        flops, bytes: what it did in that time.
        least: seconds that the roof allows.
        bound: what the roof is made of there, `compute` or `memory`.
    """

    name: str
    kind: str
    seconds: float
    flops: int
    bytes: int
    least: float
    bound: str

    @property
    def efficiency(self) -> float:
        """Least time over time taken: 1 is a perfect kernel."""
        return self.least / self.seconds if self.seconds else 1.0

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@implements("convfirst_efficiency")
@dataclass(frozen=True)
class Waterline:
    """A network's latency, taken apart: latency = arithmetic / (peak x efficiency).

    Attributes:
        layers: where each stands, in the order of the network.
        seconds: that the network took.
        ideal: seconds were every operation done at the peak.
        attainable: seconds were every layer a perfect kernel by itself: the waterline.
        counted: what the network does in that time.
    """

    layers: tuple[Placed, ...]
    seconds: float
    ideal: float
    attainable: float
    counted: Count

    @property
    def efficiency(self) -> float:
        """Share of the peak that was reached."""
        return self.ideal / self.seconds

    @property
    def most(self) -> float:
        """Share of the peak that perfect kernels, one a layer, would reach; fusing raises it."""
        return self.ideal / self.attainable if self.attainable else 1.0

    @property
    def gap(self) -> float:
        """Actual latency over ideal latency."""
        return self.seconds / self.ideal if self.ideal else float("inf")


def waterline(
    model: nn.Module, images: torch.Tensor, roof: Ceilings | None = None, seconds: float = 2.0
) -> Waterline:
    """Place every layer of a model under the machine's roof.

    Args:
        model: any module; its mode is restored.
        images: what it is called with.
        roof: the machine's ceilings, measured if not given.
        seconds: to time the layers for.
    """
    roof = roof or ceilings()
    counted = count(model, images)
    taken = layer_seconds(model, images, seconds)
    placed = tuple(_placed(counted, taken, roof))
    return Waterline(
        placed,
        sum(taken.values()),
        counted.flops / roof.flops,
        sum(layer.least for layer in placed),
        counted,
    )


@torch.inference_mode()
def layer_seconds(model: nn.Module, images: torch.Tensor, seconds: float = 2.0) -> dict[str, float]:
    """Median seconds that each module takes by itself, the modules inside it left out.

    Modules are timed by hooks, so what a network does between its layers counts
    as the surrounding module's.
    """
    was_training = model.training
    model.eval()
    watch = _Watch(images.is_cuda)
    handles = [h for name, m in model.named_modules() for h in watch.follow(name, m)]
    rows: list[dict[str, float]] = []
    try:
        end = float("inf")
        while len(rows) < 7 or time.perf_counter() < end:
            watch.own = {}
            model(images)
            rows.append(watch.own)
            if len(rows) == 2:
                end = time.perf_counter() + seconds
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return {name: float(np.median([row[name] for row in rows[2:]])) for name in rows[-1]}


class _Watch:
    """Adds the time between a module's start and end to it, less that of modules inside."""

    def __init__(self, cuda: bool) -> None:
        self.own: dict[str, float] = {}
        self._cuda = cuda
        self._inside: list[float] = [0.0]
        self._starts: list[float] = []

    def follow(self, name: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self._inside.append(0.0)
            self._starts.append(self._now())

        def leave(*_: Any) -> None:
            whole = self._now() - self._starts.pop()
            self.own[name] = self.own.get(name, 0.0) + whole - self._inside.pop()
            self._inside[-1] += whole

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _placed(counted: Count, taken: dict[str, float], roof: Ceilings) -> list[Placed]:
    return [
        Placed(
            name=layer.name,
            kind=layer.kind,
            seconds=taken[layer.name],
            flops=layer.flops,
            bytes=layer.bytes,
            least=roof.seconds(layer.flops, layer.bytes),
            bound="compute" if layer.flops > layer.bytes * roof.balance else "memory",
        )
        for layer in counted.layers
        if layer.name in taken
    ]


# ---------------------------------------------------------------- the ceilings


def _most_flops() -> tuple[float, str]:
    """Operations a second of the best of several layers that reuse all that they load."""
    a, b = torch.ones(2, MATRIX_SIDE, MATRIX_SIDE)
    found = [(2 * MATRIX_SIDE**3 / _fastest(lambda: torch.mm(a, b)), "matrix product")]
    for channels, side, kernel in CONVOLUTIONS:
        x = torch.ones(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = torch.ones(channels, channels, kernel, kernel)
        weight = weight.contiguous(memory_format=torch.channels_last)
        work = 2 * BATCH * (channels * kernel * (side - kernel + 1)) ** 2
        call = partial(torch.conv2d, x, weight)
        found.append((work / _fastest(call), f"convolution {kernel}x{kernel}"))
    return max(found)


def _most_bytes() -> float:
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _fastest(lambda: target.copy_(source))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call: a ceiling is what the machine can do undisturbed."""
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS_PER_CEILING
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _cache_path(facts: dict[str, Any]) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = f"{facts['processor']} {facts['cores']} {facts['threads']} {torch.__version__}"
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return Path(home, "foveate", f"ceilings-{name}.json")
