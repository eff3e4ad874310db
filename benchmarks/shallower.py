"""What a published CIFAR-10 ResNet-20 costs and gains when its convolutions are merged.

    python benchmarks/shallower.py WEIGHTS IMAGES [EPOCHS]

WEIGHTS and IMAGES: as cifar_networks.py says. EPOCHS: of tuning, 1 by default.
"""

import copy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from asked import asked
from cifar_networks import CALIBRATION, calibration, network, right
from results import Sheet, interval, show_points, show_ratio
from torch import nn

from foveate.data import Augment
from foveate.data import open as open_data
from foveate.deploy.formats import to_openvino, write_onnx
from foveate.deploy.layers import deployed_seconds
from foveate.deploy.runtimes import OpenVinoRuntime
from foveate.measure import count, mean_interval, paired
from foveate.surgery.depth_compression_dp.deactivate import Deactivate
from foveate.surgery.depth_compression_dp.merge_runs import MergeRuns
from foveate.surgery.lineage import lineage
from foveate.train import Recipe, train
from foveate.vision import VisionModel

SHARES, BATCH = (0.9, 0.8), 128
SAYS = f"""\
A published ResNet-20 of CIFAR-10. For each share of the convolutions' time in OpenVINO, the
activations to keep are chosen with {CALIBRATION:,} training images and a table of times measured
here; then the network is tuned and its convolutions are merged. The network that keeps every
activation is tuned as long, and points lost are those of it, paired over the 10,000 test images,
with a 95% interval. Speed: one image in OpenVINO, interleaved calls, with a 99% interval."""


def main(weights: str, images: str, epochs: str = "1") -> None:
    data = open_data(images)
    model = network("resnet20", Path(weights), data.labels)
    looked_at = calibration(data)
    before = right(model, data)
    sheet = Sheet(
        __file__,
        title="Fewer and larger convolutions",
        command="python benchmarks/shallower.py WEIGHTS IMAGES",
        says=f"{SAYS} Tuning: {float(epochs):g} epochs.",
        columns=[
            "of the time",
            "convolutions",
            "MACs",
            "points lost untuned",
            "points lost",
            "speed",
        ],
        facts=[],
    )
    published = copy.deepcopy(model)
    tune(model, data, float(epochs))
    tuned, whole = right(model, data), deployed(model)
    x = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    sheet.add("all of it", f"{layers(model)}", millions(model), "", "", "")
    for share in SHARES:
        edit = Deactivate(share=share, longest=4, latency=deployed_seconds)
        shallow, _ = edit.apply(published, looked_at)
        plan = lineage(shallow)[-1]["plan"]
        at_once = mean_interval(100 * (before - right(shallow, data)))
        tune(shallow, data, float(epochs))
        merged, _ = MergeRuns().apply(shallow)
        lost = mean_interval(100 * (tuned - right(merged, data)))
        ratio = interval(paired(partial(whole, x), partial(deployed(merged), x), seconds=10.0))
        sheet.facts.append(
            {
                "share": share,
                "points_lost": lost,
                "points_lost_before_tuning": at_once,
                "times_as_fast": ratio,
                "table_seconds": plan["seconds"],
                "runs": [piece["convs"] for piece in plan["pieces"]],
            }
        )
        losses = show_points(at_once), show_points(lost)
        sheet.add(f"{share:.0%}", f"{layers(merged)}", millions(merged), *losses, show_ratio(ratio))


def tune(model: nn.Module, data: Any, epochs: float) -> None:
    """Train a little more, in place."""
    assert isinstance(model, VisionModel)
    recipe = Recipe(
        epochs=epochs,
        batch_size=BATCH,
        optimizer="sgd",
        learning_rate=0.02,
        augment=Augment(shift=4, flip=True),
        evaluate_every=1e9,
        checkpoint_every=1e9,
    )
    with TemporaryDirectory() as folder:
        train(model, data, recipe, Path(folder), progress=False)


def deployed(model: nn.Module) -> OpenVinoRuntime:
    """A model as OpenVINO runs it, norms folded."""
    assert isinstance(model, VisionModel)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model.eval(), path)
        return OpenVinoRuntime(to_openvino(path))


def millions(model: nn.Module) -> str:
    """Multiply-adds of an image."""
    return f"{count(model.eval(), torch.rand(1, 3, 32, 32)).macs / 1e6:.1f} M"


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*asked(__doc__, needed=("WEIGHTS", "IMAGES")))
