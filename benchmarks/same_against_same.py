"""Compare a model with itself, and with itself made a tenth slower: what `paired` says of each.

    python benchmarks/same_against_same.py

The first should be inconclusive nearly always, the second never.
"""

import time
from collections import Counter

import torch

from foveate.backbones import create_model
from foveate.measure import machine, paired

TIMES = 50


def main() -> None:
    torch.manual_seed(0)
    model = create_model("inception_next_mini32", num_classes=10).eval()
    images = torch.randn(8, 3, 32, 32)

    @torch.inference_mode()
    def plain() -> None:
        model(images)

    alone = []
    for _ in range(50):
        start = time.perf_counter()
        plain()
        alone.append(time.perf_counter() - start)
    extra = 0.1 * sorted(alone)[len(alone) // 2]

    @torch.inference_mode()
    def slower() -> None:
        model(images)
        end = time.perf_counter() + extra
        while time.perf_counter() < end:
            pass

    print(machine())
    for name, other in (("itself", plain), ("10% slower", slower)):
        found = [paired(other, plain, seconds=0.5) for _ in range(TIMES)]
        verdicts = dict(Counter(ratio.verdict for ratio in found))
        medians = sorted(ratio.median for ratio in found)
        print(f"{name}: {verdicts}, ratio {medians[TIMES // 2]:.3f}")


if __name__ == "__main__":
    main()
