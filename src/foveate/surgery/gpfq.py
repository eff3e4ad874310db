"""Greedy path following: weights rounded one after the other, each making up for those before it.

Source: gpfq (arXiv 2201.11113, sections 2 and 5).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.columns import by_group
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.quant_whitepaper_qualcomm.inputs import inputs_of
from foveate.surgery.quant_whitepaper_qualcomm.simulate import cover_called_once, simulated

Threshold = Literal["soft", "hard"]


@implements("gpfq")
@dataclass(frozen=True, kw_only=True)
class FollowPath(Edit):
    """Round the weights of a simulated model along the path of what they add up to.

    Each weight of an output is rounded so that the sum up to it, with inputs as the rounded layers
    before make them, stays nearest to the sum that it was, with inputs as these were. Nothing is
    learnt; the relative error of a layer falls with its width. Weights come to lie on their grids,
    which `Simulate` has chosen; 2 bits are the paper's ternary alphabet. Convolutions are unfolded.

    Args:
        places: of the maps of an image that are looked at, at most.
        threshold: makes weights zero where what is to be rounded is at most `beyond`; "soft"
            draws the rest towards zero by as much, "hard" leaves it.
        beyond: in steps of the grid; 0 without a threshold.
        seed: of the places.

    Raises: FoveateError that names the field.
    """

    places: int = 16
    threshold: Threshold | None = None
    beyond: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.places < 1:
            raise FoveateError(f"places is {self.places}: give 1 or more")
        if self.threshold not in (None, "soft", "hard"):
            raise FoveateError(f"threshold is {self.threshold!r}: give soft, hard or None")
        if (self.beyond > 0) != (self.threshold is not None) or self.beyond < 0:
            raise FoveateError(
                f"beyond is {self.beyond:g}: give more than 0 with a threshold, and 0 without"
            )

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        return cover_called_once(
            self, model, next(self.batches(data)), "rounded along the path of its sums"
        )

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        for name in plan["layers"]:
            layer = simulated(model)[name]
            inputs = inputs_of(model, layer, self.batches(data), self.places, self.seed)
            (scale, zero), lowest, highest = layer.weight_grid.grid()
            weight = by_group(layer.plain_weight, layer.geometry)
            scale, zero = (
                part.expand(len(layer.weight)).view(len(weight), -1) for part in (scale, zero)
            )
            alphabet = Alphabet(scale, lowest - zero, highest - zero, self.threshold, self.beyond)
            q = follow(weight, inputs.plain, inputs.rounded, alphabet)
            layer.weight.copy_(q.view_as(layer.weight))


@dataclass(frozen=True)
class Alphabet:
    """The numbers that weights may become: multiples of a step.

    Attributes:
        step: (groups, outputs), or whatever it is broadcast with.
        low, high: the smallest and the largest multiple.
        threshold, beyond: as `FollowPath` has them.
    """

    step: Tensor
    low: Tensor
    high: Tensor
    threshold: Threshold | None = None
    beyond: float = 0.0

    def nearest(self, x: Tensor) -> Tensor:
        """The letter nearest to each number, once the threshold is passed."""
        x = x / self.step
        if self.threshold:
            rest = (x.abs() - self.beyond).clamp(min=0)
            x = torch.where(rest > 0, rest if self.threshold == "soft" else x.abs(), 0) * x.sign()
        return x.round().clamp(self.low, self.high) * self.step


def follow(weight: Tensor, plain: Tensor, rounded: Tensor, alphabet: Alphabet) -> Tensor:
    """Round weights one after the other, from products of inputs alone.

    What `follow_slowly` keeps as a vector for each output enters it only in products with
    inputs; so these are summed over all places once, and places may be as many as there are.

    Args:
        weight: (groups, outputs, N).
        plain, rounded: inputs (groups, places, N).
        alphabet: of the results.
    """
    w, x, r = weight.double(), plain.double(), rounded.double()
    with_plain, with_rounded = r.mT @ x, r.mT @ r
    q = torch.zeros_like(w)
    for t in range(w.shape[2]):
        size = with_rounded[:, t, t, None]
        ahead = w[..., : t + 1] @ with_plain[:, t, : t + 1, None]
        behind = q[..., :t] @ with_rounded[:, t, :t, None]
        wanted = torch.where(size > 0, (ahead - behind)[..., 0] / size, w[..., t])
        q[..., t] = alphabet.nearest(wanted)
    return q.to(weight.dtype)


def follow_slowly(weight: Tensor, plain: Tensor, rounded: Tensor, alphabet: Alphabet) -> Tensor:
    """The same as the paper writes it: u is what the path has gone astray, (groups, places,
    outputs), and each weight takes back what it can."""
    q, u = torch.zeros_like(weight), plain.new_zeros(*plain.shape[:2], weight.shape[1])
    for t in range(weight.shape[2]):
        x, r = plain[:, :, t, None], rounded[:, :, t, None]
        u = u + x * weight[:, None, :, t]
        size = r.square().sum(1)
        wanted = torch.where(size > 0, (r * u).sum(1) / size, weight[..., t])
        q[..., t] = alphabet.nearest(wanted)
        u = u - r * q[:, None, :, t]
    return q
