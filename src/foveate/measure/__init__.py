"""Counting, timing, and what machine it was."""

from foveate.measure.counting import Count, count
from foveate.measure.machine import machine
from foveate.measure.timing import Ratio, Timing, paired, side_by_side, timing

__all__ = ["Count", "Ratio", "Timing", "count", "machine", "paired", "side_by_side", "timing"]
