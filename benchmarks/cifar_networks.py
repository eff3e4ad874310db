"""Two published CIFAR-10 networks, real images for them, and how they are judged.

Weights: resnet20 and resnet32 of github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause) as
safetensors, names as published. Images: CIFAR-10 as `foveate.data.open` takes it, with splits
train and test; a part of train becomes val. The test split chooses nothing.
"""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.data import Batches, Dataset
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

BLOCKS = {"resnet20": 3, "resnet32": 5}
"""Blocks of each stage, by name."""
CALIBRATION, BATCH = 1024, 128


def network(name: str, weights: Path, labels: list[str]) -> VisionModel:
    """A trained network: `weights` is its file, or the folder of NAME_cifar10.safetensors."""
    file = weights / f"{name}_cifar10.safetensors" if weights.is_dir() else weights
    model = VisionModel(ResNet(BLOCKS[name]), Preprocess(size=32), labels)
    missing, unexpected = model.backbone.load_state_dict(load_file(file), strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise ValueError(f"{file} is not of {name}: {[*unexpected, *missing][:3]}")
    return model.eval()


def calibration(data: Dataset, size: int = 32) -> list[Tensor]:
    """Training images that edits may look at, in batches: the same every time."""
    split = data.splits["train"]
    chosen = np.linspace(0, len(split) - 1, CALIBRATION).astype(int)
    batches = Batches(split=split.subset(chosen), batch_size=BATCH, size=size)
    return [batch.images for batch in batches.epoch(0)]


def right(model: VisionModel, data: Dataset) -> np.ndarray:
    """For each test image whether the model is right, 0.0 or 1.0."""
    judged = evaluate(model, data.splits["test"])
    return (judged.logits.argmax(1) == judged.targets).astype(np.float64)


class ResNet(nn.Module):
    """Three stages of basic blocks; shortcuts take every second pixel and add zeros.

    Args:
        blocks: of each stage.
        classes: that are told apart.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(blocks)))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        stride, self.more = out // dim, (out - dim) // 2
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return F.relu(x + y)
