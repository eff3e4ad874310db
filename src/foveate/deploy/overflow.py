"""Processors on which INT8 programs round otherwise than their models, as sums overflow."""

from foveate.measure import instruction_sets


def sums_overflow() -> bool:
    """Whether runtimes add pairs of 8-bit products in 16 bits here, which cuts off large sums.

    So they do on x86 processors with AVX2 but without VNNI; weights of 7 bits are safe there.
    """
    sets = instruction_sets()
    return "AVX2" in sets and "VNNI" not in sets


def fitting_bits() -> int:
    """The most bits of weights whose sums of products with 8-bit activations are exact here."""
    return 7 if sums_overflow() else 8
