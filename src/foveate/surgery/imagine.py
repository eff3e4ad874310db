"""Images that stand for those that nobody has: noise, and what a network makes of it when asked.

Source: aac_abn_dfq (arXiv 2204.04215, section 3.2).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import NORMS
from foveate.surgery.channels.remove import evaluating
from foveate.surgery.layers import product
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected
from foveate.surgery.quant_whitepaper_qualcomm.simulate import SimulatedLayer
from foveate.vision import VisionModel

BATCH = 32
"""Images that are made together, and that a norm sees together."""

Kind = Literal["strong", "matching", "noise", "given"]
Seen = list[tuple[Tensor, Tensor, Tensor]]
"""Values of a layer, (B, C, ...), and the means and deviations that its norm knows, (C,)."""


def noise_for(
    model: nn.Module, count: int = 2, seed: int = 0, like: Tensor | None = None
) -> Tensor:
    """Noise of the size that a model says it takes, (count, channels, H, W).

    It is normal, of the mean and deviation of normalised images; the pixels of a `VisionModel`,
    which normalises them itself, are cut off at 0 and 1.

    Args:
        model: whose device and type the noise has.
        count, seed: of the images.
        like: a batch of the right size, for models that do not say it.

    Raises: FoveateError if neither says the size.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    if isinstance(model, VisionModel):
        size = model.preprocess.size
        noise = torch.randn(count, 3, size, size, generator=generator).to(weight)
        return (model.mean + model.std * noise).clamp(0, 1)
    said: Any = getattr(model, "default_cfg", None) or {}
    size = said.get("input_size") if like is None else like.shape[1:]
    if size is None:
        raise FoveateError(
            f"{type(model).__name__} does not say what size of images it takes: give some as data, "
            "whatever is on them, or make it a foveate.VisionModel"
        )
    return torch.randn(count, *size, generator=generator).to(weight)


@implements("aac_abn_dfq")
@dataclass(frozen=True, kw_only=True)
class Imagine:
    """Images that stand for those that a network learnt from.

    Args:
        kind: "strong" ones have as large a logit of a class as asked for: activations get as large
            as what they stand for makes them, which is what ranges need. "matching" ones, for
            comparison, give each batch norm the statistics that it has (ZeroQ, arXiv 2001.00281).
            "noise" is what both begin with, and "given" are the data.
        sure: probability of its class that a strong image's logit stands for; 1 for as large a
            logit as steps allow, which is far beyond what real images reach.
        count: of images; classes take turns.
        steps, rate: of Adam, the rate in deviations of the noise.
        seed: of the noise.

    Raises: FoveateError that names the field.
    """

    kind: Kind = "strong"
    sure: float = 0.9999
    count: int = 64
    steps: int = 50
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("strong", "matching", "noise", "given"):
            raise FoveateError(f"kind is {self.kind!r}: give strong, matching, noise or given")
        if not 0 < self.sure <= 1:
            raise FoveateError(f"sure is {self.sure:g}: give more than 0, at most 1")
        for name in ("count", "steps", "rate"):
            if getattr(self, name) <= 0:
                raise FoveateError(f"{name} is {getattr(self, name)}: give more than 0")

    def images(self, model: nn.Module, like: Tensor | None = None) -> list[Tensor]:
        """Make images.

        Args:
            model: gives logits (B, classes); stays as it is.
            like: a batch of the right size, if the model does not say it.

        Returns: batches.
        """
        noise = noise_for(model, self.count, self.seed, like).split(BATCH)
        with evaluating(model), _fixed(model):
            return [self._made(model, x, BATCH * i) for i, x in enumerate(noise)]

    @torch.enable_grad()
    def _made(self, model: nn.Module, x: Tensor, first: int) -> Tensor:
        if self.kind == "noise":
            return x
        rate = self.rate * x.std().item()
        x = x.clone().requires_grad_()
        adam = torch.optim.Adam([x], rate)
        turns = torch.arange(first, first + len(x), device=x.device)
        with _watched(model) as seen, torch.autograd.graph.allow_mutation_on_saved_tensors():
            for _ in range(self.steps):
                seen.clear()
                logits = model(x)
                if self.kind == "strong":
                    loss = absolute_loss(logits, turns % logits.shape[1], self.sure)
                else:
                    loss = _unlike(seen)
                (x.grad,) = torch.autograd.grad(loss, [x])
                adam.step()
                if isinstance(model, VisionModel):
                    x.data.clamp_(0, 1)
        return x.detach()


@implements("aac_abn_dfq")
def absolute_loss(logits: Tensor, classes: Tensor, sure: float = 1.0) -> Tensor:
    """How far the lead of classes over the mean of the others is from what is asked for.

    It looks at what logits are, where cross-entropy looks at what softmax makes of them.

    Args:
        logits: (B, classes).
        classes: (B,), int64.
        sure: the probability at which a lead is large enough, were all others alike; with 1 no
            lead is, and the loss is how small it is.
    """
    own = logits.gather(1, classes[:, None])[:, 0]
    others = logits.shape[1] - 1
    lead = own - (logits.sum(1) - own) / others
    if sure == 1:
        return -lead.mean()
    return (lead - math.log(others * sure / (1 - sure))).abs().mean()


def _unlike(seen: Seen) -> Tensor:
    """How far the statistics of values are from those that norms know, in their deviations."""
    if not seen:
        raise FoveateError("no batch norm tells what images should match: give kind strong")
    losses = []
    for values, mean, deviation in seen:
        found = values.transpose(0, 1).flatten(1)
        off = (found.mean(1) - mean).square() + (found.std(1) - deviation).square()
        losses.append(off.mean() / deviation.square().mean())
    return torch.stack(losses).sum()


@contextmanager
def _fixed(model: nn.Module) -> Iterator[None]:
    """No gradient goes to a model's own numbers: LeViT keeps what it computes of them, and what
    has a gradient cannot be copied."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_()


@contextmanager
def _watched(model: nn.Module) -> Iterator[Seen]:
    """A list of what comes into norms, or out of layers that have them folded in."""
    seen: Seen = []

    def norm(module: Any, args: tuple[Tensor, ...]) -> None:
        seen.append((args[0], module.running_mean, (module.running_var + module.eps).sqrt()))

    def layer(module: Any, args: tuple[Tensor, ...], known: tuple[Tensor, Tensor]) -> None:
        weight, bias = module.weight_and_bias()
        seen.append((product(args[0], weight, bias, module.geometry), *known))

    handles = []
    for module in model.modules():
        known = expected(module) if isinstance(module, SimulatedLayer) else None
        if known is not None:
            handles.append(module.register_forward_pre_hook(partial(layer, known=known)))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(norm))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
