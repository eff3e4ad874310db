"""What `import foveate` costs beyond torch.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys

from asked import asked
from results import Benchmark, Row

ROUNDS = 9
SAYS = f"""\
Seconds of an import in a fresh Python that has imported torch already; {ROUNDS} processes of each
in turn. The ratio is timm's time over ours."""
IMPORT = "import torch, time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main() -> None:
    asked(__doc__, known=())
    bench = Benchmark(__file__, title="Start-up", command="python benchmarks/startup.py", says=SAYS)
    seconds: dict[str, list[float]] = {"timm": [], "foveate": []}
    for _ in range(ROUNDS):
        for name, taken in seconds.items():
            run = [sys.executable, "-c", IMPORT.format(name)]
            taken.append(float(subprocess.run(run, capture_output=True, check=True).stdout))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    pairs = [a / b for a, b in zip(seconds["timm"], seconds["foveate"], strict=True)]
    bench.add(
        Row(
            what="import, beyond torch",
            peer="timm",
            ratio=(statistics.median(pairs), min(pairs), max(pairs)),
            ours=f"{medians['foveate']:.3f} s",
            theirs=f"{medians['timm']:.3f} s",
            note="to stay under 0.1 s; the interval is the whole range",
        )
    )


if __name__ == "__main__":
    main()
