"""Labelled images in splits, and what was found on the way to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from foveate.data.decode import decode, decode_cut
from foveate.data.jpeg import Box, window
from foveate.errors import FoveateError


@dataclass(frozen=True)
class Quarantined:
    """A file that was set aside, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """Two files with the same content in two splits."""

    first: str
    first_split: str
    second: str
    second_split: str


@dataclass(frozen=True)
class ImageFile:
    """A reader that decodes a file: all of it when called, less where less is needed."""

    load: Callable[[], bytes]

    def __call__(self) -> np.ndarray:
        return decode(self.load())


class Split:
    """Images with their targets.

    Args:
        names: what each image is called, for people.
        targets: int64 (N,), indices into the dataset's labels.
        readers: one function an image that gives its pixels, uint8 (H, W, 3); an
            `ImageFile` can give parts of them, too.
        pixels: all images at once, uint8 (N, H, W, 3), where they have one
            size and fit in memory; else None.
    """

    def __init__(
        self,
        names: list[str],
        targets: np.ndarray,
        readers: Sequence[Callable[[], np.ndarray]] = (),
        pixels: np.ndarray | None = None,
    ) -> None:
        self.names = names
        self.targets = np.asarray(targets, np.int64)
        self.pixels = pixels
        self._readers = readers

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> np.ndarray:
        """The pixels of image `i`: uint8 (H, W, 3). Raises: BadImage, OSError."""
        return self.pixels[i] if self.pixels is not None else self._readers[i]()

    def cut(
        self, i: int, choose: Callable[[int, int], Box], least: int | None = None
    ) -> np.ndarray:
        """What lies in a box of image `i`: uint8 (h, w, 3); of a file, only that is decoded.

        Args:
            choose: gives the box for the image's width and height.
            least: pixels of height and width that are enough (see `decode_cut`).

        Raises: BadImage, OSError.
        """
        reader = self._readers[i] if self.pixels is None else None
        if isinstance(reader, ImageFile):
            return decode_cut(reader.load(), choose, least)
        pixels = self.read(i)
        return window(pixels, choose(pixels.shape[1], pixels.shape[0]))

    def subset(self, indices: np.ndarray) -> "Split":
        """The images at `indices`, in that order."""
        return Split(
            [self.names[i] for i in indices],
            self.targets[indices],
            [self._readers[i] for i in indices] if self.pixels is None else (),
            self.pixels[indices] if self.pixels is not None else None,
        )

    def relabelled(self, targets: np.ndarray) -> "Split":
        """The same images with other targets."""
        return Split(self.names, targets, self._readers, self.pixels)

    def _all_readers(self) -> Sequence[Callable[[], np.ndarray]]:
        if self.pixels is None:
            return self._readers
        return [partial(self.read, i) for i in range(len(self))]

    @classmethod
    def joined(cls, splits: Sequence["Split"]) -> "Split":
        """The images of several splits, one split after the other."""
        pixels = [split.pixels for split in splits if split.pixels is not None]
        held = len(pixels) == len(splits)
        readers = [] if held else [reader for split in splits for reader in split._all_readers()]
        return cls(
            [name for split in splits for name in split.names],
            np.concatenate([split.targets for split in splits]),
            readers,
            np.concatenate(pixels) if held else None,
        )


@dataclass
class Dataset:
    """What `foveate.data.open` gives.

    Attributes:
        source: where it came from.
        labels: class names; targets are indices into them.
        splits: `train`, `val` and `test`.
        quarantine: files that were set aside.
        duplicates: the same content in two splits.
        sizes: width and height of each image, int (N, 2).
        seed: what decided the splits that the source did not have.
        notes: whatever else a person should know.
    """

    source: str
    labels: list[str]
    splits: dict[str, Split]
    sizes: np.ndarray
    quarantine: list[Quarantined] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def summary(self, most: int = 200) -> dict[str, Any]:
        """JSON-ready facts; lists of files are cut to `most` items."""
        order = np.argsort(self.sizes.prod(axis=1), kind="stable")
        at = {"min": 0, "median": len(order) // 2, "max": -1}
        return {
            "source": self.source,
            "labels": self.labels,
            "splits": {name: self._counts(split) for name, split in self.splits.items()},
            "total": sum(len(split) for split in self.splits.values()),
            "sizes": {k: self.sizes[order[i]].tolist() for k, i in at.items()},
            "quarantine": {
                "count": len(self.quarantine),
                "items": [vars(item) for item in self.quarantine[:most]],
            },
            "duplicates": {
                "count": len(self.duplicates),
                "items": [vars(item) for item in self.duplicates[:most]],
            },
            "seed": self.seed,
            "notes": self.notes,
        }

    def labelled_as(self, labels: list[str]) -> "Dataset":
        """The same images with targets that are indices into `labels`.

        Raises: FoveateError if there is an image of another label.
        """
        unknown = [label for label in self.labels if label not in labels]
        if unknown:
            raise FoveateError(
                f"{self.source} has the label {unknown[0]!r}, which the model does not know: it "
                f"tells {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''} apart"
            )
        code = np.array([labels.index(label) for label in self.labels])
        splits = {
            name: split.relabelled(code[split.targets]) for name, split in self.splits.items()
        }
        return replace(self, labels=list(labels), splits=splits)

    def _counts(self, split: Split) -> dict[str, int]:
        counts = np.bincount(split.targets, minlength=len(self.labels))
        return {label: int(n) for label, n in zip(self.labels, counts, strict=True)}


def from_arrays(
    images: np.ndarray,
    targets: np.ndarray,
    labels: list[str] | None = None,
    *,
    source: str = "arrays",
    val_share: float | None = None,
    test_share: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A dataset of arrays, split by class.

    Args:
        images: (N, H, W, 3) or grey (N, H, W); uint8, or floats in [0, 1].
        targets: (N,) class indices, or class names.
        labels: names of the classes; by default the targets' own.
        source, val_share, test_share, seed: as in `open`.

    Raises: FoveateError if the arrays do not fit together.
    """
    from foveate.data.splits import divide

    images, targets = np.asarray(images), np.asarray(targets)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype == object:
        raise FoveateError(
            f"the images of {source} have shape {images.shape}: give (N, H, W, 3) or grey (N, H, W)"
        )
    if targets.ndim != 1 or len(targets) != len(images):
        raise FoveateError(
            f"{source} has {len(images)} images and targets of shape {targets.shape}: "
            "give one target an image"
        )
    if images.dtype.kind == "f":
        images = np.clip(images * 255, 0, 255).round()
    names, codes = np.unique(targets, return_inverse=True)
    if labels is None:
        labels = [str(name) for name in names]
    elif targets.dtype.kind in "iu" and (targets >= 0).all() and (targets < len(labels)).all():
        codes = targets
    else:
        raise FoveateError(
            f"{source} has targets that are no indices into its {len(labels)} labels"
        )
    if len(set(codes.tolist())) < 2:
        raise FoveateError(f"{source} has fewer than two classes: there is nothing to tell apart")
    pixels = np.ascontiguousarray(images, np.uint8)
    groups = [image.tobytes() for image in pixels] if len(pixels) < 100_000 else None
    of = divide(codes, groups, None, val_share, test_share, seed)
    whole = Split([f"image {i}" for i in range(len(codes))], codes, pixels=pixels)
    size = np.tile([pixels.shape[2], pixels.shape[1]], (len(pixels), 1))
    splits = {name: whole.subset(np.flatnonzero(of == name)) for name in ("train", "val", "test")}
    return Dataset(source, list(labels), splits, size, seed=seed)
