"""Batches of images, in an order and with an augmentation that anyone can compute again."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.data import chance
from foveate.data.augment import Augment, Draw, erase, random_box, shift_and_flip
from foveate.data.dataset import Quarantined, Split
from foveate.data.decode import BadImage
from foveate.data.mix import Mix
from foveate.errors import FoveateError


class Batch(NamedTuple):
    """Images uint8 (B, 3, S, S); targets int64 (B,), or float32 (B, classes) once mixed;
    indices into the split, int64 (B,)."""

    images: Tensor
    targets: Tensor
    indices: Tensor


@dataclass(kw_only=True)
class Batches:
    """A split, given out in batches.

    With `augment`, images come in a new order each epoch, and a last batch
    that is not full is left out. Without, they come in their own order, scaled
    and cut at the centre, every one of them.

    Args:
        split: the images.
        batch_size: images a batch, over all processes together.
        size: side of the images that come out, in pixels.
        augment: what happens to training images, or None to evaluate.
        crop: without `augment`, the share of the shorter side that is kept.
        classes: how many there are; needed to mix.
        seed: decides order and augmentation.
        rank, world: which of how many processes this is; each gets its part of
            every batch, and the parts together are the batch of one process.
        workers: threads that prepare batches ahead.

    Raises: FoveateError if the batch cannot be shared among the processes.
    """

    split: Split
    batch_size: int
    size: int
    augment: Augment | None = None
    crop: float = 1.0
    classes: int = 0
    seed: int = 0
    rank: int = 0
    world: int = 1
    workers: int | None = None

    def __post_init__(self) -> None:
        self.failures: list[Quarantined] = []
        if self.augment is not None:
            self.batch_size = min(self.batch_size, len(self.split) // self.world * self.world)
        if self.batch_size < 1 or self.batch_size % self.world:
            raise FoveateError(
                f"a batch of {self.batch_size} cannot be shared among {self.world} processes: "
                "make --batch a multiple of them"
            )

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (self.augment is None and rest > 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on.

        Threads prepare a few batches ahead; they end when the iterator is closed.
        """
        threads = self.workers or min(2, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        waiting: list[Future[Batch]] = []
        try:
            for step in range(start, self.steps):
                waiting.append(pool.submit(self.batch, epoch, step))
                if len(waiting) > threads + 1:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.shutdown(cancel_futures=True)

    def batch(self, epoch: int, step: int) -> Batch:
        """This process's part of one batch."""
        whole = self._order(epoch)[step * self.batch_size :][: self.batch_size]
        mine = slice(*(len(whole) * part // self.world for part in (self.rank, self.rank + 1)))
        indices = whole[mine]
        images, targets = self._images(indices, epoch)
        if self.augment is not None:
            mix = Mix.drawn(self.augment, self.seed, epoch, step)
            if mix.kind != "none":
                partners, others = self._images(whole[::-1][mine], epoch)
                images, targets = mix.apply(images, partners, targets, others, self.classes)
        return Batch(images, targets, torch.from_numpy(indices))

    def _order(self, epoch: int) -> np.ndarray:
        if self.augment is None:
            return np.arange(len(self.split))
        return chance.permutation(self.seed, epoch, len(self.split))

    def _images(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented images uint8 (B, 3, S, S) and their targets int64 (B,)."""
        if self.split.pixels is not None:
            pixels = resize_batch(self.split.pixels[indices], self.size, self.crop)
        else:
            pixels = np.stack([self._prepare(int(i), epoch) for i in indices])
        targets = torch.from_numpy(self.split.targets[indices])
        if self.augment is None:
            return _to_tensor(pixels), targets
        draw = Draw(self.seed, epoch, indices)
        if self.split.pixels is not None and self.augment.crop == "resized":
            pixels = np.stack(
                [
                    self._cut(Image.fromarray(p), int(i), epoch)
                    for p, i in zip(pixels, indices, strict=True)
                ]
            )
        pixels = shift_and_flip(pixels, self.augment, draw)
        if self.augment.randaugment:
            pixels = self._randaugment(pixels, indices, epoch)
        if self.augment.erase:
            erase(pixels, self.augment, draw)
        return _to_tensor(pixels), targets

    def _prepare(self, index: int, epoch: int) -> np.ndarray:
        """One image of any size, brought to (S, S, 3)."""
        image = Image.fromarray(self._read(index))
        if self.augment is not None and self.augment.crop == "resized":
            return self._cut(image, index, epoch)
        return resize(image, self.size, self.crop)

    def _cut(self, image: Image.Image, index: int, epoch: int) -> np.ndarray:
        assert self.augment is not None
        box = random_box(*image.size, self.augment, self.seed, epoch, index)
        side = (self.size, self.size)
        return np.asarray(image.resize(side, Image.Resampling.BICUBIC, box, reducing_gap=2.0))

    def _read(self, index: int) -> np.ndarray:
        """The image, or where its file has gone bad since, the next of its class that has not."""
        same = np.flatnonzero(self.split.targets == self.split.targets[index])
        for i in [index, *same[same > index], *same[same < index]]:
            try:
                return self.split.read(int(i))
            except (BadImage, OSError) as error:
                self.failures.append(Quarantined(self.split.names[i], str(error)))
        raise FoveateError(
            f"no image of the class of {self.split.names[index]} can be read any more: "
            "bring the files back and run the same command again"
        )

    def _randaugment(self, pixels: np.ndarray, indices: np.ndarray, epoch: int) -> np.ndarray:
        from foveate.data.randaugment import randaugment_batch

        assert self.augment is not None
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        images = randaugment_batch(
            images,
            self.augment.randaugment,
            self.augment.magnitude,
            self.seed,
            epoch,
            indices.tolist(),
        )
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def resize(image: Image.Image, size: int, crop: float = 1.0) -> np.ndarray:
    """Scale and cut the centre: `crop` of the shorter side fills (size, size).

    Returns: uint8 (size, size, 3).
    """
    width, height = image.size
    side = min(width, height) * crop
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    if (width, height) == (size, size) and crop == 1.0:
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=2.0))


def resize_batch(pixels: np.ndarray, size: int, crop: float = 1.0) -> np.ndarray:
    """`resize` for images of one size: uint8 (B, H, W, 3) to (B, size, size, 3)."""
    if pixels.shape[1:3] == (size, size) and crop == 1.0:
        return pixels
    return np.stack([resize(Image.fromarray(image), size, crop) for image in pixels])


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) to (B, 3, H, W), which keeps the memory as it lies: channels_last."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
