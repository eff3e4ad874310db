"""How fast steps follow each other, and how much of that time they wait for images."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from foveate.data import Batch, Batches


@dataclass
class Pace:
    """What stepping came to in this process; evaluations and checkpoints are not in it.

    Attributes:
        images: seen, over all processes.
        seconds: of steps, with the waiting before them.
        waited: seconds in which a step had no batch to begin with.
    """

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def batches(self, batches: Batches, epoch: int, start: int) -> Iterator[Batch]:
        """An epoch's batches from `start` on, each with a note of how long it let wait."""
        with closing(batches.epoch(epoch, start)) as prepared:  # pyright: ignore[reportArgumentType]
            while True:
                asked = time.monotonic()
                batch = next(prepared, None)
                self.waited += time.monotonic() - asked
                if batch is None:
                    return
                yield batch

    def stepped(self, images: int, seconds: float) -> None:
        """A step was made with so many images, so long after the one before."""
        self.images += images
        self.seconds += seconds

    @property
    def images_per_second(self) -> float:
        """While stepping."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def waited_share(self) -> float:
        """Share of the time of stepping in which there was no batch to step with."""
        return min(1.0, self.waited / max(self.seconds, 1e-9))
