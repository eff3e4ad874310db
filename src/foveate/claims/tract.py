"""Steps that activations ask for make the first layer, and so the net, learn faster."""

from functools import partial

from foveate.claims import Finding, Lab, claim
from foveate.train.tract import TrAct


@claim(
    "tract",
    says="After as many epochs, a net trained with TrAct is more accurate than one without.",
    paper="the accuracy of the baseline in 1.25x to 4x less training, over optimisers and networks",
    minutes=2.0,
)
def tract_is_faster(lab: Lab) -> Finding:
    recipe = lab.recipe(epochs=2.0)
    run = partial(lab.accuracy, lab.named("sprint_s"), recipe, size=8)
    return Finding.above(
        0.0,
        lab.paired_gain(
            lambda seed: run(seed=seed, ingredients=(TrAct(),)), lambda seed: run(seed=seed)
        ),
        unit=" points",
        note=f"sprint_s, {lab.source} at 8 pixels, 2 epochs, AdamW, λ = 0.1; the same seeds.",
    )
