"""Where images lie: folders, archives read in place, tables. Each lists items and reads bytes."""

import csv
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from foveate.errors import FoveateError, require

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Item:
    """One file of a source. `fault` says why it cannot be used, where that is known already."""

    name: str
    label: str | None
    split: str | None
    read: Callable[[], bytes]
    fault: str | None = None


def find_items(source: Path) -> list[Item]:
    """The files of a folder, archive or table.

    Raises: FoveateError if there is nothing there that this knows how to read.
    """
    try:
        return _find(source)
    except PermissionError as error:
        raise FoveateError(
            f"cannot read {error.filename or source}: ask for permission to read it"
        ) from error


def _find(source: Path) -> list[Item]:
    if not source.exists():
        raise FoveateError(
            f"there is nothing at {source}: give a folder of class folders, an archive, "
            "a CSV or Parquet table, an .npz file, or the word digits"
        )
    if source.is_dir():
        return _items_of_folder(source)
    suffix = source.suffix.lower()
    if suffix == ".csv":
        return _items_of_table(_rows_of_csv(source), source)
    if suffix in (".parquet", ".pq"):
        return _items_of_table(_rows_of_parquet(source), source)
    if suffix == ".zip":
        return _items_of_zip(source)
    if suffix in (".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz"):
        return _items_of_tar(source)
    raise FoveateError(
        f"{source} is neither a folder nor a .zip, .tar(.gz), .csv, .parquet or .npz file: "
        "put the images of each class in a folder of its own and give the folder above"
    )


# ---------------------------------------------------------------- folders


def _items_of_folder(root: Path) -> list[Item]:
    def unreadable(error: OSError) -> None:
        raise error

    found = {}
    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not _is_litter(name))
        for name in sorted(files):
            path = Path(folder, name)
            if not _is_litter(name):
                found[path.relative_to(root).as_posix()] = path.read_bytes
    return _items_by_path(found, root)


# ---------------------------------------------------------------- archives


def _items_of_zip(path: Path) -> list[Item]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise FoveateError(f"{path} is no readable zip archive ({error}): make it anew") from error
    members = [m for m in archive.infolist() if not m.is_dir()]
    found = {m.filename: (lambda m=m: archive.read(m)) for m in members}
    return _items_by_path(found, path)


def _items_of_tar(path: Path) -> list[Item]:
    """Members are read at their offsets; a compressed tar is decompressed once, into one
    temporary file that goes when the items go."""
    try:
        with _decompress(path) as plain, tarfile.open(fileobj=plain, mode="r:") as archive:
            members = [m for m in archive if not m.isdir()]
            content = _Content(plain)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise FoveateError(f"{path} is no readable tar archive ({error}): make it anew") from error

    def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
        return lambda: content.read(member.offset_data, member.size)

    found = {m.name: reader(m) for m in members if m.isfile()}
    links = {m.name: "a link, not a file" for m in members if not m.isfile()}
    return _items_by_path(found, path, links)


class _Content:
    """The bytes of an open file, for many threads at once, until nothing needs them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = os.dup(file.fileno())

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        os.close(self._descriptor)


def _decompress(path: Path) -> IO[bytes]:
    """The tar itself, open; from a temporary file where it was compressed."""
    if tarfile.is_tarfile(path):
        import bz2
        import gzip
        import lzma

        for opener in (gzip.open, bz2.open, lzma.open):
            try:
                with opener(path, "rb") as packed:
                    packed.read(1)
                    packed.seek(0)
                    plain = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the items
                    shutil.copyfileobj(packed, plain, 1 << 20)
                    plain.seek(0)
                    return plain
            except (gzip.BadGzipFile, lzma.LZMAError):
                continue
            except OSError as error:
                if "Invalid data stream" not in str(error):
                    raise
        return path.open("rb")
    raise tarfile.ReadError("not a tar archive")


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


# ---------------------------------------------------------------- what a path means


def _items_by_path(
    found: dict[str, Callable[[], bytes]], source: Path, faults: dict[str, str] | None = None
) -> list[Item]:
    """Read split and label off each path: `[split/]label/.../file`, below any common folder."""
    parts = {}
    for name in [*found, *(faults or {})]:
        path = PurePosixPath(name.replace("\\", "/"))
        clean = tuple(p for p in path.parts if p not in (".", "..", "/"))
        if clean and not any(_is_litter(p) for p in clean):
            parts[name] = clean
    if not parts:
        raise FoveateError(
            f"{source} holds no files: put the images of each class in a folder of its own"
        )
    above = _common_folders(list(parts.values()))
    below = {name: clean[above:] for name, clean in parts.items()}
    has_splits = any(
        len(p) > 2 and SPLIT_NAMES.get(p[0].lower()) == "train" for p in below.values()
    )
    items = []
    for name, path in sorted(below.items()):
        split, label, fault = _read_path(path, has_splits)
        fault = (faults or {}).get(name) or fault
        items.append(Item(name, label, split, found.get(name, bytes), fault))
    if all(item.label is None for item in items):
        raise FoveateError(
            f"{source} has files but no class folders: put the images of each class in a "
            "folder of its own, named after the class"
        )
    return items


def _common_folders(paths: list[tuple[str, ...]]) -> int:
    """How many leading folders all paths share, class and split folders left out."""
    above = 0
    while (
        all(len(p) - above > 2 for p in paths)
        and len({p[above] for p in paths}) == 1
        and paths[0][above].lower() not in SPLIT_NAMES
    ):
        above += 1
    return above


def _read_path(
    path: tuple[str, ...], has_splits: bool
) -> tuple[str | None, str | None, str | None]:
    """Split, label and fault that a path below the common folders tells."""
    if not has_splits:
        return (None, path[0], None) if len(path) > 1 else (None, None, "lies in no class folder")
    split = SPLIT_NAMES.get(path[0].lower())
    if split is None:
        return None, None, "lies beside the train folder, in no split"
    if len(path) < 3:
        return split, None, "lies in no class folder"
    return split, path[1], None


# ---------------------------------------------------------------- tables


def _rows_of_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FoveateError(f"{path} is no readable CSV ({error}): save it as UTF-8 CSV") from error


def _rows_of_parquet(path: Path) -> list[dict[str, Any]]:
    arrow = require("pyarrow", "parquet")
    parquet = require("pyarrow.parquet", "parquet")
    try:
        return parquet.read_table(path).to_pylist()
    except (arrow.ArrowInvalid, OSError) as error:
        raise FoveateError(f"{path} is no readable Parquet table: make it anew") from error


def _items_of_table(rows: Iterable[dict[str, Any]], path: Path) -> list[Item]:
    rows = list(rows)
    if not rows:
        raise FoveateError(f"{path} has no rows: it needs the columns path and label")
    missing = [column for column in ("path", "label") if column not in rows[0]]
    if missing:
        raise FoveateError(
            f"{path} lacks the column {' and '.join(missing)} (it has "
            f"{', '.join(str(c) for c in rows[0])}): name the columns path, label and, "
            "if you like, split"
        )
    return [_item_of_row(row, path.parent) for row in rows]


def _item_of_row(row: dict[str, Any], folder: Path) -> Item:
    name, label, split = (_text(row.get(column)) for column in ("path", "label", "split"))
    fault = None
    if not name:
        fault = "the row has no path"
    elif not label:
        fault = "the row has no label"
    elif split and split.lower() not in SPLIT_NAMES:
        fault = f"the row's split is {split!r}, not train, val or test"
    known = SPLIT_NAMES.get(split.lower()) if split else None
    return Item(name or "(no path)", label or None, known, Path(folder, name).read_bytes, fault)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
