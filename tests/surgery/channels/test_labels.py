"""What stays of an array fills a box or not; ranges read back as they were."""

import itertools

import numpy as np
import pytest
import torch

from foveate.surgery.channels.labels import Box, Labels, box_shape, narrowed
from foveate.surgery.channels.remove import from_ranges, to_ranges


def compact(stays):
    """The slow truth: try every shape that what stays could be closed up to."""
    n = stays.sum()
    for shape in itertools.product(*(range(1, size + 1) for size in stays.shape)):
        if np.prod(shape) != n:
            continue
        kept = np.zeros(stays.shape, bool)
        rows = [i for i in range(stays.shape[0]) if stays[i].any()]
        if len(rows) == shape[0] and all(stays[i].sum() == shape[1] for i in rows):
            kept[rows] = stays[rows]
            return shape
    return None


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_two_axes(seed):
    chance = np.random.default_rng(seed)
    for _ in range(50):
        stays = chance.random((3, 4)) < chance.random()
        if stays.any():
            assert box_shape(stays) == compact(stays)


def test_boxes_of_three_axes_close_up_from_within():
    stays = np.ones((3, 4, 5), bool)
    assert box_shape(stays) == (3, 4, 5)
    stays[:, 1] = False
    assert box_shape(stays) == (3, 3, 5)
    stays[0, 0, 2] = False
    assert box_shape(stays) is None
    stays[:, :, 2] = False
    assert box_shape(stays) == (3, 3, 4)
    assert box_shape(np.zeros((2, 3), bool)) == (0, 0)


def test_what_a_box_allows():
    labels = torch.arange(6).view(2, 3)
    box = Box(labels, whole=torch.tensor([[6], [7]]), places=torch.tensor([8, 9, 10]))

    def stays(*gone):
        return ~np.isin(np.arange(11), gone)

    assert box.allows(stays())
    assert box.allows(stays(0, 1, 2, 6))
    assert not box.allows(stays(0, 1, 2)), "the row's own label must go with it"
    assert box.allows(stays(1, 4, 9))
    assert not box.allows(stays(1, 4)), "and so must the column's"
    assert not box.allows(stays(1, 3))
    assert not Box(labels, even=True).allows(stays(0, 1, 2))
    assert not box.allows(stays(*range(11)))


def test_fields_that_meet():
    labels = Labels()
    channels, tokens = labels.of_axes((1, 4, 3))
    heads = labels.fresh((1, 4, 1))
    assert len(labels.settle([channels, tokens, heads], "")) == 2
    component = labels.components()
    assert (component[channels.flatten()] == component[heads.flatten()]).all()
    assert len(set(component.tolist())) == 7
    assert not labels.fixed
    joint = labels.fresh((1, 4, 3))
    assert [one.shape for one in labels.settle([joint, heads], "")] == [joint.shape]
    assert len(labels.boxes) == 1
    across = labels.fresh((2, 4, 1))
    assert len(labels.settle([joint, across], "")) == 2
    rows = [box.whole for box in labels.boxes[1:]]
    assert len(rows) == 2, "the same rows go from both"
    assert rows[0] is rows[1]
    assert rows[0].shape == (4, 1)


def test_axes_that_do_not_vary_are_taken_in():
    field = torch.arange(3).view(1, 3, 1).expand(2, 3, 4)
    assert narrowed(field).shape == (1, 3, 1)


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [3, 5, 6, 9], [1, 2, 4]])
def test_ranges(indices):
    assert from_ranges(to_ranges(np.array(indices))) == indices


def test_ranges_are_short():
    assert to_ranges(np.array([0, 1, 2, 3, 7, 9, 10])) == "0-3,7,9-10"
