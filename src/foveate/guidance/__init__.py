"""Which edits, and how much of each: sensitivities, a search on measured time, a choice."""

from foveate.guidance.bench import Bench, Started
from foveate.guidance.guide import Guided, guide
from foveate.guidance.wish import Wish

__all__ = ["Bench", "Guided", "Started", "Wish", "guide"]
