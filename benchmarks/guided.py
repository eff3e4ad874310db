"""What guidance finds for a published CIFAR-10 ResNet-20, at several latencies.

    python benchmarks/guided.py WEIGHTS IMAGES [SECONDS]

WEIGHTS: resnet20 of github.com/akamaster/pytorch_resnet_cifar10 as safetensors, names as published.
IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test. Edits look at training
images. As the network has seen these, too, one half of the test split judges and the other half
tells at last. SECONDS: for each wish, 600 unless given. A wish is a share of the original's time
within a guard of 1 point, once as the network is and once with an epoch of training. The page of
each lies in the system's temporary folder.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cifar_networks import network

from foveate.data import Dataset
from foveate.data import open as open_data
from foveate.guidance import Bench, Wish, guide
from foveate.report.guidance import guidance_page
from foveate.report.html import write_page

RESULTS = Path(__file__).with_suffix(".json")
SHARES = (0.65, 0.5)
EPOCHS = (0.0, 1.0)


def main(weights: str, images: str, seconds: str = "600") -> None:
    data = halved(open_data(images))
    model = network("resnet20", Path(weights), data.labels)
    noise = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    whole = 1e3 * Bench(model, noise, None, seconds=1.0).reference.median
    found: dict[str, Any] = {"milliseconds": whole, "wishes": []}
    for share in SHARES:
        for epochs in EPOCHS:
            wish = Wish(latency_ms=share * whole, budget=float(seconds), tune=epochs, seconds=1.0)
            guided = guide(model, data, wish, told=lambda text: print(f"  {text}", flush=True))
            facts = guided.facts
            keep = ("machine", "asked", "runtime", "judged", "seconds", "met", "held_out", "words")
            rows = [row for row in facts["trials"] if row["front"] or row["chosen"]]
            found["wishes"].append({**{name: facts[name] for name in keep}, "front": rows})
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            name = f"guided-{share:g}-{epochs:g}.html"
            page = write_page(guidance_page(facts, "ResNet-20"), Path(tempfile.gettempdir(), name))
            print("\n".join([*guided.words, str(page)]))


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
    main(*sys.argv[1:])
