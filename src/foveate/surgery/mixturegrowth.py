"""MixtureGrowth: weights as mixtures of templates, and wider layers as new mixtures of them.

Source: mixturegrowth (arXiv 2311.04251, section 3). The authors' code has no licence.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import Chain, chains
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import geometry_of, obstacle, product

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d, nn.GroupNorm)


@implements("mixturegrowth")
@dataclass(frozen=True, kw_only=True)
class Templates(Edit):
    """Make the weight of every convolution and linear layer a mixture of templates.

    The edited model computes what the model did: the templates are random, of
    the size of the weights, and moved as little as gives the first mixtures
    these weights. The layers' first coefficients are orthonormal.

    Args:
        templates: for each layer; a bank has as many for each that shares it.
        layers_per_bank: layers of one shape, one after the other, that share a bank.
        skip: names of layers to leave as they are.
        seed: of what is random.

    Raises: FoveateError that names the field.
    """

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {
        "integers": "mixtures are learnt in floating point; make them first",
        "mixtures": "they are mixtures already",
        "chosen filters": "make the mixtures of the model without the heads",
        "masked": "mixtures have no zeros; make and fold them first, and mask then",
        "constants": "make the mixtures first, and capture the graph then",
    }

    templates: int = 2
    layers_per_bank: int = 1
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("templates", "layers_per_bank"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} is {getattr(self, name)}: give 1 or more")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        coverage, alike = [], defaultdict(list)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                why = obstacle(name, module, self.skip)
                done = why or f"a mixture of {self.templates} templates and what its bank shares"
                coverage.append(Covered(name, type(module).__name__, not why, done))
                if not why:
                    alike[tuple(module.weight.shape)].append(name)
        size = self.layers_per_bank
        banks = [
            names[i : i + size] for names in alike.values() for i in range(0, len(names), size)
        ]
        return {"banks": banks}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        generator = torch.Generator().manual_seed(self.seed)
        for names in plan["banks"]:
            layers = [(name, model.get_submodule(name)) for name in names]
            self._share(model, layers, generator)
        return model

    def _share(
        self, model: nn.Module, layers: list[tuple[str, Any]], generator: torch.Generator
    ) -> None:
        """Give layers of one shape a bank, and each its coefficients."""
        weights = torch.stack([layer.weight.detach() for _, layer in layers])
        mixing = weights.new_empty(len(layers), self.templates * len(layers), dtype=torch.float64)
        mixing = nn.init.orthogonal_(mixing, generator=generator).to(weights)
        size = (mixing.shape[1], *weights.shape[1:])
        noise = torch.randn(size, generator=generator).to(weights) * weights.std()
        short = weights - torch.tensordot(mixing, noise, 1)
        bank = Bank(noise + torch.tensordot(mixing.T, short, 1))
        for (name, layer), row in zip(layers, mixing, strict=True):
            model.set_submodule(name, MixedLayer(layer, bank, row).train(layer.training))


class Bank(nn.Module):
    """Templates that layers share: n weights of a shape, flattened to (n, ...)."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.shape = templates.shape[1:]
        self.templates = nn.Parameter(templates.flatten(1))


