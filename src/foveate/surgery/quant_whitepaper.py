"""Quantisation to 8 bits and fewer: calibrated, trained with, and run in integers.

This is the arithmetic spelled out, to study and to train with. What Foveate
exports as INT8 is quantised by NNCF and run by OpenVINO, which is what is fast.

Source: quant_whitepaper (arXiv 1806.08342, sections 2 and 3); the integer
arithmetic is that of Jacob et al. 2018 (arXiv 1712.05877, section 2).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import Chain, chains, cover, lift_norm, link_of
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.exported import ExportedLayer
from foveate.surgery.integers import (
    REFUSED,
    Grid,
    Grids,
    IntegerLayer,
    Range,
    fake_quantise,
    quantise,
    symmetric_grid,
)
from foveate.surgery.layers import geometry_of, on_channels, product


@implements("quant_whitepaper")
@dataclass(frozen=True, kw_only=True)
class Quantise(Edit):
    """Quantise weights and activations of every convolution and linear layer.

    Batch norms and ReLUs that follow a layer are folded into it; what else the
    model does stays in floating point, between values that lie on 8-bit grids.
    In training mode the edited model computes with fake quantisation, and
    gradients pass straight through it; in evaluation mode its layers compute in
    integers. `foveate.ops.merge.merge` leaves the integers only.

    Args:
        weight_bits, activation_bits: 2 to 8 each.
        per_channel: a scale for every output channel's weights, or one a layer.
        decay: of the moving averages of the batches' smallest and largest
            activations; None takes the extremes of all batches. The average
            over the first batches is a plain one.
        gemmlowp: requantise in gemmlowp's two roundings. TFLite's single one
            does what fake quantisation does.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError that names the field, or the layer of `skip` that is not there.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True
    decay: float | None = 0.99
    gemmlowp: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            if not 2 <= getattr(self, field) <= 8:
                raise FoveateError(f"{field} is {getattr(self, field)}: give 2 to 8")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise FoveateError(f"decay is {self.decay}: give 0 or more and less than 1, or None")

    refuses = REFUSED

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        found = chains(model, next(self.batches(data)))
        coverage = cover(model, found, self.skip, _done)
        wanted = {line.name for line in coverage if line.changed}
        links = [link_of(chain) for chain in found.values() if chain.name in wanted]
        return {"layers": links}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        done: dict[str, QuantisedLayer] = {}
        for link in plan["layers"]:
            layer: Any = model.get_submodule(link["name"])
            source = done[link["source"]].output if link["source"] in done else None
            norm, top = lift_norm(model, link["norm"]), link["top"]
            top = None if top is None else float(top)
            quantised = QuantisedLayer(layer, norm, top, source, self)
            done[link["name"]] = quantised.train(layer.training)
            model.set_submodule(link["name"], quantised)
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        self._calibrate(model, data)

    @torch.no_grad()
    def _calibrate(self, model: nn.Module, data: Images) -> None:
        was_training = model.training
        model.eval()
        layers = [m for m in model.modules() if isinstance(m, QuantisedLayer)]
        for layer in layers:
            layer.calibrating = True
        for batch in self.batches(data):
            model(batch)
        for layer in layers:
            layer.calibrating = False
        model.train(was_training)


def _done(chain: Chain) -> str:
    folded = [f"with {chain.norm} folded in"] if chain.norm else []
    folded += ["with its ReLU"] if chain.top else []
    return " ".join(["quantised", *folded])


