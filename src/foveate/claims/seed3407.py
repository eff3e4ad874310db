"""The seed alone moves the accuracy by as much as papers claim to gain."""

import numpy as np
from scipy.stats import chi2

from foveate.claims import Finding, Lab, claim

TRAININGS = 24


@claim(
    "seed3407",
    says="Two trainings that differ in nothing but the seed differ by more than half a point in "
    "one case of twenty.",
    paper="10^4 seeds on CIFAR-10: from 89.01% to 90.83%, deviation about 0.23 points",
    minutes=2.0,
)
def the_seed_matters(lab: Lab) -> Finding:
    recipe = lab.recipe(epochs=6.0)
    tops: list[float] = []
    while len(tops) < 8 or (len(tops) < TRAININGS and lab.minutes_left > 0):
        seed = lab.seed + len(tops)
        tops.append(lab.accuracy(lab.named("sprint_s"), recipe, seed, 8))
    points = 100 * np.array(tops)
    deviation, freedom = float(points.std(ddof=1)), len(points) - 1
    reach = 1.96 * 2**0.5  # of the difference of two, in one case of twenty
    low, high = (
        reach * deviation * (freedom / float(chi2.ppf(q, freedom))) ** 0.5 for q in (0.975, 0.025)
    )
    return Finding.above(
        0.5,
        (reach * deviation, low, high),
        unit=" points",
        details={
            "trainings": len(points),
            "mean": float(points.mean()),
            "deviation": deviation,
            "worst": float(points.min()),
            "best": float(points.max()),
        },
        note=f"{len(points)} trainings of sprint_s on {lab.source}; interval by chi squared.",
    )
