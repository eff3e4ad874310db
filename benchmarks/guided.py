"""What guidance finds for a published CIFAR-10 ResNet-20, at several latencies.

    python benchmarks/guided.py WEIGHTS IMAGES [SECONDS]

WEIGHTS and IMAGES: as cifar_networks.py says. SECONDS: for each wish, 600 unless given. The page of
each wish lies in the system's temporary folder.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from asked import asked
from cifar_networks import network
from results import Sheet, show_points

from foveate.data import Dataset
from foveate.data import open as open_data
from foveate.guidance import Bench, Wish, guide
from foveate.report.guidance import guidance_page
from foveate.report.html import write_page

SHARES = (0.65, 0.5)
EPOCHS = (0.0, 1.0)
SAYS = """\
What `foveate compress --auto` chooses for a published ResNet-20 of CIFAR-10 that is to take a share
of the time of the original's program, within a guard of 1 point, as it is and with an epoch of
training for what removes channels. Edits look at training images. As the network has seen these,
too, one half of the test split judges, and the other half, which chose nothing, tells at last.
Points lost are paired over images, with a 95% interval."""
KEPT = ("asked", "runtime", "judged", "seconds", "met", "held_out", "words")


def main(weights: str, images: str, seconds: str = "600") -> None:
    data = halved(open_data(images))
    model = network("resnet20", Path(weights), data.labels)
    noise = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    whole = 1e3 * Bench(model, noise, None, seconds=1.0).reference.median
    sheet = Sheet(
        __file__,
        title="Guided compression",
        command="python benchmarks/guided.py WEIGHTS IMAGES",
        says=f"{SAYS} At most {float(seconds):g} seconds for each.",
        columns=["asked", "tuned", "chosen", "latency", "points lost", "on the other half", "size"],
        facts=[],
    )
    for share in SHARES:
        for epochs in EPOCHS:
            wish = Wish(latency_ms=share * whole, budget=float(seconds), tune=epochs, seconds=1.0)
            guided = guide(model, data, wish, told=lambda text: print(f"  {text}", flush=True))
            facts = guided.facts
            front = [row for row in facts["trials"] if row["front"] or row["chosen"]]
            sheet.facts.append({**{name: facts[name] for name in KEPT}, "front": front})
            sheet.notes.append(f"{share:.0%}, {epochs:g} epochs: {' '.join(guided.words)}")
            best = next(row for row in front if row["chosen"])
            figures, held_out = best["figures"], facts["held_out"]
            sheet.add(
                f"{share:.0%} of {whole:.3f} ms",
                f"{epochs:g} epochs",
                best["name"],
                f"{figures['latency_ms']['median']:.3f} ms{'' if guided.met else ', not met'}",
                lost(figures["lost"]),
                lost(held_out),
                f"{figures['bytes'] / 1e3:.0f} kB",
            )
            name = f"guided-{share:g}-{epochs:g}.html"
            page = write_page(guidance_page(facts, "ResNet-20"), Path(tempfile.gettempdir(), name))
            print("\n".join([*guided.words, str(page)]))


def lost(found: dict[str, Any]) -> str:
    """Points lost, as facts hold them."""
    return show_points((found["points"], found["low"], found["high"]))


def halved(data: Dataset) -> Dataset:
    """With one half of the test split to judge by, chosen at random, and the other to tell."""
    test = data.splits["test"]
    order = np.random.default_rng(0).permutation(len(test))
    halves = np.array_split(order, 2)
    data.splits |= {
        name: test.subset(half) for name, half in zip(("val", "test"), halves, strict=True)
    }
    return data


if __name__ == "__main__":
    main(*asked(__doc__, needed=("WEIGHTS", "IMAGES")))
