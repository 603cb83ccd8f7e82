"""Where a run's images come from: folders, tables and TFDS data sets, decoded ahead of their use."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax.data.photos import read_photo
from amx_jax.data.sources import Source, ahead, open_source
from amx_jax.data.tfds_folder import build_tfds
from amx_jax.errors import ConfigError, ImageError, OutputError


def save(path, seed=0, size=(12, 9), **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def tree(tmp_path):
    """Photos of three formats in sub-folders, and what is no photo."""
    folder = tmp_path / "tree"
    save(folder / "b" / "zebra.png", 1)
    save(folder / "a" / "Ünï cat.jpg", 2, quality=95)
    save(folder / "a" / "dog.webp", 3, lossless=True)
    (folder / "a" / "notes.txt").write_text("no photo")
    return folder


def test_a_folder_is_its_photos_by_their_paths(tree):
    source = open_source(str(tree))
    assert list(source.ids) == ["a/dog.webp", "a/Ünï cat.jpg", "b/zebra.png"]
    assert len(source) == 3
    assert list(source.targets) == [None] * 3
    for index, name in enumerate(source.ids):
        assert np.array_equal(source.load(index), read_photo(tree / name))


def test_a_damaged_photo_is_named_by_its_id_once(tree):
    (tree / "b" / "zebra.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^b/zebra\.png: found no image") as refused:
        open_source(str(tree)).load(2)
    assert str(tree) not in str(refused.value)


def test_a_table_has_paths_of_its_own_folder_ids_and_targets(tree, tmp_path):
    absolute = tree / "a" / "dog.webp"
    lines = [
        "id,path,target,more",
        "one,tree/b/zebra.png,zebra,x",
        f'two,"{absolute}",281.0,',
        "3,c.png,,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    source = open_source(str(tmp_path / "t.csv"))
    assert list(source.ids) == ["one", "two", "3"]
    assert list(source.targets) == ["zebra", "281", None]
    assert np.array_equal(source.load(1), read_photo(absolute))
    with pytest.raises(ImageError, match=r"^3: .*c\.png: does not exist"):
        source.load(2)


def test_a_parquet_table_is_the_same_as_a_csv(tree, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": ["tree/b/zebra.png", "tree/a/dog.webp"], "target": [340, None]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    ours, theirs = (open_source(str(tmp_path / f"t.{kind}")) for kind in ("parquet", "csv"))
    assert list(ours.ids) == list(theirs.ids) == list(frame["path"])
    assert list(ours.targets) == list(theirs.targets) == ["340", None]
    assert np.array_equal(ours.load(1), theirs.load(1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "file\na.png\n", "found file, expected a column named path"),
        ("t.csv", "", "found no column, expected a column named path"),
        ("t.csv", "path\n", "found no rows"),
        ("t.csv", "path,id\na.png,1\nb.png,1\n", "1: found this id 2 times"),
        ("t.csv", "path,id\na.png\n", "found 1 values in line 2, expected 2"),
        ("t.csv", "path,id\na.png,\n", "found no id in row 1"),
        ("t.csv", b"path\n\xff\xfe.png\n", "cannot be read"),
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
        ("t.txt", "a.png\n", "found a file, expected a folder"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as refused:
        open_source(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist"),
        ("", "does not exist"),
        ("s3://bucket/x", "found a source of kind s3:"),
        ("tfds:imagenette", "found no data set and split"),
        ("tfds:imagenette/train", "expected one to be prepared there"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        open_source(name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="found no image files"):
        open_source(str(tmp_path))


# --- ahead ----------------------------------------------------------------------------------------


def of_sizes(count, delay=lambda index: 0.0, started=None):
    """A source of images whose width tells their index."""

    def read(index, at_least):
        if started is not None:
            started.append(index)
        time.sleep(delay(index))
        if index == 3:
            raise ImageError("found damage")
        return Image.new("RGB", (index + 1, 1))

    return Source([str(i) for i in range(count)], [None] * count, read)


def test_images_come_in_the_order_asked_for_though_some_take_longer():
    source = of_sizes(8, delay=lambda index: 0.03 if index % 2 else 0.0)
    order = [7, 0, 3, 2, 5, 6]
    found = list(ahead(source, order, workers=4, at_most=4))
    assert [index for index, _ in found] == order
    for index, image in found:
        if index == 3:
            assert isinstance(image, ImageError)
            assert str(image) == "3: found damage"
        else:
            assert image.width == index + 1


def test_no_more_are_decoded_than_may_wait():
    started: list[int] = []
    images = ahead(of_sizes(50, started=started), range(50), workers=3, at_most=5)
    for taken in range(1, 20):
        next(images)
        time.sleep(0.002)
        assert len(started) <= taken + 5
    images.close()


def test_who_stops_early_leaves_no_thread():
    def own():
        return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

    images = ahead(of_sizes(50), range(50), workers=3, at_most=5)
    next(images)
    assert own()
    images.close()
    assert not own()


def test_an_error_that_is_no_images_is_raised_in_its_turn():
    def read(index, at_least):
        if index == 2:
            raise ZeroDivisionError
        return Image.new("RGB", (1, 1))

    images = ahead(Source("abcd", [None] * 4, read), range(4), workers=2, at_most=4)
    assert [next(images)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(images)


# --- TensorFlow Datasets --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.mark.filterwarnings("default")
def test_a_folder_becomes_a_data_set_with_the_same_pixels_and_without_tensorflow(tree, data_dir):
    pytest.importorskip("tensorflow_datasets")
    (tree / "b" / "broken.jpg").write_bytes(b"no image")
    target, failures = build_tfds(tree, "my_photos")
    assert target == data_dir / "my_photos" / "1.0.0"
    assert [Path(failure.image).name for failure in failures] == ["broken.jpg"]
    source = open_source("tfds:my_photos/train")
    assert list(source.ids) == [f"my_photos/train/{index:08d}" for index in range(3)]
    for index, name in enumerate(["a/dog.webp", "a/Ünï cat.jpg", "b/zebra.png"]):
        assert np.array_equal(source.load(index), read_photo(tree / name))
    assert open_source("tfds:my_photos:1.0.0/train[:2]").ids[-1].endswith("00000001")
    assert "tensorflow" not in sys.modules


@pytest.mark.filterwarnings("default")
def test_sub_folders_are_labels_and_the_records_are_tfds_own(tree, data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    target, _ = build_tfds(tree, "labelled")
    builder = tfds.builder_from_directory(target)
    assert builder.info.features["label"].names == ["a", "b"]
    assert builder.info.splits["train"].num_examples == 3


@pytest.mark.filterwarnings("default")
def test_what_cannot_be_built_or_opened_is_refused_and_nothing_is_left(tree, tmp_path, data_dir):
    pytest.importorskip("tensorflow_datasets")
    build_tfds(tree, "once")
    for make, error, message in (
        (lambda: build_tfds(tree, "once"), OutputError, "exists already"),
        (lambda: build_tfds(tree, "No Name"), ConfigError, "a data set's name"),
        (lambda: build_tfds(tmp_path / "none", "x"), ConfigError, "found no folder"),
        (lambda: open_source("tfds:once/test"), ConfigError, "found no split test .* one of train"),
        (lambda: open_source("tfds:once:2.0.0/train"), ConfigError, r"found version 1\.0\.0"),
    ):
        with pytest.raises(error, match=message):
            make()
    save(tmp_path / "bad" / "x.png")
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match="found no photo that can be read"):
        build_tfds(tmp_path / "bad", "bad")
    assert [path.name for path in data_dir.iterdir() if any(path.iterdir())] == ["once"]


def test_without_tfds_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'amx-jax\[data\]'"):
        open_source("tfds:any/train")
