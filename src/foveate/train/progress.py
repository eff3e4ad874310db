"""What a person sees while a model trains."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_A_LINE = 5.0
"""Where there is no terminal, lines do not come faster than this."""


class Bar:
    """A bar with loss, accuracy and speed; a line an evaluation where there is no terminal.

    Args:
        shown: False to say nothing.
    """

    def __init__(self, shown: bool) -> None:
        self._console = Console(quiet=not shown, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]training[/bold]"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  epoch {task.fields[epoch]:.1f}"),
            TextColumn("loss {task.fields[loss]:.3f}  top-1 {task.fields[top1]}"),
            TextColumn("{task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            transient=True,
        )
        self._printed = time.monotonic()
        self._task = self._progress.add_task(
            "", total=1.0, epoch=0.0, loss=0.0, top1="–", speed=0.0
        )

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, progress: float, epoch: float, loss: float, speed: float) -> None:
        """A step was logged."""
        self._progress.update(self._task, completed=progress, epoch=epoch, loss=loss, speed=speed)

    def evaluated(self, epoch: float, loss: float, top1: float, *, last: bool) -> None:
        """An evaluation was made. Where there is no terminal, some are printed and the last is."""
        self._progress.update(self._task, top1=f"{top1:.2%}")
        now = time.monotonic()
        if not self._console.is_terminal and (last or now - self._printed > SECONDS_A_LINE):
            self._printed = now
            self._console.print(
                f"epoch {epoch:.1f}: validation loss {loss:.4f}, top-1 {top1:.2%}", soft_wrap=True
            )
