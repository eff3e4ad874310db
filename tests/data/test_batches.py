"""Batches are pure functions of (seed, epoch, index), shared fairly, and outlive bad files."""

import io
import itertools
import threading
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.data import Augment, BadImage, Batches, Split, decode
from foveate.data.augment import Draw, shift_and_flip
from foveate.data.dataset import ImageFile
from foveate.errors import FoveateError

EVERYTHING = Augment(randaugment=2, erase=0.3, flip=True)
MIXED = Augment(flip="alternate", mixup=0.4, cutmix=1.0, mix=0.8)
RESIZED = Augment(crop="resized", erase=0.2)
AUGMENTS = pytest.mark.parametrize(
    "augment", [None, EVERYTHING, MIXED, RESIZED], ids=["plain", "everything", "mixed", "resized"]
)


def photos(n: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def in_memory(n: int = 21, height: int = 12, width: int = 12) -> Split:
    return Split([f"{i}.png" for i in range(n)], np.arange(n) % 3, pixels=photos(n, height, width))


def in_files(images, bad: dict[int, Exception] | None = None) -> Split:
    """A split that reads one image at a time; those in `bad` raise."""
    bad = bad or {}

    def reader(i: int):
        def read() -> np.ndarray:
            if i in bad:
                raise bad[i]
            return images[i]

        return read

    n = len(images)
    return Split([f"{i}.jpg" for i in range(n)], np.arange(n) % 3, [reader(i) for i in range(n)])


def odd_sizes(n: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [photos(1, *rng.integers(5, 40, 2))[0] for _ in range(n)]


def batches(split: Split, **changes) -> Batches:
    return Batches(split=split, **{"batch_size": 6, "size": 12, "classes": 3, "seed": 4} | changes)


def by_index(found) -> dict[int, torch.Tensor]:
    return {int(i): image for b in found for i, image in zip(b.indices, b.images, strict=True)}


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def preparing_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


# ------------------------------------------------------------ shapes and order


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    size=st.integers(1, 20),
    batch_size=st.integers(1, 25),
    augment=st.sampled_from([None, EVERYTHING, MIXED, RESIZED]),
)
def test_batches_have_the_promised_shapes(n, height, width, size, batch_size, augment):
    split = in_memory(n, height, width)
    given_out = batches(split, size=size, batch_size=batch_size, augment=augment)
    found = list(given_out.epoch(0))
    assert len(found) == given_out.steps
    for batch in found:
        count = len(batch.indices)
        assert batch.images.shape == (count, 3, size, size)
        assert batch.images.dtype == torch.uint8
        assert batch.targets.shape in [(count,), (count, 3)]
        assert batch.targets.dtype == (torch.int64 if batch.targets.ndim == 1 else torch.float32)
        assert batch.indices.dtype == torch.int64
    lengths = [len(batch.indices) for batch in found]
    if augment is None:
        assert sum(lengths) == n
    else:
        assert lengths == [min(n, batch_size)] * (n // min(n, batch_size))


def test_evaluation_keeps_order_and_pixels():
    split = in_memory(20)
    found = list(batches(split).epoch(3))
    assert torch.cat([b.indices for b in found]).tolist() == list(range(20))
    assert [len(b.indices) for b in found] == [6, 6, 6, 2]
    pixels = torch.cat([b.images for b in found]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, split.pixels)
    assert torch.cat([b.targets for b in found]).tolist() == split.targets.tolist()


def test_training_sees_each_image_at_most_once_in_an_order_that_changes():
    given_out = batches(in_memory(), augment=Augment())
    orders = [torch.cat([b.indices for b in given_out.epoch(e)]).tolist() for e in range(3)]
    for order in orders:
        assert len(order) == 18
        assert len(set(order)) == 18
    assert orders[0] != orders[1] != orders[2]


def test_over_many_epochs_every_image_comes_up():
    given_out = batches(in_memory(), augment=Augment())
    assert {i for e in range(8) for b in given_out.epoch(e) for i in b.indices.tolist()} == set(
        range(21)
    )


@AUGMENTS
def test_images_lie_channels_last(augment):
    batch = next(batches(in_memory(), augment=augment).epoch(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------ against other truths


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_evaluation_scales_the_centre_as_pillow_does(crop):
    images = odd_sizes()
    found = batches(in_files(images), batch_size=9, crop=crop).batch(0, 0).images
    for image, result in zip(images, found, strict=True):
        height, width = image.shape[:2]
        half = min(height, width) * crop / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
        expected = Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC, box)
        difference = np.abs(np.asarray(expected, int) - result.permute(1, 2, 0).numpy())
        assert difference.max() <= 2


@AUGMENTS
@pytest.mark.parametrize("size", [12, 8])
def test_arrays_and_files_give_the_same_images(augment, size):
    split = in_memory(12, 12, 16)
    ours = batches(split, size=size, augment=augment).epoch(1)
    theirs = batches(in_files(split.pixels), size=size, augment=augment).epoch(1)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_shifted_images_are_those_of_the_fast_path():
    split, augment = in_memory(), Augment()
    batch = batches(split, augment=augment).batch(2, 1)
    indices = batch.indices.numpy()
    expected = shift_and_flip(split.pixels[indices], augment, Draw(4, 2, indices))
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def photographs(n: int = 9, width: int = 150, height: int = 110) -> list[bytes]:
    """JPEGs, some of them stored on their side."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 5, 7, 3), dtype=np.uint8)
    found = []
    for i, colours in enumerate(coarse):
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        file = io.BytesIO()
        image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=90, exif=exif)
        found.append(file.getvalue())
    return found


def in_jpegs(files: list[bytes]) -> Split:
    names = [f"{i}.jpg" for i in range(len(files))]
    return Split(names, np.arange(len(files)) % 3, [ImageFile(lambda f=f: f) for f in files])


def test_boxes_of_files_are_boxes_of_their_pixels():
    files, whole = photographs(), Augment(crop="resized", scale=(0.1, 1.0), reduce=False)
    parts = batches(in_jpegs(files), augment=whole, size=16).batch(0, 0)
    all_pixels = batches(in_files([decode(f) for f in files]), augment=whole, size=16).batch(0, 0)
    assert same(parts, all_pixels)


def test_reduced_boxes_look_like_whole_ones():
    split, fields = in_jpegs(photographs()), {"crop": "resized", "scale": (0.5, 1.0)}
    whole, reduced = (
        batches(split, augment=Augment(**fields, reduce=r), size=24).batch(0, 0).images.float()
        for r in (False, True)
    )
    assert not torch.equal(whole, reduced)
    assert (whole - reduced).abs().mean() < 6


def test_parts_of_splits_and_joined_splits_still_give_boxes():
    files = photographs()
    split = in_jpegs(files)
    again = Split.joined([split.subset(np.arange(4)), split.subset(np.arange(4, 9))])
    mixed = Split.joined([split.subset(np.arange(4)), in_memory(5)])
    found = [s.cut(3, lambda w, h: (0, 0, w, h), 20).shape for s in (split, again, mixed)]
    assert found == [(28, 38, 3)] * 3
    assert np.array_equal(mixed.read(6), in_memory(5).read(2))


# ------------------------------------------------------------ purity


@pytest.mark.parametrize("augment", [EVERYTHING, RESIZED], ids=["everything", "resized"])
def test_an_image_looks_the_same_in_batches_of_every_size(augment):
    whole = by_index(batches(in_memory(), batch_size=21, augment=augment).epoch(5))
    for batch_size in (1, 4, 7):
        for i, image in by_index(
            batches(in_memory(), batch_size=batch_size, augment=augment).epoch(5)
        ).items():
            assert torch.equal(image, whole[i])


@AUGMENTS
def test_workers_change_nothing(augment):
    one, many = (batches(in_memory(), augment=augment, workers=w).epoch(1) for w in (1, 5))
    assert all(same(a, b) for a, b in zip(one, many, strict=True))


@AUGMENTS
@pytest.mark.parametrize("start", range(4))
def test_an_epoch_goes_on_from_any_step_bit_for_bit(augment, start):
    whole = list(batches(in_memory(), augment=augment).epoch(2))
    rest = list(batches(in_memory(), augment=augment).epoch(2, start))
    assert len(rest) == len(whole) - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@AUGMENTS
@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_ranks_together_give_the_batch_of_one_process(augment, world):
    alone = list(batches(in_memory(), augment=augment).epoch(1))
    ranks = [
        batches(in_memory(), augment=augment, rank=r, world=world).epoch(1) for r in range(world)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert same(whole, [torch.cat(field) for field in zip(*parts, strict=True)])


@pytest.mark.parametrize("change", [{"seed": 5}, {"epoch": 3}])
def test_another_seed_or_epoch_gives_other_images(change):
    at = {"seed": 4, "epoch": 2} | change
    augment = Augment(shift=4)
    before = by_index(batches(in_memory(), augment=augment).epoch(2))
    after = by_index(batches(in_memory(), augment=augment, seed=at["seed"]).epoch(at["epoch"]))
    shared = before.keys() & after.keys()
    assert sum(torch.equal(before[i], after[i]) for i in shared) < len(shared) / 2


def test_mixing_pairs_each_place_with_its_mirror_in_the_global_batch():
    plain = Augment(flip=False, shift=0)
    mixing = Augment(flip=False, shift=0, mixup=1.0)
    pure, mixed = (batches(in_memory(), augment=a).batch(0, 0) for a in (plain, mixing))
    hot = torch.nn.functional.one_hot(pure.targets, 3)
    weights = mixed.targets
    keeps = [k / 1000 for k in range(1001)]
    keep = min(keeps, key=lambda k: (k * hot + (1 - k) * hot.flip(0) - weights).abs().max().item())
    blend = keep * pure.images.float() + (1 - keep) * pure.images.flip(0).float()
    assert (mixed.images.float() - blend).abs().max() < 1
    assert torch.equal(mixed.indices, pure.indices)


# ------------------------------------------------------------ threads


@AUGMENTS
def test_leaving_an_epoch_early_ends_its_threads(augment):
    for batch in batches(in_memory(200), augment=augment).epoch(0):
        assert len(batch.indices) == 6
        assert preparing_threads()
        break
    assert not preparing_threads()


def test_ctrl_c_in_the_loop_ends_the_threads():
    stream = batches(in_memory(200), augment=Augment()).epoch(0)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert not preparing_threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_few_batches_are_prepared_ahead(workers):
    images, reads = photos(300), itertools.count()

    class Counted(Split):
        def read(self, i: int) -> np.ndarray:
            next(reads)
            return super().read(i)

    split = Counted([str(i) for i in range(300)], np.zeros(300), [lambda: images[0]] * 300)
    stream = batches(split, workers=workers).epoch(0)
    next(stream)
    stream.close()
    assert next(reads) <= 6 * (workers + 2)


def test_a_bug_in_a_reader_arrives_with_the_name_of_the_image():
    split = in_files(photos(12), {7: ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError) as caught:
        list(batches(split).epoch(0))
    assert "7.jpg" in "".join(traceback.format_exception(caught.value))
    assert not preparing_threads()


# ------------------------------------------------------------ files gone bad


@pytest.mark.parametrize("error", [BadImage("truncated"), FileNotFoundError("gone")])
@pytest.mark.parametrize("augment", [None, RESIZED])
def test_the_next_of_its_class_stands_in_for_a_bad_file(augment, error):
    images = photos(12)
    given_out = batches(in_files(images, {4: error, 7: error}), augment=augment)
    for _ in range(3):
        found = list(given_out.epoch(0))
    assert [(f.path, f.reason) for f in given_out.failures] == [
        ("4.jpg", str(error)),
        ("7.jpg", str(error)),
    ]
    targets = {int(i): int(t) for b in found for i, t in zip(b.indices, b.targets, strict=True)}
    assert targets == {i: i % 3 for i in range(12)}
    if augment is None:
        assert np.array_equal(by_index(found)[4].permute(1, 2, 0), images[10])


def test_stand_ins_are_the_same_however_the_batches_are_made():
    split = in_files(photos(21), {2: BadImage("cut"), 5: OSError("gone"), 20: BadImage("cut")})
    alone = list(batches(split, augment=MIXED).epoch(0))
    ranks = [batches(split, augment=MIXED, rank=r, world=2).epoch(0) for r in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert same(whole, [torch.cat(field) for field in zip(*parts, strict=True)])


def test_where_a_whole_class_is_gone_another_stands_in_with_its_own_target():
    split = in_files(photos(12), {i: OSError("gone") for i in range(0, 12, 3)})
    found = list(batches(split, augment=Augment()).epoch(0))
    assert {t for b in found for t in b.targets.tolist()} == {1, 2}


def test_a_run_stops_with_a_sentence_only_when_nothing_can_be_read():
    split = in_files(photos(6), {i: OSError("gone") for i in range(6)})
    with pytest.raises(FoveateError, match=r"no image can be read any more.*\d\.jpg.*bring"):
        list(batches(split).epoch(0))


# ------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": 4}, "a batch of 6 cannot be shared among 4 processes"),
        ({"batch_size": 0}, "a batch of 0 cannot be shared"),
        ({"rank": 2, "world": 2}, "rank is 2 of 2"),
        ({"size": 0}, "size is 0"),
        ({"crop": 0.0}, "crop is 0"),
        ({"crop": 1.5}, "crop is 1.5"),
        ({"augment": MIXED, "classes": 0}, "classes is 0"),
        ({"augment": MIXED, "classes": 2}, "classes is 2"),
        (
            {"augment": EVERYTHING, "world": 30, "batch_size": 60},
            "21 training images cannot be shared among 30 processes",
        ),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(FoveateError, match=message):
        batches(in_memory(), **changes)


def test_an_empty_split_evaluates_to_nothing():
    empty = in_memory(3).subset(np.arange(0))
    assert list(batches(empty).epoch(0)) == []


def test_ranks_without_a_share_of_the_last_batch_get_an_empty_one():
    images = odd_sizes(7)
    last = list(batches(in_files(images), rank=0, world=2).epoch(0))[-1]
    assert last.images.shape == (0, 3, 12, 12)
    assert last.targets.shape == (0,)
