"""Every kind of source gives the same images; what is wrong with one is said exactly."""

import csv
import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from foveate import FoveateError, data


def write_zip(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{folder.name}/{file.relative_to(folder)}")
    return path


def write_tar(folder, path, mode):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return path


def write_table(folder, path):
    rows = [(str(f.relative_to(path.parent)), f.parent.name) for f in sorted(folder.rglob("*.png"))]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").table(
            dict(zip(("path", "label"), zip(*rows, strict=True), strict=True))
        )
        parquet.write_table(table, path)
    return path


SOURCES = {
    "folder": lambda folder, to: folder,
    "zip": lambda folder, to: write_zip(folder, to / "a.zip"),
    "tar": lambda folder, to: write_tar(folder, to / "a.tar", "w"),
    "tar.gz": lambda folder, to: write_tar(folder, to / "a.tar.gz", "w:gz"),
    "tar.bz2": lambda folder, to: write_tar(folder, to / "a.tar.bz2", "w:bz2"),
    "tar.xz": lambda folder, to: write_tar(folder, to / "a.tar.xz", "w:xz"),
    "csv": lambda folder, to: write_table(folder, to / "a.csv"),
    "parquet": lambda folder, to: write_table(folder, to / "a.parquet"),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_sources_hold_the_same(class_folders, tmp_path, make):
    folder = class_folders()
    found = data.open(make(folder, tmp_path))
    assert found.labels == ["cat", "dog"]
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 20,
        "val": 2,
        "test": 2,
    }
    assert not found.quarantine
    expected = {(f.parent.name, f.read_bytes()) for f in folder.rglob("*.png")}
    pixels = {(label, data.decode(content).tobytes()) for label, content in expected}
    assert pixels == {
        (found.labels[split.targets[i]], split.read(i).tobytes())
        for split in found.splits.values()
        for i in range(len(split))
    }


def test_images_of_many_sizes_are_read_when_asked_for(tmp_path, encoded):
    for k, label in enumerate(("a", "b")):
        (tmp_path / "x" / label).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "x" / label / f"{i}.png").write_bytes(encoded(10 * k + i, side=8 + i))
    archive = write_zip(tmp_path / "x", tmp_path / "x.zip")
    found = data.open(archive)
    assert found.splits["train"].pixels is None
    sides = sorted(s.read(i).shape[0] for s in found.splits.values() for i in range(len(s)))
    assert sides == sorted([*range(8, 14)] * 2)
    assert found.summary()["sizes"] == {"min": [8, 8], "median": [11, 11], "max": [13, 13]}


@pytest.mark.parametrize("val", ["val", "valid", "Validation", None])
def test_given_splits_are_kept(class_folders, tmp_path, val):
    root = tmp_path / "all"
    root.mkdir()
    names = ["train", "test"] + ([val] if val else [])
    for i, name in enumerate(names):
        source = class_folders(("cat", "dog"), 10 + i, name=f"part{i}")
        for j, file in enumerate(sorted(source.rglob("*.png"))):
            file.write_bytes(file.read_bytes() + bytes([i, j]))
        shutil.move(source, root / name)
    found = data.open(root)
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes == {"train": 20 if val else 18, "val": 24 if val else 2, "test": 22}
    assert all("test" in name for name in found.splits["test"].names)


def test_the_split_is_stratified_and_decided_by_the_seed(class_folders):
    folder = class_folders(("a", "b", "c"), 20)
    one, again, other = (data.open(folder, seed=seed) for seed in (1, 1, 2))
    assert one.splits["test"].names == again.splits["test"].names
    assert one.splits["test"].names != other.splits["test"].names
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        assert set(one.summary()["splits"][split].values()) == {count}


@pytest.mark.parametrize(("count", "held_out"), [(100, 10), (30_000, 2_500)])
def test_validation_takes_a_tenth_but_no_more_than_it_needs(count, held_out):
    images = np.arange(count * 3, dtype=np.uint32).view(np.uint8).reshape(count, 2, 2, 3)
    splits = data.from_arrays(images, np.arange(count) % 2).splits
    assert len(splits["val"]) == held_out
    assert len(splits["test"]) == count // 10
    assert (
        len(data.from_arrays(images, np.arange(count) % 2, val_share=0.2).splits["val"])
        == count // 5
    )


def test_labels_are_sorted_as_people_count(class_folders):
    assert data.open(class_folders(("c10", "c9", "c1"), 3)).labels == ["c1", "c9", "c10"]


def test_copies_stay_together_where_we_split(class_folders):
    folder = class_folders(("cat", "dog"), 10)
    for file in sorted((folder / "cat").iterdir()):
        shutil.copy(file, file.with_name(f"copy-{file.name}"))
    assert not data.open(folder).duplicates


def test_copies_across_given_splits_are_found(class_folders, tmp_path):
    for name in ("train", "test"):
        shutil.move(class_folders(("cat", "dog"), 4, name="part"), tmp_path / "all" / name)
    extra = tmp_path / "all" / "test" / "cat" / "000.png"
    for file in (tmp_path / "all" / "test").rglob("*.png"):
        if file != extra:
            file.write_bytes(file.read_bytes() + b"x")
    found = data.open(tmp_path / "all", val_share=0).duplicates
    assert [(d.first, d.first_split, d.second, d.second_split) for d in found] in (
        [("test/cat/000.png", "test", "train/cat/000.png", "train")],
        [("train/cat/000.png", "train", "test/cat/000.png", "test")],
    )


