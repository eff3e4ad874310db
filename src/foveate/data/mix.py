"""Mixup and CutMix: each image of a batch with its mirror position in the same batch.

Source: arXiv 1710.09412 (mixup), arXiv 1905.04899 (CutMix).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from foveate.data import chance
from foveate.data.augment import Augment


@dataclass(frozen=True)
class Mix:
    """How one global batch is mixed.

    Args:
        kind: `mixup`, `cutmix` or `none`.
        keep: share of the image itself; the rest is its partner's.
        x, y: centre of CutMix's box as shares of width and height.
    """

    kind: str
    keep: float = 1.0
    x: float = 0.0
    y: float = 0.0

    @classmethod
    def drawn(cls, augment: Augment, seed: int, epoch: int, step: int) -> "Mix":
        """The mix of the global batch of (seed, epoch, step)."""
        kinds = [k for k in ("mixup", "cutmix") if getattr(augment, k) > 0]
        if not kinds or chance.uniform(seed, epoch, step, "mix")[0] >= augment.mix:
            return cls("none")
        kind = kinds[int(chance.integers(seed, epoch, step, "mix-kind", len(kinds))[0])]
        keep = chance.beta(seed, epoch, step, "mix-share", getattr(augment, kind))
        x, y = (float(chance.uniform(seed, epoch, step, f"mix-{axis}")[0]) for axis in "xy")
        return cls(kind, keep, x, y)

    def apply(
        self, images: Tensor, partners: Tensor, targets: Tensor, others: Tensor, classes: int
    ) -> tuple[Tensor, Tensor]:
        """Mix images with their partners.

        Args:
            images, partners: uint8 (B, 3, H, W).
            targets, others: int64 (B,).
            classes: how many there are.

        Returns: uint8 images, and float32 targets (B, classes) that sum to 1.
        """
        keep = self.keep
        if self.kind == "mixup":
            mixed = _blend(images, partners, keep)
        else:
            mixed, keep = self._paste(images, partners)
        soft = one_hot(targets, classes) * keep + one_hot(others, classes) * (1 - keep)
        return mixed, soft.float()

    def _paste(self, images: Tensor, partners: Tensor) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        half = (1 - self.keep) ** 0.5 / 2
        top, bottom = (round(min(max(self.y + d, 0), 1) * height) for d in (-half, half))
        left, right = (round(min(max(self.x + d, 0), 1) * width) for d in (-half, half))
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _blend(images: Tensor, partners: Tensor, keep: float) -> Tensor:
    """In NumPy: torch would start a pool of threads for each thread that prepares batches."""
    blend = images.numpy() * np.float32(keep)
    blend += partners.numpy() * np.float32(1 - keep)
    return torch.from_numpy(np.rint(blend, out=blend).astype(np.uint8))
