"""EfficientTrain: begin with what is easy to learn: low frequencies, and weak augmentation.

Source: efficienttrain (arXiv 2211.09703, sections 4.1 to 4.3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training

SCHEDULE = ((0.6, 160 / 224), (0.8, 192 / 224), (1.0, 1.0))
"""Until which share of the training images have which share of their side."""


@implements("efficienttrain")
class EfficientTrain(Ingredient):
    """Train on the low frequencies of each image, which need fewer pixels, and on more later; let
    RandAugment grow from nothing to its strength.

    The model, the optimiser and the number of epochs stay as they are. Validation
    sees whole images.

    Args:
        schedule: pairs of progress and the share of the side that images have until then.
        magnitude: RandAugment's strength at the end; it has none at the beginning.
        multiple: sides are rounded to multiples of this.

    Raises: FoveateError if the schedule does not rise to (1, 1).
    """

    def __init__(
        self,
        schedule: tuple[tuple[float, float], ...] = SCHEDULE,
        magnitude: float = 9.0,
        multiple: int = 2,
    ) -> None:
        if list(schedule) != sorted(schedule) or not schedule or schedule[-1] != (1.0, 1.0):
            raise FoveateError(
                f"schedule is {schedule}: give pairs that rise to (1.0, 1.0), where training ends "
                "with whole images"
            )
        self.schedule, self.magnitude, self.multiple = schedule, magnitude, multiple
        self._strength = 0.0

    def start(self, training: Training) -> None:
        self._whole = training.model.preprocess.size
        self._augment(training)

    def batch(self, training: Training, batch: Batch) -> Batch:
        side = self.side(self._whole, training.clock.progress)
        if side == self._whole:
            return batch
        training.model.preprocess = replace(training.model.preprocess, size=side)
        return batch._replace(images=low_frequencies(batch.images, side))

    def step_end(self, training: Training) -> None:
        training.model.preprocess = replace(training.model.preprocess, size=self._whole)

    def epoch_end(self, training: Training) -> None:
        self._strength = self.magnitude * training.clock.progress
        self._augment(training)

    def side(self, whole: int, progress: float) -> int:
        """Side of the images at some progress between 0 and 1."""
        share = next(share for until, share in self.schedule if progress < until or until == 1.0)
        return min(whole, max(1, round(whole * share / self.multiple)) * self.multiple)

    def state(self) -> dict[str, Tensor]:
        return {"strength": torch.tensor(self._strength, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._strength = float(state["strength"])

    def _augment(self, training: Training) -> None:
        augment = training.batches.augment
        if augment is not None and augment.randaugment:
            training.batches.augment = replace(augment, magnitude=self._strength)


@implements("efficienttrain")
def low_frequencies(images: Tensor, side: int) -> Tensor:
    """The central side x side frequencies of images, as images of that side.

    Args:
        images: (B, C, H, W), uint8 or floats in [0, 1], no smaller than side.
        side: of the result.

    Returns: float32 (B, C, side, side) in [0, 1], of the same mean.
    """
    high, wide = images.shape[-2:]
    floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    spectrum = torch.fft.fftshift(torch.fft.fft2(floats, norm="forward"), dim=(-2, -1))
    top, left = high // 2 - side // 2, wide // 2 - side // 2
    cropped = spectrum[..., top : top + side, left : left + side]
    small = torch.fft.ifft2(torch.fft.ifftshift(cropped, dim=(-2, -1)), norm="forward").real
    return small.clamp(0, 1)
