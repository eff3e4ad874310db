"""What a composition of edits comes to in the form that it would be deployed in.

Accuracy and time are those of the very program: of OpenVINO where it is installed and takes
the model, in integers where the model has them; of PyTorch, eager, elsewhere. Each is timed in
turns with the original, whose first time is the measure of all, so that what disturbs the
machine for a while disturbs no comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from foveate.deploy.runtimes import Logits
from foveate.deploy.started import Runtime, start_in
from foveate.errors import FoveateError
from foveate.measure import Timing, count, mean_interval, side_by_side
from foveate.vision import VisionModel

LOOKS = 3
"""Times that programs are timed, at most, while the machine is noisy."""


@dataclass(frozen=True)
class Started:
    """A model, and the program that it runs as."""

    model: VisionModel
    run: Logits


Stopwatch = Callable[[list[Started]], list[Timing]]
"""Times programs in turns, for one image."""


@dataclass(frozen=True)
class Lost:
    """Points of accuracy or agreement that are lost, with their paired 95% interval over images."""

    points: float
    low: float
    high: float

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> "Lost":
        """Of what is right before and after, bool (N,) each."""
        return cls(*mean_interval(100 * (before.astype(float) - after.astype(float))))


@dataclass(frozen=True)
class Figures:
    """What a program comes to.

    Attributes:
        milliseconds: of one image, median and the bounds of its 95% interval.
        lost: against the original.
        right: share of the judged images.
        bytes: of the weights and grids.
        macs: multiply-adds of an image.
        noisy: whether the machine was too busy for the time to mean much.
    """

    milliseconds: dict[str, float]
    lost: Lost
    right: float
    bytes: int
    macs: int
    noisy: bool = False


class Bench:
    """Measures models against one original.

    Args:
        original: what all are compared with.
        images: judged by, float32 (N, 3, S, S) in [0, 1].
        targets: their classes (N,), or None to judge by what the original says.
        runtime: where programs run; by default OpenVINO, or PyTorch where that cannot be.
        stopwatch: times programs; by default, all of them in turns for `seconds` each.
        seconds: of timing each.

    Attributes:
        runtime: where programs run.
        no_openvino: why they don't run in OpenVINO, or "".
        original: and its program.
        targets: what is right.
        original_macs: multiply-adds of an image.
        reference: times of the original.
    """

    def __init__(
        self,
        original: VisionModel,
        images: np.ndarray,
        targets: np.ndarray | None,
        *,
        runtime: Runtime | None = None,
        stopwatch: Stopwatch | None = None,
        seconds: float = 0.4,
    ) -> None:
        self.runtime: Runtime = runtime or "OpenVINO"
        self.no_openvino = ""
        self._stopwatch = stopwatch or partial(_in_turns, images[:1], seconds)
        try:
            self.original = Started(original, start_in(self.runtime, original))
        except FoveateError as error:
            if runtime is not None:
                raise
            self.runtime, self.no_openvino = "PyTorch", str(error)
            self.original = Started(original, start_in(self.runtime, original))
        self._images = images
        answers = _answers(self.original, images)
        self.targets = answers if targets is None else targets
        self._right = answers == self.targets
        self.reference = self.times([self.original])[0]
        self.original_macs = _macs(original)

    def start(self, model: VisionModel) -> Started:
        """Raises: FoveateError if the model cannot run where the original does."""
        return Started(model, start_in(self.runtime, model))

    def measure(self, program: Started) -> Figures:
        """A program's figures, its time told as if the original ran as fast as at first."""
        right = _answers(program, self._images) == self.targets
        beside, own = self.times([self.original, program])
        scale = self.reference.median / beside.median
        return Figures(
            milliseconds={name: scale * ms for name, ms in own.milliseconds().items()},
            lost=Lost.between(self._right, right),
            right=float(right.mean()),
            bytes=sum(t.numel() * t.element_size() for t in program.model.state_dict().values()),
            macs=_macs(program.model),
            noisy=own.is_noisy or beside.is_noisy,
        )

    def times(self, programs: list[Started]) -> list[Timing]:
        """Of programs, all in turns; again while the machine is noisy, and then the least noisy."""
        tries = []
        for _ in range(LOOKS):
            tries.append(self._stopwatch(programs))
            if not any(timing.is_noisy for timing in tries[-1]):
                break
        return min(tries, key=lambda timings: max((t.high - t.low) / t.median for t in timings))

    def lost_on(self, program: Started, images: np.ndarray, targets: np.ndarray | None) -> Lost:
        """What a program loses on other images, judged as `targets` say."""
        before = _answers(self.original, images)
        targets = before if targets is None else targets
        return Lost.between(before == targets, _answers(program, images) == targets)


def _macs(model: VisionModel) -> int:
    size = model.preprocess.size
    return count(model, torch.zeros(1, 3, size, size)).macs


def _answers(program: Started, images: np.ndarray) -> np.ndarray:
    """The class that a program gives each image, (N,), one at a time as in use."""
    return np.array([int(program.run(image[None])[0].argmax()) for image in images])


def _in_turns(image: np.ndarray, seconds: float, programs: list[Started]) -> list[Timing]:
    calls = {str(i): partial(program.run, image) for i, program in enumerate(programs)}
    times = side_by_side(calls, seconds=seconds)
    return [times[name] for name in calls]
