"""How compression is judged: against marks by intervals, and by the program that runs."""

import numpy as np
import pytest

from foveate.data import open as open_data


@pytest.mark.parametrize(
    ("lost", "mark", "verdict"),
    [
        ((0.1, -0.1, 0.3), 0.3, "met"),
        ((0.2, -0.1, 0.5), 0.3, "open"),
        ((0.5, 0.31, 0.7), 0.3, "missed"),
        ((0.5, 0.3, 0.7), None, ""),
    ],
)
def test_verdicts(script, lost, mark, verdict):
    assert script("compressed").verdict(lost, mark) == verdict


def test_every_mark_of_the_issue_has_a_row(script):
    ways = script("compressed").WAYS
    assert sorted(way.mark for way in ways.values() if way.mark) == [0.3, 0.3, 1.0, 1.5, 1.5]
    assert all(way.edits or way.tuned for way in ways.values())
    assert not any(way.then and not way.tuned for way in ways.values())


@pytest.mark.slow
def test_the_program_is_judged_as_the_network_is(script, shared):
    networks, compressed = script("cifar_networks"), script("compressed")
    data = open_data(shared / "data" / "cifar10.tar.gz")
    model = networks.network("resnet20", shared / "weights", data.labels)
    targets = data.splits["train"].targets
    looked_at = np.linspace(0, len(targets) - 1, networks.CALIBRATION).astype(int)
    assert np.bincount(targets[looked_at], minlength=10).min() > 80  # of all classes
    judged = compressed.Judged(model, data)
    assert (judged.right != networks.right(model, data)).mean() <= 1e-3
    assert judged.figures()["macs"] == 40_551_040
    assert judged.bytes["saved"] > 4 * sum(p.numel() for p in model.parameters())
