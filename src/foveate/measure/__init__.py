"""Counting, timing, and what machine it was."""

from foveate.measure.counting import Count, Layer, Spread, count, count_each
from foveate.measure.intervals import (
    Exponent,
    bootstrap,
    correlation,
    exponent,
    mean_interval,
    median_interval,
)
from foveate.measure.machine import instruction_sets, machine, machine_line
from foveate.measure.roofline import Ceilings, Placed, Waterline, ceilings, waterline
from foveate.measure.timer import Ratio, Timing, paired, race, side_by_side, timing

__all__ = [
    "Ceilings",
    "Count",
    "Exponent",
    "Layer",
    "Placed",
    "Ratio",
    "Spread",
    "Timing",
    "Waterline",
    "bootstrap",
    "ceilings",
    "correlation",
    "count",
    "count_each",
    "exponent",
    "instruction_sets",
    "machine",
    "machine_line",
    "mean_interval",
    "median_interval",
    "paired",
    "race",
    "side_by_side",
    "timing",
    "waterline",
]
