"""Heads that can do nothing exactly need no outliers to do it."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.quantizable_transformers import ClipSoftmax, GateAttention, outliers
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS = 8, 5
TRAINED = {"epochs": 20.0, "batch_size": 32, "learning_rate": 3e-3}
WAYS = {
    "vanilla": None,
    "clipped": ClipSoftmax(alpha=0.6),
    "gated": GateAttention(opened=0.25),
}
NAIVE = {"activation_range": "minmax", "weight_range": "minmax", "per_channel": False}


@claim(
    "quantizable_transformers",
    says="In a ViT trained with clipped softmax, the kurtosis of what attention gives is lower "
    "than in one trained plainly.",
    paper="ViT-S/16: kurtosis 1018 to 25.6, infinity norm 359 to 69, top-1 80.8 and 80.2 in "
    "float, 69.2 and 78.7 in W8A8 (table 7, without a norm behind the patches)",
    minutes=3.0,
)
def clipping_spares_outliers(lab: Lab) -> Finding:
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    images = calibration_images(lab)
    for seed in range(lab.seed, lab.seed + SEEDS):
        for name, edit in WAYS.items():
            net = lab.make(partial(tiny_vit, len(lab.data.labels)), seed).eval()
            if edit is not None:
                net, _ = edit.apply(net, torch.zeros(2, 3, SIZE, SIZE))
            model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels, {"name": "a tiny ViT"})
            top1 = lab.train_on(model, lab.recipe(**TRAINED), seed)
            found = outliers(model, images).values()
            told = {
                "kurtosis": float(np.mean([layer.kurtosis for layer in found])),
                "infinity_norm": max(layer.infinity_norm for layer in found),
                "top1": 100 * top1,
                "points_lost_w8a8": 100 * (top1 - _rounded(lab, model, images, 8)),
                "points_lost_w6a6": 100 * (top1 - _rounded(lab, model, images, 6)),
            }
            for key, value in told.items():
                figures[name].setdefault(key, []).append(value)
    logs = np.log(figures["vanilla"]["kurtosis"]) - np.log(figures["clipped"]["kurtosis"])
    low, high = np.exp(mean_interval(logs)[1:])
    details: dict[str, Any] = {
        name: {key: float(np.mean(values)) for key, values in told.items()}
        for name, told in figures.items()
    }
    return Finding.above(
        1.0,
        (float(np.exp(logs.mean())), float(low), float(high)),
        unit="x",
        details=details,
        note=f"timm's VisionTransformer of 3 blocks of 48 channels, {lab.source} at {SIZE} pixels "
        f"in patches of 2, {TRAINED['epochs']:g} epochs, {SEEDS} seeds; rounded by extremes, a "
        "scale a layer. Trained so briefly the plain network has no outliers that could be "
        "spared: its kurtosis is near the 3 of normal values.",
    )


def tiny_vit(classes: int) -> nn.Module:
    """Three blocks that look at 16 patches, and no class token."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE,
        patch_size=2,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=classes,
        class_token=False,
        global_pool="avg",
    )


def _rounded(lab: Lab, model: nn.Module, images: Tensor, bits: int) -> float:
    """Test accuracy of the model, rounded to so many bits with ranges that hold every value."""
    edit = Simulate(weight_bits=bits, activation_bits=bits, **NAIVE)
    edited: VisionModel = edit.apply(model, images)[0]  # pyright: ignore[reportAssignmentType]
    return evaluate(edited, lab.data.splits["test"]).top1


def calibration_images(lab: Lab) -> Tensor:
    """A batch of training images, (128, 3, SIZE, SIZE), for edits to look at."""
    batches = Batches(split=lab.data.splits["train"], batch_size=128, size=SIZE)
    return next(iter(batches.epoch(0))).images
