"""Exits on a latent code beat exits on the network's own maps, at the same work."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from foveate.adaptive.early_exit import EarlyExit, exit_macs
from foveate.backbones.dyn_perceiver_nets import ResNetPerceiver
from foveate.backbones.parts import PoolHead
from foveate.backbones.resnet import ResNet
from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.train import evaluate
from foveate.train.dyn_perceiver import ExitLosses
from foveate.vision import Preprocess, VisionModel

Build = Callable[[int], nn.Module]
SIDE, BUDGET = 8, 0.8e6
NET = {"block": "basic", "depths": (1, 1, 1), "stem": "small"}
OURS = {"dims": (16, 32, 64), "latents": 16, "thoughts": (1, 1, 2), "widening": 2, "side": 2}
PLAIN = (20, 40, 80)


class PlainExits(nn.Module):
    """A ResNet with a linear exit after each stage."""

    exits = ("early.0", "early.1", "net.head")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = ResNet(num_classes, dims=PLAIN, **NET)
        self.early = nn.ModuleList(PoolHead(dim, num_classes) for dim in PLAIN[:-1])

    def steps(self):
        return [partial(self._step, i) for i in range(3)]

    def _step(self, index: int, x: Tensor) -> tuple[tuple[Tensor], Tensor]:
        x = self.net.stages[index](self.net.stem(x) if index == 0 else x)
        return (x,), [*self.early, self.net.head][index](x)

    def forward(self, x: Tensor) -> Tensor:
        state = (x,)
        for step in self.steps():
            state, logits = step(*state)
        return logits


@torch.inference_mode()
def accuracy_within_budget(lab: Lab, model: VisionModel) -> float:
    """Test accuracy where held-out images set the thresholds for the budget."""
    splits = lab.data.splits
    stopping = EarlyExit.for_budget(model.eval(), splits["val"], BUDGET)
    batches = Batches(split=splits["test"], batch_size=256, size=SIDE).epoch(0)
    hits = [stopping(batch.images).argmax(1) == batch.targets for batch in batches]
    return torch.cat(hits).double().mean().item()


@claim(
    "dyn_perceiver",
    says="At the same average work, a network whose exits are on a latent code is more accurate "
    "than one whose exits are on its maps.",
    paper="Dyn-Perceiver's exits are more accurate than those of MSDNet and RANet at the same "
    "FLOPs on ImageNet (figure 7)",
    minutes=3.0,
)
def latent_exits_are_better(lab: Lab) -> Finding:
    recipe = lab.recipe(epochs=8.0)
    last: dict[str, list[float]] = {"latent": [], "plain": []}

    def perceiver(classes: int) -> nn.Module:
        return ResNetPerceiver(classes, net=NET, drop_rate=0.0, drop_path_rate=0.0, **OURS)

    def judged(name: str, build: Build, shares: Sequence[float]) -> Callable[[int], float]:
        def accuracy(seed: int) -> float:
            model = lab.trained(build, recipe, seed, SIDE, [ExitLosses(shares)])
            last[name].append(evaluate(model, lab.data.splits["test"]).top1)
            return accuracy_within_budget(lab, model)

        return accuracy

    def costs(build: Build) -> list[float]:
        net = VisionModel(build(10), Preprocess(size=SIDE), [str(i) for i in range(10)])
        return np.round(exit_macs(net) / 1e6, 3).tolist()

    gain = lab.paired_gain(
        judged("latent", perceiver, (0.5, 0.5, 1.0)), judged("plain", PlainExits, (0.5, 0.5))
    )
    return Finding.above(
        0.0,
        gain,
        unit=" points",
        details={
            "mmacs_of_exits": {"latent": costs(perceiver), "plain": costs(PlainExits)},
            "top1_of_last_exit": {name: float(np.mean(found)) for name, found in last.items()},
        },
        note=f"ResNets of three blocks, {lab.source} at {SIDE} pixels, 8 epochs; both keep an "
        f"average of {BUDGET / 1e6} million MACs, by thresholds from held-out images. Plain exits "
        "are linear layers on pooled maps, not MSDNet; the last exits show what all work gives.",
    )
