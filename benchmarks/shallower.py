"""What a published CIFAR-10 ResNet-20 costs and gains when its convolutions are merged.

    python benchmarks/shallower.py WEIGHTS IMAGES [EPOCHS]

WEIGHTS: resnet20 of github.com/akamaster/pytorch_resnet_cifar10 as safetensors, names as published.
IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test. For each share of the
convolutions' time in OpenVINO, activations are chosen with 512 training images, the network is
tuned for EPOCHS (1 by default) and merged. The network that keeps them all is tuned as long. Points
lost are paired over the test images, times of one image interleaved, each with its interval.
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cifar_networks import calibration, network, right
from torch import nn

from foveate.data import Augment
from foveate.data import open as open_data
from foveate.deploy.formats import to_openvino, write_onnx
from foveate.deploy.layers import deployed_seconds
from foveate.deploy.runtimes import OpenVinoRuntime
from foveate.measure import count, machine, mean_interval, paired
from foveate.surgery.depth_compression_dp.deactivate import Deactivate
from foveate.surgery.depth_compression_dp.merge_runs import MergeRuns
from foveate.surgery.lineage import lineage
from foveate.train import Recipe, train
from foveate.vision import VisionModel

RESULTS = Path(__file__).with_suffix(".json")
SHARES, BATCH = (0.9, 0.8), 128


def main(weights: str, images: str, epochs: str = "1") -> None:
    data = open_data(images)
    model = network("resnet20", Path(weights), data.labels)
    looked_at = calibration(data)
    before = right(model, data)
    found: dict[str, Any] = {"machine": machine(), "epochs": float(epochs), "rows": {}}
    found["top1_published"] = 100 * before.mean()
    published = copy.deepcopy(model)
    tune(model, data, float(epochs))
    before, whole = right(model, data), deployed(model)
    found["top1_tuned"] = 100 * before.mean()
    x = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    print(f"every activation kept: {found['top1_tuned']:.2f}%")
    for share in SHARES:
        edit = Deactivate(share=share, longest=4, latency=deployed_seconds)
        shallow, _ = edit.apply(published, looked_at)
        plan = lineage(shallow)[-1]["plan"]
        untuned = found["top1_published"] - 100 * right(shallow, data).mean()
        tune(shallow, data, float(epochs))
        merged, _ = MergeRuns().apply(shallow)
        lost = mean_interval(100 * (before - right(merged, data)))
        less = deployed(merged)
        ratio = paired(partial(whole, x), partial(less, x), seconds=10.0)
        found["rows"][f"{share:g}"] = {
            "points_lost": lost,
            "points_lost_before_tuning": untuned,
            "times_as_fast": [ratio.median, ratio.low, ratio.high],
            "table_seconds": plan["seconds"],
            "convolutions": [layers(model), layers(merged)],
            "macs": [count(m.eval(), torch.from_numpy(x)).macs for m in (model, merged)],
            "runs": [piece["convs"] for piece in plan["pieces"]],
        }
        print(
            f"{share:.0%} of the time: {lost[0]:.2f} points lost ({lost[1]:.2f} to {lost[2]:.2f}), "
            f"{ratio.median:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f})"
        )
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


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


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
