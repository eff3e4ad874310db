"""Edits that take channels out of a network, so that it is truly smaller and stays trainable.

What goes is cut out of the weights in the modules, the modules' own numbers are
adapted, and the result is proven: it must compute what the network as it was
computes when it takes no notice of those channels. What cannot be proven stays.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from foveate.errors import FoveateError
from foveate.surgery.channels.groups import Channels, Group
from foveate.surgery.channels.masked import Masked
from foveate.surgery.channels.numbers import options
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import matches
from foveate.surgery.masks import SUFFIX, masked


@dataclass(frozen=True, kw_only=True)
class Remove(Edit):
    """Remove channels that are named.

    Args:
        gone: which, by the name of their group, as `groups` gives it.
        whole: attention heads and groups of grouped convolutions go as a whole;
            else the same number of channels of each.

    Raises: FoveateError if there is no such group or channel.
    """

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        "integers": "channels are removed from weights in floating point; remove first",
        "mixtures": "they are shared; fold them into plain layers first",
        "chosen filters": "remove channels first, and give the heads then",
        "constants": "it has no modules any more; remove channels first",
    }

    gone: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    whole: bool = True

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        images = next(self.batches(data))
        return self.decide_by(model, images, partial(self.choose, model))

    def decide_by(
        self,
        model: nn.Module,
        images: Tensor,
        choose: Callable[[list[Group]], dict[str, list[int]]],
    ) -> tuple[Plan, list[Covered]]:
        """As `decide`, by any choice of channels, for edits that choose by data.

        Args:
            model: stays as it is.
            images: a batch that it takes.
            choose: says of groups what is to go.
        """
        with evaluating(model):
            proof = Proof.of(model, two(images), self.whole)
        channels = proof.channels
        gone = choose(channels.groups)
        self._demand_known(channels.groups, gone)
        plan, refused = proof.proven(gone)
        lines = [
            Covered(
                group.name,
                "channels",
                bool(gone.get(group.name)) and group.name not in refused,
                _said(group, gone.get(group.name, []), refused.get(group.name, "")),
            )
            for group in sorted(channels.groups, key=lambda group: not gone.get(group.name))
        ]
        return plan, lines + channels.left

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        cut(model, plan["keep"], plan["numbers"])
        return model

    def choose(self, model: nn.Module, groups: list[Group]) -> dict[str, list[int]]:
        """Which channels of which groups are to go; other edits choose by data or weights."""
        return {name: list(indices) for name, indices in self.gone.items()}

    def _demand_known(self, groups: list[Group], gone: dict[str, list[int]]) -> None:
        sizes = {group.name: len(group) for group in groups}
        for name, indices in gone.items():
            if name not in sizes:
                raise FoveateError(
                    f"there is no group of channels {name!r} that can go: there are "
                    f"{', '.join(sizes) or 'none'}"
                )
            if indices and not (min(indices) >= 0 and max(indices) < sizes[name]):
                raise FoveateError(f"{name} has {sizes[name]} channels: {max(indices)} is none")


@dataclass(frozen=True, kw_only=True)
class Narrow(Remove):
    """Remove the same share of every group's channels: those that weigh least.

    Args:
        share: of the channels that go.
        by: `magnitude` of the weights, or at `random`.
        multiple: as many stay as are a multiple of this, where there are enough.
        only, skip: patterns of groups' names.
        seed: of what is random.

    Raises: FoveateError if share is none between 0 and 1.
    """

    share: float = 0.5
    by: Literal["magnitude", "random"] = "magnitude"
    multiple: int = 1
    only: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise FoveateError(f"share is {self.share}: give more than 0 and less than 1")
        if self.by not in ("magnitude", "random"):
            raise FoveateError(f"by is {self.by!r}: choose magnitude or random")

    def choose(self, model: nn.Module, groups: list[Group]) -> dict[str, list[int]]:
        chance, gone = np.random.default_rng(self.seed), {}
        for group in groups:
            if not matches(group.name, self.only) or matches(group.name, self.skip):
                continue
            scores = group.scores(model)
            if self.by == "random":
                scores = chance.random(len(group))
            stay = max(1, round(len(group) * (1 - self.share)))
            stay = max(stay // self.multiple * self.multiple, min(self.multiple, len(group)))
            gone[group.name] = sorted(
                np.argsort(scores, kind="stable")[: len(group) - stay].tolist()
            )
        return gone


def groups(model: nn.Module, images: Tensor, whole: bool = True) -> list[Group]:
    """Groups of channels that can go.

    Args:
        model: any network; stays as it is.
        images: a batch that it takes.
        whole: as in `Remove`.

    Raises: FoveateError if the model's Python cannot be followed.
    """
    with evaluating(model):
        return Channels(model, two(images), whole).groups


# ---------------------------------------------------------------- cutting


@torch.no_grad()
def cut(model: nn.Module, keep: dict[str, dict[str, str]], numbers: dict[str, Any]) -> None:
    """Keep some slices of weights, wherever they are shared, and set modules' numbers.

    Args:
        model: changed in place.
        keep: what stays of weights along axes, written as ranges: "0-3,7".
        numbers: what modules' attributes become.
    """
    owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
    held: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for place in (module._parameters, module._buffers):
            for own, tensor in place.items():
                if tensor is not None:
                    owners.setdefault(id(tensor), []).append((place, own))
                    held[f"{prefix}.{own}".lstrip(".")] = tensor
    masks = {name + SUFFIX: keep[name] for name in masked(model) if name in keep}
    for name, axes in {**keep, **masks}.items():
        old = new = held[name]
        for axis, ranges in axes.items():
            index = torch.tensor(from_ranges(ranges), device=old.device)
            new = new.index_select(int(axis), index)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, old.requires_grad)
        for place, own in owners[id(old)]:
            place[own] = new
    for name, attributes in numbers.items():
        module = model.get_submodule(name)
        for attribute, value in attributes.items():
            old = getattr(module, attribute)
            setattr(module, attribute, type(old)(value) if isinstance(old, tuple | list) else value)
    with evaluating(model):
        model.train()  # drops tables that passes in evaluation mode have kept


def to_ranges(indices: np.ndarray) -> str:
    """Ascending indices as text: "0-3,7"."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def from_ranges(text: str) -> list[int]:
    """The opposite of `to_ranges`."""
    ends = [list(map(int, part.split("-"))) for part in text.split(",")]
    return [index for run in ends for index in range(run[0], run[-1] + 1)]


