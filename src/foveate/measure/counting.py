"""Parameters, arithmetic, activations and memory, counted where the work is dispatched."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.measure.formulas import Cost, cost, tensors


@dataclass
class Layer:
    """What one module costs by itself, the modules inside it left out.

    Attributes:
        name: as `named_modules` has it; "" is the network itself.
        kind: the module's class.
        params: numbers in its own parameters, each counted where it is met first.
        macs: multiply-adds of matrix products and convolutions.
        flops: arithmetic operations; a multiply-add is two.
        activations: numbers that its products and convolutions put out.
        bytes: read and written by its operations, were nothing cached.
        calls: how often it was called.
    """

    name: str
    kind: str
    params: int = 0
    macs: int = 0
    flops: int = 0
    activations: int = 0
    bytes: int = 0
    calls: int = 0


@dataclass(frozen=True)
class Count:
    """What one forward pass costs, in total and by layer.

    Attributes:
        params, macs, flops, activations, bytes: as of a `Layer`, of all of them.
        peak_bytes: most bytes of activations that were alive at once, the
            input included and the parameters left out.
        layers: every module that does something itself, in the order of the network.
        uncounted: operations whose arithmetic is not known, and their calls.
            With any, `macs` and `flops` are lower bounds.
    """

    params: int
    macs: int
    flops: int
    activations: int
    bytes: int
    peak_bytes: int
    layers: tuple[Layer, ...] = ()
    uncounted: dict[str, int] = field(default_factory=dict)

    @property
    def is_lower_bound(self) -> bool:
        """Whether something could not be counted."""
        return bool(self.uncounted)

    def below(self, prefix: str) -> Layer:
        """The sum over a module and all inside it, as a Layer of that name."""
        inside = [x for x in self.layers if x.name == prefix or x.name.startswith(f"{prefix}.")]
        total = Layer(prefix, "")
        for layer in inside if prefix else self.layers:
            for name in ("params", "macs", "flops", "activations", "bytes"):
                setattr(total, name, getattr(total, name) + getattr(layer, name))
        return total


@torch.inference_mode(False)  # operations would reach the counter whole, under other names
@torch.no_grad()
def count(model: nn.Module, *inputs: Any) -> Count:
    """Count what a model does with its input.

    Args:
        model: any module; its mode is restored.
        inputs: what it is called with.
    """
    was_training = model.training
    model.eval()
    layers = _layers(model)
    counter = _Counter(layers, tensors(inputs))
    with _without_fused_attention(), _told_of_modules(model, counter), counter:
        model(*inputs)
    model.train(was_training)
    own = tuple(layer for layer in layers.values() if layer.calls or layer.params)
    return Count(
        params=sum(layer.params for layer in own),
        macs=sum(layer.macs for layer in own),
        flops=sum(layer.flops for layer in own),
        activations=sum(layer.activations for layer in own),
        bytes=sum(layer.bytes for layer in own),
        peak_bytes=counter.peak,
        layers=own,
        uncounted=dict(counter.uncounted),
    )


@dataclass(frozen=True)
class Spread:
    """How a count differs from image to image: what the model did with each, int64 (N,)."""

    macs: np.ndarray

    @property
    def median(self) -> float:
        """Half of the images cost no more."""
        return float(np.median(self.macs))

    def quantile(self, share: float) -> float:
        """What a share of the images does not exceed."""
        return float(np.quantile(self.macs, share))


def count_each(model: nn.Module, images: Iterable[Tensor]) -> Spread:
    """Count a model whose work follows its input, image by image.

    Args:
        images: each (C, H, W).
    """
    return Spread(np.array([count(model, image[None]).macs for image in images]))


# ---------------------------------------------------------------- how it is done


class _Counter(TorchDispatchMode):
    """Adds each operation to the module that is running."""

    def __init__(self, layers: dict[str, Layer], inputs: Iterator[Tensor]) -> None:
        super().__init__()
        self.layers = layers
        self.running = [""]
        self.uncounted: Counter[str] = Counter()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in inputs:
            self._keep(tensor)
        self._look_at_memory()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found: Cost | None = cost(func, args, kwargs, out)
        if found is None:
            self.uncounted[str(func.overloadpacket)] += 1
            found = 0, 0
        layer = self.layers[self.running[-1]]
        layer.macs += found[0]
        layer.flops += found[1]
        results = list(tensors(out))
        if found[0] and results:
            layer.activations += results[0].numel()
        if not func.is_view:
            moved = {id(t): t for t in (*tensors(args), *tensors(kwargs), *results)}
            layer.bytes += sum(t.numel() * t.element_size() for t in moved.values())
            for tensor in results:
                self._keep(tensor)
            self._look_at_memory()
        return out

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def _look_at_memory(self) -> None:
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def _layers(model: nn.Module) -> dict[str, Layer]:
    """A layer for every module, with its own parameters."""
    seen: set[int] = set()
    layers = {}
    for name, module in model.named_modules():
        layer = Layer(name, type(module).__name__)
        for parameter in module.parameters(recurse=False):
            layer.params += parameter.numel() * (id(parameter) not in seen)
            seen.add(id(parameter))
        layers[name] = layer
    return layers


@contextmanager
def _told_of_modules(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Within, the counter knows which module is running."""

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            counter.running.append(name)
            counter.layers[name].calls += 1

        return hook

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        counter.running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Within, torch's transformer layers go through operations that can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
