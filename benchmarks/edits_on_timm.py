"""Every edit on networks of many kinds: it works, or it refuses and says why.

    python benchmarks/edits_on_timm.py [NETWORK ...] [--edit NAME ...]

With names given, only these are tried again.

An edit works where it changes something, and the edited network, saved, gives the same bits
when another process has loaded it. Edits are those that the package finds by itself; what
one has to come after is found by trying on a small network.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import NETWORKS, Network
from results import Sheet, facts_before
from torch import Tensor, nn

import foveate
from foveate.errors import FoveateError
from foveate.surgery.channels.remove import groups
from foveate.surgery.edit import Covered, Edit
from foveate.surgery.replay import edits

IMAGES = 4
SMALL = NETWORKS["resnet10t"]
LOADING = """
import sys, numpy, torch, foveate
torch.set_num_threads(1)
for line in sys.stdin:
    folder = line.strip()
    try:
        images = torch.from_numpy(numpy.load(folder + "/images.npy"))
        network = foveate.load_network(folder).eval()
        with torch.inference_mode():
            given = network(images).numpy()
        same = numpy.array_equal(given, numpy.load(folder + "/outputs.npy"))
        print("the same" if same else "other numbers", flush=True)
    except Exception as error:
        print(type(error).__name__, str(error).split("\\n")[0], flush=True)
"""


@dataclass(frozen=True)
class Found:
    """What became of one edit of one network.

    Attributes:
        edit, network: their names.
        outcome: `works`, `refuses` or `fails`.
        why: the reason given, or what went wrong.
        changed, parts: how many parts of the network were changed, of those that were looked at.
        seconds: that the edit took.
        after: the edit that was made first, or "".
    """

    edit: str
    network: str
    outcome: str
    why: str = ""
    changed: int = 0
    parts: int = 0
    seconds: float = 0.0
    after: str = ""


class Elsewhere:
    """Another process, which knows of a network only what was saved; it starts when it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.communicate()

    def compute(self, folder: Path) -> str:
        """Whether a saved network gives the outputs beside it: "the same", or what is wrong."""
        if self._process is None:
            command = [sys.executable, "-W", "ignore", "-c", LOADING]
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nothing, text=True
            )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() or "the other process died"


