"""Half of the weights at zero and few bits cost a transformer less if its dense self teaches it."""

from functools import partial

import numpy as np
from torch import Tensor

from foveate.claims import Finding, Lab, claim
from foveate.claims.quantizable_transformers import SIZE, TRAINED, calibration_images, tiny_vit
from foveate.measure import mean_interval
from foveate.surgery.edit import Edit
from foveate.surgery.gpusq_vit import Compressed, MaskTwoOfFour
from foveate.surgery.masks import masked
from foveate.surgery.quant_whitepaper import Quantise
from foveate.train import Ingredient
from foveate.train.gpusq_vit import DistilFromDense
from foveate.train.quant_whitepaper import QuantisationAware
from foveate.vision import Preprocess, VisionModel

SEEDS, FEW = 5, 4
TUNED = {"epochs": 5.0, "batch_size": 32, "learning_rate": 1e-3}
POINTS = ("backbone.blocks.?",)


@claim(
    "gpusq_vit",
    says="With two of every four weights at zero and 4 bits for weights and activations, a ViT "
    "that its dense self teaches is more accurate than one tuned by labels alone, as long.",
    paper="files 6.4 to 12.7 times smaller and 30.3 to 62 times fewer FLOPs at negligible loss; "
    "1.39 to 1.79 times less latency on an A100 (abstract)",
    minutes=3.0,
)
def a_dense_teacher_helps(lab: Lab) -> Finding:
    images, ratio = calibration_images(lab), 0.0
    found: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(partial(tiny_vit, len(lab.data.labels)), seed).eval()
        dense = VisionModel(net, Preprocess(size=SIZE), lab.data.labels, {"name": "a tiny ViT"})
        found.setdefault("dense", []).append(100 * lab.train_on(dense, lab.recipe(**TRAINED), seed))
        for way in ("labels", "taught"):
            sparse = _edited(MaskTwoOfFour(), dense, images)
            sparse_top1 = _tuned(lab, sparse, dense, way, seed, [])
            found.setdefault(f"2:4, {way}", []).append(sparse_top1)
            for bits in (8, FEW):
                edit = Quantise(weight_bits=bits, activation_bits=bits)
                small = _edited(edit, sparse, images)
                top1 = _tuned(lab, small, dense, way, seed, [QuantisationAware()])
                found.setdefault(f"2:4 and {bits} bits, {way}", []).append(top1)
        ratio = _ratio(sparse)
    name = f"2:4 and {FEW} bits, "
    gained = np.array(found[name + "taught"]) - np.array(found[name + "labels"])
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={
            "top1": {key: float(np.mean(values)) for key, values in found.items()},
            "bytes_of_masked_layers_before_over_after_in_int8": ratio,
        },
        note=f"The ViT of quantizable_transformers' claim, {lab.source} at {SIZE} pixels, {SEEDS} "
        f"seeds; {TUNED['epochs']:g} epochs of tuning for the zeros and as many for the bits. "
        "Nothing is timed: that takes sparse matrix units.",
    )


def _edited(edit: Edit, model: VisionModel, images: Tensor) -> VisionModel:
    edited, _ = edit.apply(model.eval(), images)
    assert isinstance(edited, VisionModel)
    return edited


def _tuned(
    lab: Lab,
    model: VisionModel,
    dense: VisionModel,
    way: str,
    seed: int,
    ingredients: list[Ingredient],
) -> float:
    """Test accuracy in percent, after tuning in place."""
    if way == "taught":
        ingredients = [*ingredients, DistilFromDense(dense, POINTS)]
    return 100 * lab.train_on(model, lab.recipe(**TUNED), seed, ingredients)


def _ratio(model: VisionModel) -> float:
    """Bytes of the masked layers' weights over those of the layout of two in four, in 8 bits."""
    matrices = [weight.value.flatten(1) for weight in masked(model).values()]
    fitting = [matrix for matrix in matrices if matrix.shape[1] % 8 == 0]
    before = sum(4 * matrix.numel() for matrix in fitting)
    after = sum(Compressed.of((matrix != 0).char()).bytes for matrix in fitting)
    return before / after
