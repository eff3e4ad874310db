"""From a source to a dataset: one pass that reads, decodes and fingerprints every file."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from foveate.data.dataset import Dataset, Duplicate, ImageFile, Quarantined, Split, from_arrays
from foveate.data.decode import BadImage, decode
from foveate.data.sources import Item, find_items
from foveate.data.splits import divide
from foveate.errors import FoveateError

PIXEL_BUDGET = 2 << 30
"""Decoded images of one size are kept in memory up to this many bytes."""


@dataclass(frozen=True)
class _Look:
    """What one look at a file tells: pixels and fingerprint, or a reason against it."""

    item: Item
    reason: str | None = None
    pixels: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    digest: bytes = b""


def open(
    source: str | Path,
    *,
    val_share: float | None = None,
    test_share: float = 0.1,
    seed: int = 0,
    max_bad: float = 0.1,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Open labelled images.

    Args:
        source: a folder of class folders (with or without train, val and test
            above them), the same in a .zip or .tar(.gz), a CSV or Parquet table
            with the columns path, label and perhaps split, an .npz file with
            images and targets, or the word `digits`.
        val_share, test_share: shares held out where the source has no such split;
            without a `val_share`, a tenth and at most 2,500 images.
        seed: decides who is held out.
        max_bad: stop if a larger share of the files cannot be used.
        workers: threads that decode; by default one a core.
        progress: called with the files done and their total.

    Raises: FoveateError if the source cannot be read, holds fewer than two
        classes, or too large a share of it is bad.
    """
    for name, share in (("val_share", val_share), ("test_share", test_share), ("max_bad", max_bad)):
        if share is not None and not 0 <= share <= 1:
            raise FoveateError(f"{name} is {share}: give a share between 0 and 1")
    if str(source) == "digits" or str(source).lower().endswith(".npz"):
        images, targets, labels = _load_arrays(str(source))
        return from_arrays(
            images,
            targets,
            labels,
            source=str(source),
            val_share=val_share,
            test_share=test_share,
            seed=seed,
        )
    items = find_items(Path(source))
    good, quarantine = _scan(items, workers, progress)
    good = _set_aside_untrained_labels(good, quarantine)
    good = _set_aside_contradictions(good, quarantine)
    _insist(str(source), items, good, quarantine, max_bad)
    return _assemble(str(source), good, quarantine, val_share, test_share, seed)


# ---------------------------------------------------------------- look at every file


def _scan(
    items: list[Item], workers: int | None, progress: Callable[[int, int], None] | None
) -> tuple[list[_Look], list[Quarantined]]:
    """Look at all items in threads, with a bounded number in flight."""
    good: list[_Look] = []
    quarantine: list[Quarantined] = []
    held = 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for done, look in enumerate(_map_bounded(pool, _look, items), 1):
            if look.pixels is None:
                quarantine.append(Quarantined(look.item.name, look.reason or "unknown"))
            else:
                held += look.pixels.nbytes
                if good and (look.shape != good[0].shape or held > PIXEL_BUDGET):
                    good = [replace(other, pixels=None) for other in good]
                if good and good[0].pixels is None:
                    look = replace(look, pixels=None)
                good.append(look)
            if progress is not None:
                progress(done, len(items))
    return good, quarantine


def _look(item: Item) -> _Look:
    if item.fault is not None:
        return _Look(item, item.fault)
    try:
        data = item.read()
        pixels = decode(data)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return _Look(item, None, pixels, pixels.shape, digest)
    except BadImage as error:
        return _Look(item, error.reason)
    except FileNotFoundError:
        return _Look(item, "the file is missing")
    except Exception as error:  # an archive member can fail in as many ways as there are formats
        return _Look(item, f"cannot be read: {error}"[:120])


def _map_bounded(
    pool: ThreadPoolExecutor, work: Callable[[Item], _Look], items: list[Item]
) -> Iterator[_Look]:
    """Like `pool.map`, in order, but with at most some hundred results waiting."""
    queue = iter(items)
    waiting = [pool.submit(work, item) for item in islice(queue, 256)]
    while waiting:
        head, waiting = waiting[:64], waiting[64:]
        for future in head:
            yield future.result()
        waiting += [pool.submit(work, item) for item in islice(queue, len(head))]


# ---------------------------------------------------------------- judge them together


def _set_aside_contradictions(good: list[_Look], quarantine: list[Quarantined]) -> list[_Look]:
    """The same content under two labels is mislabelled, whichever is right."""
    labels: dict[bytes, set[str]] = {}
    for look in good:
        labels.setdefault(look.digest, set()).add(str(look.item.label))
    kept = []
    for look in good:
        others = labels[look.digest] - {str(look.item.label)}
        if others:
            reason = f"mislabelled: the same image is also labelled {', '.join(sorted(others))}"
            quarantine.append(Quarantined(look.item.name, reason))
        else:
            kept.append(look)
    return kept


