"""Masks: which weights of a network are held at zero.

A mask is a buffer beside its weight, on the very layer: so layers stay what they are, a
forward pass costs what it did, and what is saved has the masks. Where a mask is False
its weight is zero, and the training loop sees to that after every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import matches

PRUNED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.RNNBase, nn.MultiheadAttention)
SUFFIX = "_mask"


@dataclass(frozen=True)
class Weight:
    """A weight that can be masked: a parameter of some module.

    Attributes:
        module: whose it is.
        own: its name there, such as `weight` or `weight_hh_l0`.
    """

    module: nn.Module
    own: str

    @property
    def value(self) -> nn.Parameter:
        """The parameter."""
        return self.module.get_parameter(self.own)

    @property
    def mask(self) -> Tensor:
        """Bool, of the parameter's shape; True where the weight is free."""
        return self.module.get_buffer(self.own + SUFFIX)

    @property
    def is_masked(self) -> bool:
        """Whether it has a mask, if only one that holds nothing."""
        return self.own + SUFFIX in self.module._buffers

    @property
    def sparsity(self) -> float:
        """Share of the weights that the mask holds, in [0, 1]."""
        return 1 - self.mask.count_nonzero().item() / self.mask.numel()

    def give_mask(self) -> None:
        """Give it a mask that holds nothing; one that it has stays."""
        vars(self.module)["weights_as"] = "masked"
        if not self.is_masked:
            free = torch.ones_like(self.value, dtype=torch.bool)
            self.module.register_buffer(self.own + SUFFIX, free)

    @torch.no_grad()
    def set(self, mask: Tensor) -> None:
        """Hold other weights than before: bool, of the parameter's shape."""
        self.mask.copy_(mask)
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Make the weights zero that the mask holds."""
        self.value.masked_fill_(~self.mask, 0)


def weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight that can be masked, by name as `named_parameters` has it.

    These are the matrices and kernels of convolutions, of linear and recurrent layers and of
    attention; one that several layers share counts once.
    """
    found, seen = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, PRUNED):
            for own, parameter in module.named_parameters(recurse=False):
                if "weight" in own and parameter.ndim > 1 and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{name}.{own}".lstrip(".")] = Weight(module, own)
    return found


def masked(model: nn.Module) -> dict[str, Weight]:
    """The weights that have a mask, by name."""
    return {name: weight for name, weight in weights(model).items() if weight.is_masked}


@dataclass(frozen=True)
class Sparsity:
    """How many weights of a network are zero.

    Attributes:
        zeros, weights: how many are zero, of how many that a mask could hold.
        layers: share of zeros of each, by name.
    """

    zeros: int
    weights: int
    layers: dict[str, float]

    @property
    def share(self) -> float:
        """Of zeros, in [0, 1]."""
        return self.zeros / max(self.weights, 1)


def sparsity(model: nn.Module) -> Sparsity:
    """Count the zeros of a network's weights, whether masks hold them or not."""
    found = weights(model)
    sizes = {name: weight.value.numel() for name, weight in found.items()}
    zeros = {name: sizes[name] - int(w.value.count_nonzero()) for name, w in found.items()}
    layers = {name: zeros[name] / sizes[name] for name in sizes}
    return Sparsity(sum(zeros.values()), sum(sizes.values()), layers)


@dataclass(frozen=True, kw_only=True)
class Mask(Edit):
    """Give every weight a mask, which holds nothing yet: for training that prunes as it goes.

    Edits that choose what is held are subclasses that write `choose`, and `leaves` where
    they do not suit every weight.

    Args:
        skip: patterns of layers' names that get none.

    Raises: FoveateError if skip names what the model does not have.
    """

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {
        "constants": "it has no layers any more; mask first, and capture the graph then",
        "mixtures": "they are shared; fold them into plain layers first",
    }

    skip: tuple[str, ...] = ()

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        for pattern in self.skip:
            if not any(matches(name, (pattern,)) for name, _ in model.named_modules()):
                raise FoveateError(f"skip names {pattern!r}, which the model does not have")
        found = weights(model)
        left = {name: self.leaves(name, weight.value) for name, weight in found.items()}
        free = {name: w.value.detach() for name, w in found.items() if not left[name]}
        masks = self.choose(free) if free else {}
        lines = []
        for name, weight in found.items():
            why = left[name]
            if not why:
                share = 1 - masks[name].double().mean().item()
                why = f"{share:.2%} of its weights held at zero" if share else "may be pruned"
            layer, kind = name.rpartition(".")[0], type(weight.module).__name__
            lines.append(Covered(layer, kind, not left[name], why))
        return {"weights": list(masks)}, lines

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        for name in plan["weights"]:
            layer, _, own = name.rpartition(".")
            Weight(model.get_submodule(layer), own).give_mask()
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        found = weights(model)
        chosen = {name: found[name] for name in plan["weights"]}
        masks = self.choose({name: weight.value.detach() for name, weight in chosen.items()})
        for name, weight in chosen.items():
            weight.set(masks[name])

    def leaves(self, name: str, weight: Tensor) -> str:
        """Why a weight gets no mask, or ""."""
        skipped = matches(name.rpartition(".")[0], self.skip)
        return "left because skip names it" if skipped else ""

    def choose(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A mask for each weight: bool, of its shape, True where it stays free."""
        return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
