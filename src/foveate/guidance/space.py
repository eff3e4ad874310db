"""The compositions that may be tried: a few fields say all of one, and make the model.

Sensitivities say where each edit works, so a field says only how much of it is wanted: how many
multiply-adds go, not from which layer. Edits come in the order in which they make sense: channels
go, norms are set anew or all that is left is trained, branches merge, numbers are rounded, and
biases make up for what that adds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from foveate.guidance.norms import renormed
from foveate.guidance.sensitivity import Sensitivity, Widths, ranked
from foveate.ops.merge import is_mergeable
from foveate.surgery.channels.remove import Remove
from foveate.surgery.edit import Edit
from foveate.surgery.fold import Fold
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store
from foveate.vision import VisionModel

Numbers = Literal["float32", "int8", "weights8", "weights4"]
NAMES: dict[Numbers, str] = {
    "float32": "",
    "int8": "INT8",
    "weights8": "8-bit weights",
    "weights4": "4-bit weights",
}
KEPT = 4
"""Models with channels removed that are kept at hand, besides those that were tuned."""


@dataclass(frozen=True, order=True, kw_only=True)
class Choice:
    """A composition of edits; one of its own defaults alone is the model as it was.

    Args:
        removed: percent of the multiply-adds that are to go with channels.
        multiple: as many channels stay in a group as are a multiple of this.
        tuned: whether it was trained after that.
        numbers: what weights are held in; with int8, activations, too.
        floats: how many of the layers that are most sensitive to that stay in float.
        corrected: whether biases take away again what int8 adds to the means of layers' outputs.
    """

    removed: int = 0
    multiple: int = 1
    tuned: bool = False
    numbers: Numbers = "float32"
    floats: int = 0
    corrected: bool = False


class Space:
    """What may be tried of one model.

    Args:
        model: as it was.
        macs: multiply-adds of an image.
        batches: that edits look at.
        widths: what channels cost, or None if none can go.
        simulate: rounds weights and activations.
        integers, storage: what rounded layers cost; empty if none can be. Correcting biases
            may take as long as finding that out: it is tried where there was time for all layers.
        tune: trains a model and returns it, or None.

    Attributes:
        levels: of each field, in order.
    """

    def __init__(
        self,
        model: VisionModel,
        macs: int,
        batches: list[Tensor],
        widths: Widths | None,
        simulate: Simulate,
        integers: list[Sensitivity],
        storage: list[Sensitivity],
        tune: Callable[[VisionModel], VisionModel] | None,
    ) -> None:
        self._model, self._macs, self._batches = model, macs, batches
        self._widths, self._simulate, self._tune = widths, simulate, tune
        self._sensitive = {"int8": ranked(integers), "weights4": ranked(storage)}
        self._sensitive["weights8"] = self._sensitive["weights4"]
        narrower = widths is not None and widths.groups
        most = max(len(integers), len(storage))
        self.levels: dict[str, tuple[Any, ...]] = {
            "removed": (0, 5, *range(10, 80, 10)) if narrower else (0,),
            "multiple": (1, 8) if narrower else (1,),
            "tuned": (False, True) if narrower and tune else (False,),
            "numbers": ("float32", *(n for n in NAMES if self._sensitive.get(n))),
            "floats": tuple(n for n in (0, 1, 2, 4, 8, 16, 32) if n < max(most, 1)),
            "corrected": (False, True) if integers and all(r.lost for r in integers) else (False,),
        }
        self._kept: dict[Choice, VisionModel] = {}

    # ------------------------------------------------------------ moving in it

    def plain(self, choice: Choice) -> Choice:
        """The same composition with fields that mean nothing in it as they are by default."""
        if not choice.removed:
            choice = replace(choice, multiple=1, tuned=False)
        most = len(self._sensitive.get(choice.numbers, ()))
        return replace(
            choice,
            floats=choice.floats if choice.floats < most else 0,
            corrected=choice.corrected and choice.numbers == "int8",
        )

    def anchors(self) -> Iterator[Choice]:
        """What is tried first: the strongest edits alone and together, and then the others."""
        numbers = self.levels["numbers"]
        coarse = self.levels["removed"][2::2]
        yield Choice()
        for kind in ("int8", "float32"):
            if kind in numbers:
                yield Choice(numbers=kind)
                for share in coarse:
                    yield Choice(removed=share, numbers=kind)
        for kind in numbers:
            yield Choice(numbers=kind)

    def neighbours(self, choice: Choice) -> list[Choice]:
        """Compositions one step away: a field one level up or down, or numbers of another kind."""
        found = []
        for name, levels in self.levels.items():
            at = levels.index(getattr(choice, name))
            if name == "numbers":
                others = [value for value in levels if value != levels[at]]
            else:
                others = [levels[i] for i in (at - 1, at + 1) if 0 <= i < len(levels)]
            found += [self.plain(replace(choice, **{name: value})) for value in others]
        return [other for other in dict.fromkeys(found) if other != choice]

    # ------------------------------------------------------------ making what it says

    def made(self, choice: Choice) -> VisionModel:
        """The edited model. Raises: FoveateError if an edit cannot be made."""
        model = self._narrowed(choice)
        if choice.numbers == "float32":
            return model
        if is_mergeable(model):
            model = self._apply(Fold(), model)
        skip = self.left_as_they_are(choice)
        if choice.numbers == "int8":
            model = self._apply(replace(self._simulate, skip=skip), model)
            if choice.corrected:
                model = self._apply(CorrectBias(), model)
            return self._apply(Store(skip=_plain(model)), model)
        return self._apply(Store(bits=8 if choice.numbers == "weights8" else 4, skip=skip), model)

    def left_as_they_are(self, choice: Choice) -> tuple[str, ...]:
        """The layers that `floats` means."""
        return tuple(self._sensitive.get(choice.numbers, ())[: choice.floats])

    def _narrowed(self, choice: Choice) -> VisionModel:
        """With channels removed and norms set anew, and trained where that is wanted."""
        if self._widths is None or not choice.removed:
            return self._model
        key = replace(choice, numbers="float32", floats=0, corrected=False)
        if key not in self._kept:
            if choice.tuned:
                assert self._tune is not None
                self._kept[key] = self._tune(self._narrowed(replace(key, tuned=False)))
            else:
                gone = self._widths.gone(self._macs * choice.removed / 100, choice.multiple)
                narrowed = self._apply(Remove(gone=gone), self._model)
                self._kept[key] = renormed(narrowed, self._model, self._batches)
            untuned = [other for other in self._kept if not other.tuned]
            for old in untuned[:-KEPT]:
                del self._kept[old]
        return self._kept[key]

    def _apply(self, edit: Edit, model: VisionModel) -> VisionModel:
        edited, _ = edit.apply(model, self._batches)
        assert isinstance(edited, VisionModel)
        return edited


def _plain(model: VisionModel) -> tuple[str, ...]:
    """Names of the layers that hold their weights as numbers."""
    return tuple(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
