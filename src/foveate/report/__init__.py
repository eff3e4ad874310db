"""The report: a run's folder in, one HTML file out that works offline."""

from foveate.report.analysis import analyse
from foveate.report.page import write

__all__ = ["analyse", "write"]