def test_the_same_image_under_two_labels_is_mislabelled(class_folders):
    folder = class_folders()
    shutil.copy(folder / "cat" / "000.png", folder / "dog" / "copy.png")
    found = data.open(folder).quarantine
    assert {(q.path, q.reason.split(":")[0]) for q in found} == {
        ("cat/000.png", "mislabelled"),
        ("dog/copy.png", "mislabelled"),
    }


def test_what_lies_about_is_set_aside_or_ignored(class_folders, encoded):
    folder = class_folders(count=30)
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "y.png").write_bytes(b"x")
    (folder / "loose.png").write_bytes(encoded(1))
    (folder / "cat" / "notes.txt").write_text("hello")
    (folder / "dog" / "jpeg-in-truth.png").write_bytes(encoded(77, "JPEG"))
    found = data.open(folder)
    assert {(q.path, q.reason) for q in found.quarantine} == {
        ("loose.png", "lies in no class folder"),
        ("cat/notes.txt", "not an image"),
    }
    assert found.summary()["total"] == 61


def test_a_table_says_what_is_wrong_with_its_rows(class_folders, tmp_path):
    folder = class_folders(count=20)
    rows = [(f.relative_to(tmp_path), f.parent.name, "") for f in sorted(folder.rglob("*.png"))]
    rows += [("gone.png", "cat", "train"), ("", "cat", ""), ("photos/cat/000.png", "", "")]
    rows += [("photos/cat/001.png", "cat", "sometimes")]
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "split"), *rows])
    (tmp_path / "t.csv").write_text(text.getvalue())
    reasons = sorted(q.reason for q in data.open(tmp_path / "t.csv").quarantine)
    assert reasons == [
        "the file is missing",
        "the row has no label",
        "the row has no path",
        "the row's split is 'sometimes', not train, val or test",
    ]


def test_a_label_that_is_only_in_test_cannot_be_learned(class_folders, tmp_path):
    shutil.move(class_folders(("cat", "dog"), 20, name="p"), tmp_path / "all" / "train")
    shutil.move(class_folders(("cow", "dog"), 2, name="q"), tmp_path / "all" / "test")
    found = data.open(tmp_path / "all")
    assert found.labels == ["cat", "dog"]
    assert {q.reason for q in found.quarantine} == {"its label cow is not in the train split"}


def test_too_many_bad_files_stop_it(class_folders):
    folder = class_folders()
    for i in range(5):
        (folder / "cat" / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(FoveateError, match=r"5 of the 29 files .*17%.*empty file"):
        data.open(folder)
    assert len(data.open(folder, max_bad=0.2).quarantine) == 5


def test_links_in_a_tar_lead_nowhere(class_folders, tmp_path):
    folder = class_folders(count=20)
    (folder / "cat" / "link.png").symlink_to("/etc/hostname")
    found = data.open(write_tar(folder, tmp_path / "a.tar", "w"))
    assert [(q.path, q.reason) for q in found.quarantine] == [
        ("photos/cat/link.png", "a link, not a file")
    ]


def test_arrays_of_every_kind():
    chance = np.random.default_rng(0)
    grey = chance.integers(0, 256, (30, 5, 5), dtype=np.uint8)
    names = np.array(["x", "y", "z"])[np.arange(30) % 3]
    for images in (grey, np.repeat(grey[..., None], 3, 3), (grey / 255).astype(np.float32)):
        found = data.from_arrays(images, names)
        assert found.labels == ["x", "y", "z"]
        assert found.splits["train"].pixels.shape[1:] == (5, 5, 3)
        assert found.summary()["total"] == 30
    with pytest.raises(FoveateError, match="shape"):
        data.from_arrays(np.zeros((3, 4)), np.arange(3))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    found = data.open("digits")
    assert found.labels == [str(i) for i in range(10)]
    ours = {
        (int(t), p[..., 0].tobytes())
        for s in found.splits.values()
        for t, p in zip(s.targets, s.pixels, strict=True)
    }
    scaled = np.round(theirs.images * 255 / 16).astype(np.uint8)
    assert ours == {(int(t), p.tobytes()) for t, p in zip(theirs.target, scaled, strict=True)}


def test_real_photographs(shared, tmp_path):
    """Two classes of the sample photographs, by the first letter of their names."""
    with tarfile.open(shared / "data" / "imagenet_samples.tar") as archive:
        members = [m for m in archive if m.isfile()][:40]
        for i, member in enumerate(members):
            folder = tmp_path / "photos" / ("even" if i % 2 else "odd")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").write_bytes(archive.extractfile(member).read())
    found = data.open(tmp_path / "photos")
    assert found.summary()["total"] == len(members)
    assert not found.quarantine


def test_labels_as_a_model_knows_them(class_folders):
    dataset = data.open(class_folders())
    labels = ["other", *reversed(dataset.labels)]
    again = dataset.labelled_as(labels)
    for name, split in dataset.splits.items():
        before = [dataset.labels[t] for t in split.targets]
        assert [labels[t] for t in again.splits[name].targets] == before
    with pytest.raises(FoveateError, match="does not know"):
        dataset.labelled_as(dataset.labels[1:])


def test_splits_joined(class_folders):
    splits = list(data.open(class_folders()).splits.values())
    joined = data.Split.joined(splits)
    assert joined.names == [name for split in splits for name in split.names]
    last = splits[-1]
    assert np.array_equal(joined.read(len(joined) - 1), last.read(len(last) - 1))
    assert joined.targets[-1] == last.targets[-1]
