"""Edited networks as exported files: time, size and accuracy against the float export's.

    python benchmarks/exported.py WEIGHTS IMAGES [EDIT ...]

WEIGHTS: resnet20 of github.com/akamaster/pytorch_resnet_cifar10 as safetensors, names as published.
IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from asked import asked
from cifar_networks import CALIBRATION, calibration, network
from results import Benchmark, Row, interval
from torch import nn

from foveate.data import Dataset
from foveate.data import open as open_data
from foveate.deploy.executed import Executed
from foveate.deploy.formats import save_openvino, to_openvino, write_onnx
from foveate.deploy.images import split_input
from foveate.deploy.runtimes import Logits, OnnxRuntime, OpenVinoRuntime, TorchRuntime, executed
from foveate.measure import mean_interval, paired
from foveate.surgery.channels.remove import Narrow
from foveate.surgery.edit import Edit
from foveate.surgery.exported import exported_layers
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store
from foveate.vision import Preprocess, VisionModel

CHUNK = 128
BATCHES = (1, 32)
EDITS: dict[str, list[Edit]] = {
    "Quantise": [Quantise()],
    "Simulate, Store": [Simulate(), Store()],
    "Simulate, a scale a layer": [Simulate(per_channel=False)],
    "Simulate, affine weights": [Simulate(symmetric=False)],
    "4-bit weights, AdaRound, Store": [Simulate(weight_bits=4), AdaRound(), Store()],
    "4-bit activations": [Simulate(activation_bits=4)],
    "weights alone in 4 bits": [Store()],
    "Narrow by half": [Narrow(share=0.5)],
}
TIMM = "mobilenetv2_100"
TIMM_EDITS = ("Quantise", "Simulate, Store", "Narrow by half")
SAYS = f"""A published ResNet-20 of CIFAR-10, and timm's {TIMM} (depthwise layers) with random
weights, at 128. Edits are calibrated on {CALIBRATION} training images; nothing is tuned after.
Each is written as ONNX and as OpenVINO IR and runs from that file, in turns with the float export
of the network in the same runtime with the same threads, both leanest graphs in float32 but for
what is quantised. `in integers`: quantised layers that the runtime's own optimised graph computes
in integers. Accuracy is the file's on the 10,000 test images, with a paired 95% interval of what
is lost; for random weights, agreement with the edited model in PyTorch on 1,000 of them."""


@dataclass(frozen=True)
class File:
    """An exported network: how it runs, how large it is, and what its quantised layers do."""

    run: Logits
    megabytes: float
    layers: Executed
    logits: np.ndarray

    def said(self) -> str:
        total = len(self.layers.integers) + len(self.layers.floats)
        inside = f", {len(self.layers.integers)} of {total} in integers" if total else ""
        return f"{self.megabytes:.2f} MB{inside}"


def main(weights: str, source: str, *only: str) -> None:
    data = open_data(source)
    bench = Benchmark(
        __file__,
        title="Exported edits",
        command="python benchmarks/exported.py WEIGHTS IMAGES",
        says=SAYS,
        keep=bool(only),
    )
    resnet = network("resnet20", Path(weights), data.labels)
    compare(bench, "resnet20", resnet, data, len(data.splits["test"]), only or tuple(EDITS))
    torch.manual_seed(0)
    mobile = VisionModel(timm.create_model(TIMM, num_classes=10), Preprocess(size=128), data.labels)
    with torch.no_grad():  # the statistics of its norms
        for batch in calibration(data, mobile.preprocess.size)[:2]:
            mobile.train()(batch)
    compare(bench, TIMM, mobile.eval(), data, 1000, [e for e in TIMM_EDITS if e in (only or EDITS)])


def compare(
    bench: Benchmark,
    name: str,
    model: VisionModel,
    data: Dataset,
    judged: int,
    edits: tuple[str, ...] | list[str],
) -> None:
    """Rows for each edit, runtime and batch size."""
    test = data.splits["test"]
    chosen = np.linspace(0, len(test) - 1, judged).astype(int)
    targets, parts = test.targets[chosen], np.array_split(chosen, -(-judged // CHUNK))
    images = [split_input(test, part, model.preprocess) for part in parts]
    looked_at = calibration(data, model.preprocess.size)
    with tempfile.TemporaryDirectory() as folder:
        floats = exported(model, images, Path(folder, "float"))
        for text in edits:
            edited: nn.Module = model
            for edit in EDITS[text]:
                edited, _ = edit.apply(edited.eval(), looked_at)
            assert isinstance(edited, VisionModel)
            plain = np.concatenate([TorchRuntime(edited.eval())(part) for part in images])
            files = exported(edited, images, Path(folder, "edited"))
            for runtime, file in files.items():
                before = floats[runtime]
                same = (file.logits.argmax(1) == plain.argmax(1)).mean()
                note = f"same label as in PyTorch: {same:.2%}"
                if name != TIMM:
                    right = [100.0 * (f.logits.argmax(1) == targets) for f in (before, file)]
                    lost, low, high = mean_interval(right[0] - right[1])
                    note += f"; top-1 {right[1].mean():.2f}%, {lost:.2f} points lost"
                    note += f" ({low:.2f} to {high:.2f})"
                for batch in BATCHES:
                    calls = [partial(f.run, images[0][:batch]) for f in (before, file)]
                    ratio = paired(*calls, seconds=2.0)
                    what = f"{name}, {text}, {runtime}, batch {batch}"
                    row = Row(
                        what=what,
                        peer=f"float export, {runtime}",
                        ratio=interval(ratio),
                        ours=file.said(),
                        theirs=before.said(),
                        note=note,
                    )
                    bench.add(row)


def exported(model: VisionModel, images: list[np.ndarray], folder: Path) -> dict[str, File]:
    """Both files of a model, and what they say of images."""
    folder.mkdir(exist_ok=True)
    path, layers = folder / "model.onnx", exported_layers(model)
    write_onnx(model, path)
    save_openvino(to_openvino(path), path.with_suffix(".xml"))
    runs = {
        "ONNX Runtime": OnnxRuntime(path),
        "OpenVINO": OpenVinoRuntime(path.with_suffix(".xml")),
    }
    found = {}
    for name, run in runs.items():
        kinds = (".onnx",) if name == "ONNX Runtime" else (".xml", ".bin")
        size = sum(path.with_suffix(kind).stat().st_size for kind in kinds) / 1e6
        logits = np.concatenate([run(part) for part in images])
        found[name] = File(run, size, executed(run, layers), logits)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*asked(__doc__, needed=("WEIGHTS", "IMAGES"), known=EDITS))