@implements("mixturegrowth")
class MixedLayer(nn.Module):
    """A convolution or linear layer whose weight is made of blocks, each a mixture of templates.

    Args:
        layer: what it was; its bias, strides and so on stay.
        bank: of the templates.
        coefficients: of its one block, (templates,).

    Attributes:
        blocks: rows of blocks; each is the index of its coefficients and of its bank.

    Shapes: as the layer's.
    """

    weights_as = "mixtures"

    def __init__(self, layer: Any, bank: Bank, coefficients: Tensor) -> None:
        super().__init__()
        self.banks = nn.ModuleList([bank])
        self.coefficients = nn.ParameterList([nn.Parameter(coefficients.clone())])
        self.blocks: list[list[tuple[int, int]]] = [[(0, 0)]]
        self.bias: nn.Parameter | None = layer.bias
        self.geometry = geometry_of(layer)

    @property
    def weight(self) -> Tensor:
        """The blocks' mixtures, set together."""
        rows = [torch.cat([self._mixture(*block) for block in row], 1) for row in self.blocks]
        return torch.cat(rows)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias, self.geometry)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Become a plain nn.Conv2d or nn.Linear."""
        weight, bias, training = self.weight, self.bias, self.training
        inputs = weight.shape[1] * self.geometry.get("groups", 1)
        kernel: Any = tuple(weight.shape[2:])
        make: Any = partial(nn.Conv2d, kernel_size=kernel) if kernel else nn.Linear
        plain = make(inputs, len(weight), bias=bias is not None, device="meta", **self.geometry)
        plain.weight, plain.bias = nn.Parameter(weight), bias
        self.__class__, self.__dict__ = type(plain), plain.__dict__
        self.train(training)

    def _mixture(self, coefficients: int, bank: int) -> Tensor:
        source: Any = self.banks[bank]
        return (self.coefficients[coefficients] @ source.templates).view(source.shape)


@implements("mixturegrowth")
@dataclass(frozen=True, kw_only=True)
class Grow(Edit):
    """Double the width of a model of mixtures: new blocks are new mixtures of trained templates.

    Each weight W becomes [[W, B], [C, D]], where B mixes the templates of W, and
    C and D those of D. The first layer keeps its inputs and the last its
    outputs. Norms that are widened keep what they know of the old channels.

    Args:
        coefficients: of new blocks. `orthogonal`: in the direction that earlier
            coefficients of the layer have least of; `copy`: those beside them,
            and a little noise; `random`: uniform up to `scale`; `zero`: the grown
            model computes what the model did, and with `second` the sum of both.
        scale: of `orthogonal` and `random` coefficients, or of the noise of `copy`.
        second: a model of the same architecture, trained on its own, whose
            weights become D, as the authors do; by default D is made anew.
        seed: of what is random.

    Raises: FoveateError if the model has no mixtures, or something in it
        cannot be widened.
    """

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {"constants": "it has no layers any more; grow first"}

    coefficients: Literal["orthogonal", "copy", "random", "zero"] = "orthogonal"
    scale: float = 1.0
    second: nn.Module | None = field(default=None, compare=False, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.coefficients not in ("orthogonal", "copy", "random", "zero"):
            mend = "choose orthogonal, copy, random or zero"
            raise FoveateError(f"coefficients is {self.coefficients!r}: {mend}")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = next(self.batches(data))
        found = chains(model, x, lambda module: isinstance(module, MixedLayer))
        if not found:
            return {}, []
        inside = {part for chain in found.values() for part in chain.layer.modules()}
        others = dict(self.second.named_modules()) if self.second else {}
        names, norms, coverage = [], [], []
        for name, module in model.named_modules():
            names.append(name)
            kind = type(module).__name__
            if self.second is not None and type(others.get(name)) is not type(module):
                raise FoveateError(f"the second model has no {name} of the kind {kind}")
            if name in found:
                coverage.append(Covered(name, kind, True, _done(found[name])))
            elif type(module) in NORMS:
                norms.append(name)
                coverage.append(Covered(name, kind, True, "twice the channels"))
            elif module not in inside and next(module.parameters(False), None) is not None:
                raise FoveateError(
                    f"Grow cannot widen {name or 'the model itself'}, a {kind}: it can widen "
                    "mixtures and batch norms, so grow a network of these alone"
                )
        plan = {
            "layers": [[n, found[n].first, found[n].last] for n in names if n in found],
            "norms": norms,
            "has_second": self.second is not None,
        }
        self._demand_shape(model, plan, x)
        return plan, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        others = {}
        if plan["has_second"]:  # where it is loaded, weights come later: any model of its kind
            others = dict(copy.deepcopy(self.second or model).named_modules())
        generator = torch.Generator().manual_seed(self.seed)
        for name, first, last in plan["layers"]:
            self._widen(model.get_submodule(name), first, last, others.get(name), generator)
        for name in plan["norms"]:
            _widen_norm(model.get_submodule(name), others.get(name))
        return model

    def _demand_shape(self, model: nn.Module, plan: Plan, x: Tensor) -> None:
        """Raises: FoveateError if the grown model does not run, or has other outputs."""
        grown = self.rebuild(copy.deepcopy(model), plan)
        if _output_shape(grown, x) != _output_shape(model, x):
            raise FoveateError("the grown model's output has another shape: Grow does not suit it")

    @torch.no_grad()
    def _widen(
        self, layer: Any, first: bool, last: bool, other: Any, generator: torch.Generator
    ) -> None:
        old, bias = layer.blocks, layer.bias
        height, width = len(old), len(old[0])
        grouped = layer.geometry.get("groups", 1) > 1
        rows = height * (1 if last else 2)
        columns = width * (1 if first or grouped else 2)
        shift = offset = 0
        if other is not None:
            shift, offset = len(layer.coefficients), len(layer.banks)
            layer.coefficients.extend(other.coefficients)
            layer.banks.extend(other.banks)
        layer.blocks = [[(-1, -1)] * columns for _ in range(rows)]
        for i, j in _in_order(rows, columns, height, width):
            down, right = i >= height, j >= width
            index, bank = old[i % height][j % width]
            across = (down or rows == height) and (right or columns == width)
            if other is not None and (down or (right and across)):
                index, bank = other.blocks[i % height][j % width]
                index, bank = index + shift, bank + offset
            if (down or right) and not (across and other is not None):
                layer.coefficients.append(self._new(layer, index, generator))
                index = len(layer.coefficients) - 1
            layer.blocks[i][j] = (index, bank)
        if bias is not None:
            more = torch.zeros_like(bias) if other is None else other.bias
            layer.bias = nn.Parameter(bias + more if last else torch.cat((bias, more)))
        if grouped:
            layer.geometry = {**layer.geometry, "groups": 2 * layer.geometry["groups"]}

    def _new(self, layer: MixedLayer, beside: int, generator: torch.Generator) -> nn.Parameter:
        """Coefficients of a new block next to one whose coefficients have this index."""
        known = layer.coefficients[beside].detach()
        uniform = torch.rand(known.shape, generator=generator).to(known)
        if self.coefficients == "zero":
            return nn.Parameter(torch.zeros_like(known))
        if self.coefficients == "copy":
            return nn.Parameter(known + self.scale * uniform / uniform.norm())
        if self.coefficients == "random":
            return nn.Parameter(self.scale * uniform)
        earlier = [c.detach() for c in layer.coefficients if c.shape == known.shape]
        direction = torch.linalg.svd(torch.stack(earlier)).Vh[-1]
        sign = direction[direction.abs().argmax()].sign()
        return nn.Parameter(self.scale * sign * direction)


def _in_order(rows: int, columns: int, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Places of blocks: old ones, those across from them, right of them, and below them."""
    for down, right in ((False, False), (True, True), (False, True), (True, False)):
        for i in range(height, rows) if down else range(height):
            for j in range(width, columns) if right else range(width):
                yield i, j


def _done(chain: Chain) -> str:
    kept = [part for part, is_so in (("inputs", chain.first), ("outputs", chain.last)) if is_so]
    return f"twice as wide, but for its {' and '.join(kept)}" if kept else "twice as wide"


@torch.no_grad()
def _widen_norm(norm: Any, other: Any) -> None:
    """Twice the channels; the new ones are as `other` has them, or as at the beginning."""
    fresh = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in fresh.items():
        old = getattr(norm, name, None)
        if old is not None:
            new = torch.full_like(old, value) if other is None else getattr(other, name)
            wide = torch.cat((old, new)).detach()
            setattr(norm, name, nn.Parameter(wide) if isinstance(old, nn.Parameter) else wide)
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups, norm.num_channels = 2 * norm.num_groups, 2 * norm.num_channels
    else:
        norm.num_features *= 2


@torch.no_grad()
def _output_shape(model: nn.Module, x: Tensor) -> torch.Size:
    was_training = model.training
    try:
        return model.eval()(x).shape
    except RuntimeError as error:
        raise FoveateError(
            f"the grown model does not run ({error}): Grow does not suit it"
        ) from error
    finally:
        model.train(was_training)
