"""How good a model is on a split."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from foveate import memory
from foveate.data import Batches, Split
from foveate.ops.kernels import accelerated
from foveate.vision import VisionModel


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in [0, 1], mean cross-entropy in nats, logits float32 (N, K), targets (N,)."""

    top1: float
    loss: float
    logits: np.ndarray
    targets: np.ndarray


@memory.kept()
@torch.inference_mode()
def evaluate(
    model: VisionModel, split: Split, batch_size: int = 256, *, precision: str = "float32"
) -> Evaluation:
    """Evaluate on every image of a split; the model's mode is restored.

    Args:
        model: what is judged.
        split: images and targets.
        batch_size: images at once.
        precision: float32 or bfloat16.
    """
    was_training = model.training
    model.eval()
    device = model.mean.device
    shape = model.preprocess
    batches = Batches(split=split, batch_size=batch_size, size=shape.size, crop=shape.crop)
    outputs = []
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with half, accelerated(model):
        for batch in batches.epoch(0):
            outputs.append(model(batch.images.to(device)).float().cpu())
    model.train(was_training)
    logits = torch.cat(outputs) if outputs else torch.zeros(0, len(model.labels))
    targets = torch.from_numpy(split.targets)
    loss = cross_entropy(logits, targets).item() if len(split) else 0.0
    top1 = (logits.argmax(1) == targets).double().mean().item() if len(split) else 0.0
    return Evaluation(top1, loss, logits.numpy(), split.targets)
