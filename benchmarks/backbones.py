"""Time one image through every native size, and write it down for docs/backbones.md.

    python benchmarks/backbones.py           # all of them
    python benchmarks/backbones.py NAME ...  # these again

Eager PyTorch, float32, channels_last, at the size's own resolution, on all cores.
"""

import json
from pathlib import Path

import torch
from asked import asked

from foveate.backbones import create_model, sizes
from foveate.measure import machine, timing

RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    named = asked(__doc__, known=sizes())
    found = json.loads(RESULTS.read_text("utf-8")) if named else {"milliseconds": {}}
    found["machine"] = machine()
    for name in named or sorted(sizes()):
        model = create_model(name).eval().to(memory_format=torch.channels_last)
        images = torch.rand(1, *model.default_cfg["input_size"])
        images = images.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def call(model=model, images=images) -> None:
            model(images)

        taken = timing(call, seconds=0.5)
        found["milliseconds"][name] = [1e3 * t for t in (taken.median, taken.low, taken.high)]
        print(f"{name:<32} {1e3 * taken.median:8.2f} ms", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
