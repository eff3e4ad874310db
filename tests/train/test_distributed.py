"""Two processes against one at the same global batch, in float64: only sums may differ."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
from foveate.data import Augment, open
from foveate.train import Ingredient, Recipe, train
from foveate.vision import VisionModel

class DoubleTargets(Ingredient):
    def batch(self, training, batch):
        return batch._replace(targets=batch.targets.double())

torch.set_num_threads(1)
torch.manual_seed(0)
data = open("digits")
model = VisionModel.create("sprint_s", data.labels, size=16).double()
recipe = Recipe(epochs=2, batch_size=64, optimizer="sgd", learning_rate=0.05, ema=0.9, clip=1.0,
                augment=Augment(shift=1, flip=False, mixup=0.2), weight_decay=5e-4)
train(model, data, recipe, Path(sys.argv[1]), ingredients=[DoubleTargets()], progress=False)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), str(tmp_path / "script.py"), str(folder)]
        subprocess.run(command, env=environment, check=True)
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        curves.append([(line["kind"], line["step"], line["loss"]) for line in lines])
    one, two = curves
    assert len(one) == len(two) > 4
    for (kind, step, loss), (other_kind, other_step, other) in zip(one, two, strict=True):
        assert (kind, step) == (other_kind, other_step)
        assert other == pytest.approx(loss, rel=1e-9 if kind == "train" else 1e-6)
