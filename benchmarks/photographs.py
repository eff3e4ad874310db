"""The photographs that benchmarks read: those in the folder PHOTOS, or samples by the checkout."""

import os
import sys
import tarfile
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet_samples.tar"


def photographs(at_most: int | None = None) -> list[bytes]:
    """JPEG files in the order of their names; where there are none, a sentence and the end."""
    if "PHOTOS" in os.environ:
        folder = Path(os.environ["PHOTOS"])
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
        files = [path.read_bytes() for path in paths[:at_most]]
    elif SAMPLES.is_file():
        with tarfile.open(SAMPLES) as archive:
            members = [m for m in archive.getmembers() if m.isfile()][:at_most]
            files = [file.read() for m in members if (file := archive.extractfile(m))]
    else:
        files = []
    return files or sys.exit("no photographs: say PHOTOS=FOLDER, a folder of JPEGs")
