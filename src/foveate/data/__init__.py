"""Images in, batches out.

`open` finds labelled images wherever they lie and sets damaged files aside;
`Batches` gives them out, augmented, as pure functions of (seed, epoch, index).

The built-in `digits` are the 1,797 handwritten digits of E. Alpaydin and C.
Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0), scaled to bytes.
"""

from foveate.data.augment import Augment
from foveate.data.batches import Batch, Batches
from foveate.data.dataset import Dataset, Duplicate, Quarantined, Split, from_arrays
from foveate.data.decode import BadImage, decode
from foveate.data.open import open

__all__ = [
    "Augment",
    "BadImage",
    "Batch",
    "Batches",
    "Dataset",
    "Duplicate",
    "Quarantined",
    "Split",
    "decode",
    "from_arrays",
    "open",
]