def named_channels(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The first channel of the first group."""
    found = groups(model, images)
    return {"gone": {found[0].name: (0,)}} if found else {}


def most_time(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """A share of the time of convolutions that merging can reach in most networks."""
    return {"share": 0.9}


GIVEN: dict[str, Callable[[nn.Module, Tensor], dict[str, Any]]] = {
    "Remove": named_channels,
    "Deactivate": most_time,
}
"""Fields without which an edit has nothing to do, or too much."""

MODEST = {"steps": 10, "share": 0.25}
"""Fields that any edit gets if it has them: few steps, and something to remove in any network."""


def made(kind: type[Edit], model: nn.Module, images: Tensor) -> Edit:
    """An edit with its defaults, but for `MODEST`, and what has to be given."""
    fields = GIVEN[kind.__name__](model, images) if kind.__name__ in GIVEN else {}
    known = {field.name for field in dataclasses.fields(kind)}
    modest = {name: value for name, value in MODEST.items() if name in known}
    return kind(**{**modest, **fields})


class Trials:
    """One network, and the edited ones that others are made of.

    Args:
        network: as `networks.NETWORKS` has it.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.images = network, network.images(IMAGES)
        self._made: dict[tuple[type[Edit], ...], nn.Module] = {}

    def before(self, kinds: Sequence[type[Edit]]) -> nn.Module:
        """The network after some edits, made once. Raises: FoveateError."""
        key = tuple(kinds)
        if key not in self._made:
            self._made[key] = self.apply(kinds)[0] if kinds else self.network.make()
        return self._made[key]

    def apply(self, kinds: Sequence[type[Edit]]) -> tuple[nn.Module, list[Covered]]:
        """Make edits one after the other: the network, and what the last one did."""
        *first, last = kinds
        model = self.before(first)
        edited, lines = made(last, model, self.images).apply(model, self.images)
        return edited.eval(), lines

    def accepts(self, kinds: Sequence[type[Edit]]) -> bool:
        """Whether edits can be made one after the other."""
        try:
            self.apply(kinds)
        except FoveateError:
            return False
        return True


def befores(
    wanted: Iterable[str], known: dict[str, type[Edit]], network: Network
) -> dict[str, list[type[Edit]]]:
    """For each edit what has to be made first: nothing, or the first edit that it accepts."""
    trials = Trials(network)
    found: dict[str, list[type[Edit]]] = {}
    for name in wanted:
        firsts = () if trials.accepts([known[name]]) else known.values()
        found[name] = next(
            ([first] for first in firsts if trials.accepts([first, known[name]])), []
        )
    return found


def tried(kind: type[Edit], before: list[type[Edit]], trials: Trials, there: Elsewhere) -> Found:
    """Make an edit, save it, and have it loaded elsewhere."""
    who, images = (kind.__name__, trials.network.name), trials.images
    after = " ".join(first.__name__ for first in before)
    try:
        trials.before(before)
        began = time.perf_counter()
        model, lines = trials.apply([*before, kind])
    except FoveateError as error:
        return Found(*who, "refuses", " ".join(str(error).split()), after=after)
    except Exception as error:
        return Found(*who, "fails", said(error), after=after)
    seconds = time.perf_counter() - began
    folder = Path(tempfile.mkdtemp())
    try:
        foveate.save(model, folder)
        np.save(folder / "images.npy", images.numpy())
        with torch.inference_mode():
            outputs = model(images)
        np.save(folder / "outputs.npy", outputs.numpy())
        answer = there.compute(folder)
        if not outputs.isfinite().all():
            answer = "its outputs are not finite"
    except Exception as error:
        answer = said(error)
    finally:
        shutil.rmtree(folder)
    works, changed = answer == "the same", sum(line.changed for line in lines)
    why = "" if works else f"saved and loaded: {answer}"
    return Found(*who, "works" if works else "fails", why, changed, len(lines), seconds, after)


def said(error: Exception) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"


def sheet(found: list[Found]) -> Sheet:
    """A line an edit, and a note for every reason to refuse."""
    names = list(dict.fromkeys(one.network for one in found))
    result = Sheet(
        __file__,
        title="Every edit on timm's networks",
        command="python benchmarks/edits_on_timm.py",
        says=f"All edits that the package has, with their defaults (but few steps, a quarter of "
        "the channels where a share is taken, and nine tenths of the time for `Deactivate`), on "
        f"{len(names)} networks with random weights ({', '.join(names)}). An edit *works* where it "
        "changed something and the edited network, saved as safetensors and JSON and loaded by "
        "another process, gave the same outputs bit for bit; it *refuses* with a sentence that "
        "says why; anything else *fails*. Parts are what the edit looked at (layers, or groups of "
        "channels), over all networks where it works.",
        columns=["edit", "after", "works", "refuses", "fails", "parts changed", "seconds, median"],
        facts=[dataclasses.asdict(one) for one in found],
    )
    by_edit: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_edit[one.edit].append(one)
    for edit, ones in sorted(by_edit.items()):
        count = {o: sum(one.outcome == o for one in ones) for o in ("works", "refuses", "fails")}
        changed, parts = sum(one.changed for one in ones), sum(one.parts for one in ones)
        took = [one.seconds for one in ones if one.outcome == "works"]
        result.rows.append(
            [
                *(edit, ones[0].after),
                *(f"{n}" if n else "" for n in count.values()),
                f"{changed} of {parts}" if parts else "",
                f"{np.median(took):.1f}" if took else "",
            ]
        )
    reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in found:
        if one.outcome != "works":
            reasons[one.edit, one.outcome, one.why].append(one.network)
    for (edit, outcome, why), where in reasons.items():
        result.notes.append(f"{edit} {outcome} on {', '.join(where)}: {why}")
    return result


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("networks", nargs="*")
    asked.add_argument("--edit", action="append")
    given = asked.parse_args()
    known = edits()
    before = befores(given.edit or known, known, SMALL)
    found = recorded() if given.networks or given.edit else {}
    for name in given.networks or NETWORKS:
        trials = Trials(NETWORKS[name])
        with Elsewhere() as there:
            for edit in given.edit or known:
                one = tried(known[edit], before[edit], trials, there)
                found[one.edit, one.network] = one
                print(
                    f"{name} {edit}: {one.outcome} {one.changed}/{one.parts} "
                    f"{one.seconds:.1f}s {one.why}",
                    flush=True,
                )
        sheet(list(found.values())).write()


def recorded() -> dict[tuple[str, str], Found]:
    """What was found before, and stays where it is not tried again."""
    found = [Found(**fact) for fact in facts_before(__file__) or []]
    return {(one.edit, one.network): one for one in found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