# ---------------------------------------------------------------- proving


@dataclass(frozen=True)
class Proof:
    """A network on which removals are tried, before they are made.

    Attributes:
        model: a copy, in float64 where its Python allows that: there, what was computed
            otherwise cannot hide among errors of rounding.
        images: two, of the same type.
        channels: of the model.
        tolerance: largest error against the largest output.
    """

    model: nn.Module
    images: Tensor
    channels: Channels
    tolerance: float

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, whole: bool) -> "Proof":
        """Raises: FoveateError if the model's Python cannot be followed."""
        try:
            exact, doubled = copy.deepcopy(model).double(), images.double()
            return cls(exact, doubled, Channels(exact, doubled, whole), 1e-6)
        except FoveateError:
            return cls(model, images, Channels(model, images, whole), 1e-4)

    def proven(self, gone: dict[str, list[int]]) -> tuple[Plan, dict[str, str]]:
        """The plan that removes what can be proven, and why the rest is refused, by group.

        All is tried at once; if that fails, each group alone, and what succeeded together.
        """
        gone = {name: indices for name, indices in gone.items() if indices}
        nothing = {"keep": {}, "numbers": {}}
        plan, why = self.attempt(gone) if gone else (nothing, "")
        if plan is not None:
            return plan, {}
        refused = {}
        for name, indices in gone.items():
            alone, reason = self.attempt({name: indices})
            if alone is None:
                refused[name] = reason
        rest = {name: indices for name, indices in gone.items() if name not in refused}
        plan, why = self.attempt(rest) if rest else (nothing, "")
        if plan is None:
            return nothing, {**refused, **dict.fromkeys(rest, f"together with others: {why}")}
        return plan, refused

    def attempt(self, gone: dict[str, list[int]]) -> tuple[Plan | None, str]:
        """A plan that removes these channels and is proven, or None and why there is none."""
        stays = self.channels.stays(gone)
        if why := self.channels.obstacle(stays):
            return None, why
        keep = {
            name: {str(axis): to_ranges(found) for axis, found in by_axis.items()}
            for name, by_axis in self.channels.keep(stays).items()
        }
        expected = _flat(Masked(self.channels, stays).outputs(self.images))
        least = float("inf")
        for numbers in options(self.model, self.channels, stays):
            candidate = copy.deepcopy(self.model)
            try:
                cut(candidate, keep, numbers)
                with torch.no_grad():
                    given = _flat(candidate(self.images))
            except Exception as error:
                first = str(error).strip().split("\n")[0]
                why = why or f"its forward does not take what stays ({first})"
                continue
            error = max(map(_error, given, expected))
            if error <= self.tolerance:
                return {"keep": keep, "numbers": numbers}, ""
            least = min(least, error)
        if least < float("inf"):
            why = f"what stays would compute something else (off by {least:.1e})"
        return None, why


def _flat(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _error(given: Tensor, expected: Tensor) -> float:
    """The largest difference, against the largest value."""
    if given.shape != expected.shape:
        return float("inf")
    return float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _said(group: Group, gone: list[int], refused: str) -> str:
    if refused:
        return f"left, as {refused}"
    if not gone:
        return "left, as none of its channels was chosen"
    return f"{len(gone)} of {len(group)} channels removed, from {len(group.weights)} weights"


def two(images: Tensor) -> Tensor:
    """A batch of exactly two images."""
    return images[:2] if len(images) > 1 else torch.cat([images, images])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode for a while; each part's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
