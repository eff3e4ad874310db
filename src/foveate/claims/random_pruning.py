"""The wider a network, the less it minds a random mask."""

import numpy as np

from foveate.claims import Finding, Lab, claim
from foveate.claims.gradual_pruning import SIZE, plain_model
from foveate.measure import mean_interval
from foveate.surgery.random_pruning import MaskAtRandom

SEEDS, SPARSITY, EPOCHS, WIDTHS = 6, 0.8, 12.0, (1.0, 4.0)


@claim(
    "random_pruning",
    says="With a random mask of 80% zeros, fixed before training, the narrow network loses more "
    "accuracy to its dense twin than one of four times the width.",
    paper="as networks grow wider and deeper, a randomly pruned one, trained sparse, grows to "
    "match its dense equivalent, even at high sparsity (abstract)",
    minutes=2.0,
)
def the_gap_shrinks_with_width(lab: Lab) -> Finding:
    found: dict[str, list[float]] = {}
    recipe = lab.recipe(epochs=EPOCHS)
    for seed in range(lab.seed, lab.seed + SEEDS):
        for width in WIDTHS:
            model = plain_model(lab, width, seed)
            for ratios in ("erk", "uniform"):
                edit = MaskAtRandom(sparsity=SPARSITY, ratios=ratios, seed=seed)
                sparse = lab.train_on(edit.apply(model)[0], recipe, seed)
                found.setdefault(f"{ratios}_at_width_{width:g}", []).append(sparse)
            dense = lab.train_on(model, recipe, seed)
            found.setdefault(f"dense_at_width_{width:g}", []).append(dense)
    gaps = [
        np.array(found[f"dense_at_width_{w:g}"]) - np.array(found[f"erk_at_width_{w:g}"])
        for w in WIDTHS
    ]
    return Finding.above(
        0.0,
        mean_interval(100 * (gaps[0] - gaps[1])),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"Three 3x3 convolutions, {lab.source} at {SIZE} pixels, {EPOCHS:g} epochs, {SEEDS} "
        "seeds; the figure is by how much the gap shrinks, with densities by ERK.",
    )