@implements("quant_whitepaper")
class QuantisedLayer(nn.Module):
    """A convolution or linear layer, its batch norm and its ReLU, quantised as one.

    While training, the norm's scale is folded into the weights before they are
    quantised, with the long-term deviation, which does not jitter; until
    `frozen`, the output is then corrected to what batch statistics would have
    made of it, so that the norm trains as ever.

    Args:
        layer: an nn.Conv2d or nn.Linear.
        norm: the batch norm behind it, or None.
        top: where the ReLU behind that cuts off, or None if there is none.
        source: the range whose grid the input lies on already, or None.
        how: bits, scales and ranges.

    Attributes:
        frozen: whether the norm's statistics and the ranges stay as they are.

    Shapes: as the layer's.
    """

    weights_as = "integers"

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        norm: Any,
        top: float | None,
        source: Range | None,
        how: Quantise,
    ) -> None:
        super().__init__()
        self.layer: Any = layer
        self.norm: Any = norm
        self.top, self.how = top, how
        self.output: Any = Range(how.activation_bits, how.decay)
        self.input: Any = None if source else Range(how.activation_bits, how.decay)
        self._input = (source or self.input,)
        self.levels = 2 ** (how.weight_bits - 1) - 1
        self.calibrating = self.frozen = False
        self.merged: IntegerLayer | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return self.merged(x)
        if not (self.training or self.calibrating):
            return self.integers()(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.layer.weight.dtype)
            if self.input is not None and not self.frozen:
                self.input.observe(x)
            if self.calibrating:
                y = self._product(x, *self._weight_and_bias())
            else:
                y = self._fake(x if self.input is None else self.input.fake(x))
            if self.top is not None:
                y = y.clamp(0, self.top)
            if not self.frozen:
                self.output.observe(y)
            return y if self.calibrating else self.output.fake(y)

    def integers(self) -> "IntegerLayer":
        """The layer in integers, as its weights and ranges are now."""
        weight, bias = self._weight_and_bias()
        grid, bits = self._weight_grid(weight), self.how.activation_bits
        grids = Grids(self._source.grid(), grid, self.output.grid(), bits)
        on_grid = quantise(weight, grid, -self.levels, self.levels)
        return IntegerLayer(geometry_of(self.layer), on_grid, bias, grids, self.how.gemmlowp)

    def exported(self) -> ExportedLayer:
        """The layer as runtimes know it."""
        return (self.merged or self.integers()).exported()

    def merge_branches(self) -> None:
        """Keep the integers only."""
        if self.merged is None:
            self.merged = self.integers()
            self.layer = self.norm = self.input = self.output = None
            self._input = (None,)

    # ---------------------------------------------------------------- how it is done

    @property
    def _source(self) -> Range:
        source = self._input[0]
        assert source is not None
        return source

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return product(x, weight, bias, geometry_of(self.layer))

    def _fake(self, x: Tensor) -> Tensor:
        if self.norm is not None and not self.frozen:
            return self._fake_with_batch_statistics(x)
        weight, bias = self._weight_and_bias()
        steps = self._weight_grid(weight)[0] * self._source.grid()[0]
        on_grid = (bias / steps).round() * steps
        return self._product(x, self._fake_weight(weight), bias + (on_grid - bias).detach())

    def _fake_with_batch_statistics(self, x: Tensor) -> Tensor:
        plain = self._product(x, self.layer.weight)
        axes = [d for d in range(plain.ndim) if d != 1]
        variance, mean = torch.var_mean(plain, axes, correction=0)
        self._remember(mean, variance, plain.numel() / plain.shape[1])
        weight, _ = self._weight_and_bias()
        batch = (variance + self.norm.eps).sqrt()
        correction = (self.norm.running_var + self.norm.eps).sqrt() / batch
        scale, shift = _affine(self.norm)
        y = self._product(x, self._fake_weight(weight)) * on_channels(correction, weight)
        return y + on_channels(shift - scale * mean / batch, weight)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Update the norm's running statistics as the norm itself would."""
        norm = self.norm
        norm.num_batches_tracked += 1
        share = norm.momentum
        if share is None:
            share = 1 / float(norm.num_batches_tracked)
        bias = 0 if self.layer.bias is None else self.layer.bias
        norm.running_mean.lerp_((mean + bias).to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(
            (variance * count / max(count - 1, 1)).to(norm.running_var.dtype), share
        )

    def _weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Of the layer with the norm's long-term statistics folded in."""
        weight = self.layer.weight
        bias = weight.new_zeros(len(weight)) if self.layer.bias is None else self.layer.bias
        if self.norm is None:
            return weight, bias
        scale, shift = _affine(self.norm)
        scale = scale / (self.norm.running_var + self.norm.eps).sqrt()
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        return weight, shift + (bias - self.norm.running_mean) * scale

    def _weight_grid(self, weight: Tensor) -> Grid:
        return symmetric_grid(weight, self.how.weight_bits, self.how.per_channel)

    def _fake_weight(self, weight: Tensor) -> Tensor:
        return fake_quantise(weight, self._weight_grid(weight), -self.levels, self.levels)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """A norm's scale and shift, which it may lack."""
    ones = torch.ones_like(norm.running_mean)
    scale = ones if norm.weight is None else norm.weight
    return scale, 0 * ones if norm.bias is None else norm.bias
