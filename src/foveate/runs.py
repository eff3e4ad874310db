"""A run is a folder: what was asked, what was found, and how far it has come.

`run.json` is written atomically after every stage, so a run that was killed at
any instant goes on where it stood when the same command is given again.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError


class Run:
    """The folder of one `foveate fit`.

    Args:
        folder: where the run lives; made if missing.
        asked: what was asked for, JSON-ready; a folder that holds a run of
            another request is refused.
        heading: what else a new `run.json` says at its top (version, command, machine).

    Raises: FoveateError if the folder cannot be written, is in use by another
        process, is not a run's, or holds a run of another request.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], heading: dict[str, Any]) -> None:
        self.folder = folder
        self._path = folder / "run.json"
        self._prepare()
        self.facts: dict[str, Any] = {}
        try:
            self._begin_or_go_on(asked, heading)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def is_done(self) -> bool:
        """Whether the last stage has been reached."""
        return "report" in self.facts

    def minutes_spent(self) -> float:
        """Minutes that the stages have taken so far, over all processes that worked on them."""
        return self.facts["minutes"].get("total", 0.0)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: from the folder if it was done before, else by doing it now."""
        if name not in self.facts:
            before = self.facts["minutes"].get(name, 0.0)
            start = time.monotonic()
            try:
                result = work()
            finally:
                spent = self.facts["minutes"]
                spent[name] = before + (time.monotonic() - start) / 60
                spent["total"] = sum(v for k, v in spent.items() if k != "total")
            self.facts[name] = result
            self.save()
        return self.facts[name]

    def save(self) -> None:
        """Write `run.json` so that it is whole at every instant."""
        write_atomically(self._path, json.dumps(self.facts, indent=1, ensure_ascii=False))

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except FileExistsError as error:
            raise FoveateError(
                f"{self.folder} is a file, and a run needs a folder: give another --out"
            ) from error
        except OSError as error:
            raise FoveateError(
                f"cannot write to {self.folder} ({error.strerror}): give an --out that you may "
                "write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise FoveateError(
                f"another process is working in {self.folder}: wait for it, or give another --out"
            ) from error

    def _begin_or_go_on(self, asked: dict[str, Any], heading: dict[str, Any]) -> None:
        self.facts = self._read() if self._path.exists() else {}
        if not self.facts:
            self._refuse_foreign_files()
            self.facts = {**heading, "asked": asked, "minutes": {}}
            self.save()
        elif differing := _differences(self.facts["asked"], asked):
            raise FoveateError(
                f"{self.folder} holds a run with {differing}: give the same options to go on "
                "with it, or another --out to begin anew"
            )

    def _read(self) -> dict[str, Any]:
        try:
            facts = json.loads(self._path.read_text())
            if not isinstance(facts["asked"], dict) or not isinstance(facts["minutes"], dict):
                raise TypeError("not the facts of a run")
            return facts
        except (ValueError, KeyError, TypeError) as error:
            raise FoveateError(
                f"{self._path} is damaged: move {self.folder} away, or give another --out"
            ) from error

    def _refuse_foreign_files(self) -> None:
        foreign = [p.name for p in self.folder.iterdir() if p.name != ".lock"]
        if foreign:
            raise FoveateError(
                f"{self.folder} is not empty ({', '.join(sorted(foreign)[:3])}) and holds no run: "
                "give an empty or new folder as --out"
            )


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part.

    Raises: FoveateError if the disk is full or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FoveateError(
            f"cannot write {path} ({error.strerror}): make room or give another --out; "
            "what was there before is untouched"
        ) from error


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Words for the options that differ, or an empty string."""
    names = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {before.get(name)!r} (now {now[name]!r})" for name in names)