def _set_aside_untrained_labels(good: list[_Look], quarantine: list[Quarantined]) -> list[_Look]:
    """Where the source has a train split, a label that is not in it cannot be learned."""
    trained = {look.item.label for look in good if look.item.split == "train"}
    if not trained:
        return good
    kept = []
    for look in good:
        if look.item.split in (None, "train") or look.item.label in trained:
            kept.append(look)
        else:
            reason = f"its label {look.item.label} is not in the train split"
            quarantine.append(Quarantined(look.item.name, reason))
    return kept


def _insist(
    source: str,
    items: list[Item],
    good: list[_Look],
    quarantine: list[Quarantined],
    max_bad: float,
) -> None:
    share = len(quarantine) / len(items)
    if share > max_bad:
        first = "; ".join(f"{q.path}: {q.reason}" for q in quarantine[:3])
        raise FoveateError(
            f"{len(quarantine)} of the {len(items)} files in {source} ({share:.0%}) are bad or "
            f"unusable, more than the allowed {max_bad:.0%} ({first}): mend them, or allow more "
            "with --max-bad"
        )
    classes = {look.item.label for look in good}
    if len(classes) < 2:
        only = f"only the class {next(iter(classes))}" if classes else "no class"
        raise FoveateError(
            f"{source} has images of {only}, and two classes are the least there can be: "
            "put the images of each class in a folder of its own"
        )


# ---------------------------------------------------------------- put them together


def _assemble(
    source: str,
    good: list[_Look],
    quarantine: list[Quarantined],
    val_share: float | None,
    test_share: float,
    seed: int,
) -> Dataset:
    labels = sorted({str(look.item.label) for look in good}, key=_naturally)
    code = {label: i for i, label in enumerate(labels)}
    targets = np.array([code[str(look.item.label)] for look in good])
    digests = [look.digest for look in good]
    of = divide(targets, digests, [x.item.split for x in good], val_share, test_share, seed)
    shapes = np.array([look.shape[:2] for look in good])
    pixels = [look.pixels for look in good if look.pixels is not None]
    held = len(pixels) == len(good)
    splits = {}
    for name in ("train", "val", "test"):
        chosen = np.flatnonzero(of == name)
        splits[name] = Split(
            [good[i].item.name for i in chosen],
            targets[chosen],
            () if held else [ImageFile(good[i].item.read) for i in chosen],
            _stack(pixels, chosen, good[0].shape) if held else None,
        )
    small = [label for label in labels if (targets == code[label]).sum() < 3]
    notes = [f"the class {label} has too few images to hold any out" for label in small]
    found = _duplicates(good, of)
    return Dataset(source, labels, splits, shapes[:, ::-1], quarantine, found, seed, notes)


def _stack(pixels: list[np.ndarray], chosen: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images of one shape as one array, also where none is chosen."""
    stacked = np.empty((len(chosen), *shape), np.uint8)
    for i, k in enumerate(chosen):
        stacked[i] = pixels[k]
    return stacked


def _duplicates(good: list[_Look], of: np.ndarray) -> list[Duplicate]:
    """Pairs with the same content in two splits."""
    first: dict[bytes, dict[str, str]] = {}
    found = []
    for look, split in zip(good, of.tolist(), strict=True):
        seen = first.setdefault(look.digest, {})
        for other, name in seen.items():
            if other != split:
                found.append(Duplicate(name, other, look.item.name, split))
        seen.setdefault(split, look.item.name)
    return found


def _naturally(label: str) -> list[tuple[int, int | str]]:
    """Sort key that puts class 2 before class 10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", label) if p]


def _load_arrays(source: str) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    path = Path(__file__).parent / "digits.npz" if source == "digits" else Path(source)
    if not path.exists():
        raise FoveateError(f"there is nothing at {source}: give a folder, an archive or a table")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("images", "targets") if name not in arrays]
            if missing:
                raise FoveateError(
                    f"{source} lacks {' and '.join(missing)}: save it with "
                    "np.savez(path, images=..., targets=...)"
                )
            labels = [str(x) for x in arrays["labels"]] if "labels" in arrays else None
            return arrays["images"], arrays["targets"], labels
    except (ValueError, OSError, EOFError) as error:
        raise FoveateError(
            f"{source} is no .npz file of plain arrays: save it with "
            "np.savez(path, images=..., targets=...)"
        ) from error
