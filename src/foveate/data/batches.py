"""Batches of images, in an order and with an augmentation that anyone can compute again."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
from foveate.data.scale import resize, resize_batch, stretch
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

    Where a file has gone bad since it was found, another of its class stands
    in for it, and `failures` tells.

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
        workers: threads that prepare batches ahead; by default one a core, at most 16.

    Raises: FoveateError if the batch cannot be shared among the processes, or
        an argument is out of its range.
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
        self._bad: dict[int, str] = {}
        self._last_order: tuple[int, np.ndarray] | None = None
        self._check_ranges()
        if self.batch_size < 1 or self.batch_size % self.world:
            raise FoveateError(
                f"a batch of {self.batch_size} cannot be shared among {self.world} processes: "
                "make --batch a multiple of them"
            )
        if self.augment is not None:
            self.batch_size = min(self.batch_size, len(self.split) // self.world * self.world)
            if not self.batch_size:
                raise FoveateError(
                    f"{len(self.split)} training images cannot be shared among {self.world} "
                    "processes: add images or start fewer processes"
                )

    def _check_ranges(self) -> None:
        if not 0 <= self.rank < self.world:
            raise FoveateError(f"rank is {self.rank} of {self.world}: give 0 to {self.world - 1}")
        if self.size < 1:
            raise FoveateError(f"size is {self.size}: give at least one pixel")
        if not 0 < self.crop <= 1:
            raise FoveateError(f"crop is {self.crop}: give more than 0, and 1 at most")
        mixes = self.augment is not None and (self.augment.mixup or self.augment.cutmix)
        if mixes and self.classes <= self.split.targets.max(initial=-1):
            raise FoveateError(
                f"classes is {self.classes}: mixing needs to know how many there are"
            )

    @property
    def failures(self) -> list[Quarantined]:
        """Images that could not be read any more, in the order of the split."""
        return [Quarantined(self.split.names[i], reason) for i, reason in sorted(self._bad.items())]

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (self.augment is None and rest > 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on.

        Threads prepare a few batches ahead; they end when the iterator is closed.
        """
        threads = self.workers or min(16, os.cpu_count() or 1)
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
                if self.rank == self.world - 1 - self.rank:
                    partners, others = images.flip(0), targets.flip(0)
                else:
                    partners, others = self._images(whole[::-1][mine], epoch)
                images, targets = mix.apply(images, partners, targets, others, self.classes)
        return Batch(images, targets, torch.from_numpy(indices))

    def _order(self, epoch: int) -> np.ndarray:
        if self.augment is None:
            return np.arange(len(self.split))
        last = self._last_order
        if last is None or last[0] != epoch:
            last = epoch, chance.permutation(self.seed, epoch, len(self.split))
            self._last_order = last
        return last[1]

    def _images(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented images uint8 (B, 3, S, S) and their targets int64 (B,)."""
        draw = Draw(self.seed, epoch, indices)
        pixels, used = self._square(draw)
        targets = torch.from_numpy(self.split.targets[used])
        if self.augment is None:
            return _to_tensor(pixels), targets
        if self.augment.crop != "resized":
            pixels = shift_and_flip(pixels, self.augment, draw)
        if self.augment.randaugment:
            from foveate.data.randaugment import randaugment

            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            images = randaugment(images, self.augment.randaugment, self.augment.magnitude, draw)
            pixels = images.permute(0, 2, 3, 1).numpy()
        if self.augment.erase:
            erase(pixels, self.augment, draw)
        return _to_tensor(pixels), targets

    def _square(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """The images at one size, uint8 (B, S, S, 3), and which these are, int64 (B,).

        Random boxes are cut out and mirrored on the way.
        """
        all_pixels = self.split.pixels
        cuts = self.augment is not None and self.augment.crop == "resized"
        if all_pixels is not None and not cuts:
            return resize_batch(all_pixels[draw.indices], self.size, self.crop), draw.indices
        prepare = self._random_boxes(draw) if cuts else self._whole
        pixels = np.empty((len(draw.indices), self.size, self.size, 3), np.uint8)
        used = draw.indices.copy()
        for row, index in enumerate(draw.indices.tolist()):
            try:
                used[row] = self._read(index, partial(prepare, row, pixels[row]))
            except Exception as error:
                error.add_note(f"while preparing {self.split.names[index]}")
                raise
        return pixels, used

    def _whole(self, row: int, out: np.ndarray, index: int) -> None:
        """Scale the image at `index` and cut its centre, into (S, S, 3)."""
        out[...] = resize(Image.fromarray(self.split.read(index)), self.size, self.crop)

    def _random_boxes(self, draw: Draw) -> Callable[[int, np.ndarray, int], None]:
        """A function that scales a random box of the image at an index, into (S, S, 3)."""
        augment, shares = self.augment, draw.crops()
        assert augment is not None
        flips = draw.flips(augment.flip).tolist()
        least = self.size if augment.reduce else None

        def prepare(row: int, out: np.ndarray, index: int) -> None:
            choose = partial(random_box, augment=augment, shares=shares[row])
            stretch(self.split.cut(index, choose, least), self.size, flips[row], out)

        return prepare

    def _read(self, index: int, prepare: Callable[[int], None]) -> int:
        """Prepare the image, or where its file has gone bad since, the next that has not.

        The next of its class is preferred, so that targets change only where a
        whole class is gone.

        Returns: which it is.
        """
        for i in self._candidates(index):
            try:
                prepare(i)
                return i
            except (BadImage, OSError) as error:
                self._bad[i] = str(error)
        raise FoveateError(
            f"no image can be read any more, the first being {self.split.names[index]}: "
            "bring the files back and run the same command again"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        after = (index + 1 + np.arange(len(self.split) - 1)) % len(self.split)
        same = self.split.targets[after] == self.split.targets[index]
        yield from after[same].tolist()
        yield from after[~same].tolist()


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) to (B, 3, H, W), which keeps the memory as it lies: channels_last."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
