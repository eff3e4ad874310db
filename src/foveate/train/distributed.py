"""Several processes that train as one would: the same losses at the same global batch.

Started by torchrun; gloo on CPUs, nccl on GPUs. Gradients are averaged over
the processes, and batch norms take their statistics over the whole batch.
(torch.nn.SyncBatchNorm does not run on CPUs.)
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls) -> "World":
        """The world that torchrun made, or a world of one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else None
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
            atexit.register(dist.destroy_process_group)
        rank = dist.get_rank() if size > 1 else 0
        return cls(rank, size, device or torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, tensor: Tensor) -> Tensor:
        """A tensor averaged over the processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def agree(self, value: float) -> float:
        """The first process's value."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return told.item()

    def tell(self, word: Any) -> Any:
        """What the first process says, on every process; the others' `word` does not matter."""
        if self.size == 1:
            return word
        said = [word]
        dist.broadcast_object_list(said, 0, device=self.device)
        return said[0]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def average_gradients(self, model: nn.Module) -> None:
        """Make every process's gradients their mean, in one exchange."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def shared_batch_norms(self, model: nn.Module) -> Iterator[None]:
        """Within, batch norms of `model` take their statistics over all processes."""
        norms = [m for m in model.modules() if type(m) in _SHARED] if self.size > 1 else []
        plain = [type(m) for m in norms]
        for norm in norms:
            norm.__class__ = _SHARED[type(norm)]
        try:
            yield
        finally:
            for norm, cls in zip(norms, plain, strict=True):
                norm.__class__ = cls


class _SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over processes; its gradient is summed likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _shared_forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of x (B, C, ...) over all processes' batches."""
    if not norm.training:
        return nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    axes = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = wide.new_full((1,), x.numel() / x.shape[1])
    total = _SumOverProcesses.apply(torch.cat([wide.sum(axes), count]))
    n = total[-1].detach()
    mean = total[:-1] / n
    centred = wide - mean.view(shape)
    variance = _SumOverProcesses.apply(centred.square().sum(axes)) / n
    if norm.track_running_stats and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1  # pyright: ignore[reportOperatorIssue]
            share = norm.momentum or 1 / float(norm.num_batches_tracked)  # pyright: ignore
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * n / (n - 1), share)  # pyright: ignore
    out = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.weight is not None:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(x.dtype)


class _SharedBatchNorm1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _shared_forward(self, input)  # pyright: ignore[reportArgumentType]


class _SharedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _shared_forward(self, input)


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
}
