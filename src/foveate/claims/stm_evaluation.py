"""The frame decides more than the mixer, yet mixers differ."""

from functools import partial

import numpy as np
from torch import nn

from foveate.backbones.stm_evaluation import Mixer, Skeleton, at_equal, depthwise
from foveate.claims import Finding, Lab, claim
from foveate.measure import bootstrap
from foveate.ops.inceptionnext import InceptionDepthwise
from foveate.ops.pflayer import MaxPoolMixer

PARAMS, SIDE, EPOCHS = 60_000, 8, 5.0
DEPTHS = (1, 1, 1)


MIXERS: dict[str, Mixer] = {
    "max pool 3": MaxPoolMixer,
    "depthwise 3": partial(depthwise, 3),
    "depthwise 7": partial(depthwise, 7),
    "inception": partial(InceptionDepthwise, band_kernel=5, branch_ratio=1 / 4),
}
FRAMES = {
    "as it is": {},
    "one stage": {"depths": (3,), "dims": (48,)},
    "no channel mixing to speak of": {"mlp_ratio": 1},
    "patches of two, two stages": {"patch": 2, "depths": (1, 2), "dims": (32, 64)},
}


@claim(
    "stm_evaluation",
    says="Accuracy varies more over frames with one mixer than over mixers in one frame.",
    paper="most of the gains come from network- and block-level design; mixers still differ",
    minutes=4.0,
)
def frames_matter_more(lab: Lab) -> Finding:
    recipe = lab.recipe(epochs=EPOCHS)
    mixers = {name: partial(_equal, mixer) for name, mixer in MIXERS.items()}
    frames = {name: partial(_framed, changes) for name, changes in FRAMES.items()}
    table: list[list[float]] = []
    while len(table) < 3 or (len(table) < 12 and lab.minutes_left > 0):
        seed = lab.seed + len(table)
        builders = [*mixers.values(), *frames.values()]
        table.append([lab.accuracy(build, recipe, seed, SIDE) for build in builders])
    tops = 100 * np.array(table)
    means = tops.mean(axis=0)
    return Finding.above(
        0.0,
        bootstrap(tops, _excess),
        unit=" points",
        details={
            "mixers": dict(zip(mixers, means[: len(mixers)].tolist(), strict=True)),
            "frames": dict(zip(frames, means[len(mixers) :].tolist(), strict=True)),
            "seeds": len(tops),
        },
        note=f"Deviation of mean accuracies over {len(frames)} frames less that over "
        f"{len(mixers)} mixers at equal parameters, {len(tops)} seeds, {lab.source}, {EPOCHS:g} "
        "epochs. Attention by windows and deformable convolutions are not among the mixers yet.",
    )


def _equal(mixer: Mixer, classes: int) -> nn.Module:
    return at_equal(
        mixer, PARAMS, "params", size=SIDE, num_classes=classes, multiple=4, depths=DEPTHS
    )


def _framed(changes: dict, classes: int) -> nn.Module:
    settings = {"depths": DEPTHS, "dims": (16, 32, 64), **changes}
    return Skeleton(MIXERS["depthwise 3"], classes, **settings)


def _excess(draws: np.ndarray) -> np.ndarray:
    """Over resamples (R, seeds, mixers then frames): (R,)."""
    means = draws.mean(axis=1)
    return means[:, len(MIXERS) :].std(axis=1) - means[:, : len(MIXERS)].std(axis=1)
