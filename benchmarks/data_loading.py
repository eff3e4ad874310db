"""Time training batches of photographs against torchvision's and timm's pipelines.

    PHOTOS=FOLDER python benchmarks/data_loading.py

Each side reads the same JPEG files, cuts a random box of 8% to 100%, scales it to 224, mirrors
half of them and gives batches of 64.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from asked import asked
from photographs import photographs
from PIL import Image
from results import Benchmark, Row
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from foveate.data import Augment, Batches, Split
from foveate.data.dataset import ImageFile
from foveate.measure import median_interval

SIZE, BATCH, ROUNDS, MARKS = 224, 64, 12, {1: 2.2, 2: 2.0}
SAYS = f"""Decoding and augmenting photographs to {SIZE} px in batches of {BATCH}: a random box of
8% to 100%, scaled, mirrored at random. Sides take turns epoch by epoch; figures are images a
second, with 99% intervals of their ratio. "One worker" is one thread of ours against a DataLoader
that works in the calling process; "two workers" two of our threads against two worker processes,
which live on from epoch to epoch. PyTorch's own threads are one on all sides. torchvision's PIL
pipeline scales bilinearly, as it comes, and ours bicubically; torchvision and timm give floats,
and ours bytes, which the model normalises."""


class Photos(Dataset):
    """Files through a transform, as torchvision's and timm's datasets read them."""

    def __init__(self, files: list[Path], transform: Callable) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with self.files[index].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB")), 0


def main() -> None:
    asked(__doc__, known=())
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        files = []
        for i, content in enumerate(photographs()):
            files.append(Path(folder, f"{i:05}.jpg"))
            files[-1].write_bytes(content)
        compare(files)


def compare(files: list[Path]) -> None:
    """Time every side on these files."""
    bench = Benchmark(
        __file__,
        title="Loading photographs",
        command="PHOTOS=FOLDER python benchmarks/data_loading.py",
        says=f"{SAYS}\n\n{len(files)} photographs.",
    )
    for workers, mark in MARKS.items():
        sides = {name: loader(files, make(), workers) for name, make in PEERS.items()}
        whole = {"Foveate": ours(files, workers), "Foveate, unreduced": ours(files, workers, False)}
        speeds = epochs_in_turns({**sides, **whole})
        for side in whole:
            for peer in sides:
                low_middle_high = median_interval(speeds[side] / speeds[peer], 0.99)
                is_marked = (peer, side) == (TORCHVISION, "Foveate")
                bench.add(
                    Row(
                        what=f"{side}, {'one worker' if workers == 1 else 'two workers'}",
                        peer=peer,
                        ratio=low_middle_high,
                        mark=mark if is_marked else None,
                        ours=f"{np.median(speeds[side]):.0f} images/s",
                        theirs=f"{np.median(speeds[peer]):.0f} images/s",
                    )
                )


def torchvision_pil() -> Callable:
    return v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), PIL_TO_FLOATS])


def torchvision_tensors() -> Callable:
    """The same with boxes of tensors, which are scaled as bytes by vectorised code."""
    return v2.Compose(
        [v2.PILToTensor(), v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), TO_FLOATS]
    )


def timm_training() -> Callable:
    """timm's own, without colour jitter, which the others have not."""
    return create_transform(SIZE, is_training=True, color_jitter=0.0, interpolation="bicubic")


TO_FLOATS = v2.ToDtype(torch.float32, scale=True)
PIL_TO_FLOATS = v2.Compose([v2.PILToTensor(), TO_FLOATS])
TORCHVISION = "torchvision, PIL"
PEERS = {
    TORCHVISION: torchvision_pil,
    "torchvision, v2 on tensors": torchvision_tensors,
    "timm": timm_training,
}


def loader(files: list[Path], transform: Callable, workers: int) -> Callable[[int], Iterator]:
    """Epochs of a DataLoader; one worker is the process that asks."""
    processes = 0 if workers == 1 else workers
    batches = DataLoader(
        Photos(files, transform),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=processes,
        persistent_workers=processes > 0,
    )
    return lambda epoch: iter(batches)


def ours(files: list[Path], workers: int, reduce: bool = True) -> Callable[[int], Iterator]:
    """Epochs of our batches."""
    split = Split(
        [f.name for f in files], np.zeros(len(files)), [ImageFile(f.read_bytes) for f in files]
    )
    augment = Augment(crop="resized", scale=(0.08, 1.0), reduce=reduce)
    return Batches(split=split, batch_size=BATCH, size=SIZE, augment=augment, workers=workers).epoch


def epochs_in_turns(sides: dict[str, Callable[[int], Iterator]]) -> dict[str, np.ndarray]:
    """Images a second of each side in each round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(-1, ROUNDS):
        for name in list(sides) if epoch % 2 else list(sides)[::-1]:
            begin = time.perf_counter()
            images = sum(len(batch[0]) for batch in sides[name](epoch))
            if epoch >= 0:
                found[name].append(images / (time.perf_counter() - begin))
    return {name: np.array(speeds) for name, speeds in found.items()}


if __name__ == "__main__":
    main()
