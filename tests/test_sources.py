"""Where a run's images come from: folders, tables and TFDS data sets, decoded ahead of their use."""

import contextlib
import io
import json
import subprocess
import sys
import threading
import time
import weakref
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


def test_a_parquet_table_may_have_numbers_for_ids_and_much_besides(tree, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"image": [b"bytes"] * 2, "path": ["tree/b/zebra.png", "no.png"], "id": [7, 8]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    source = open_source(str(tmp_path / "t.parquet"))
    assert (list(source.ids), list(source.targets)) == (["7", "8"], [None, None])
    assert source.load(0).size == (12, 9)
    parquet.write_table(pyarrow.table({"image": rows["image"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="found image, expected a column named path"):
        open_source(str(tmp_path / "t.parquet"))


def test_odd_names_are_ids_as_they_are_and_messages_stay_a_line(tmp_path):
    save(tmp_path / "f" / "two\nlines.png")
    (tmp_path / "f" / "猫.png").write_bytes(b"")
    source = open_source(str(tmp_path / "f"))
    assert list(source.ids) == ["two\nlines.png", "猫.png"]
    with pytest.raises(ImageError, match=r"^猫\.png: found an empty file"):
        source.load(1)
    (tmp_path / "f" / "two\nlines.png").unlink()
    with pytest.raises(ImageError) as refused:
        source.load(0)
    assert "\n" not in str(refused.value) and "two\\nlines" in str(refused.value)


def test_a_large_jpeg_may_come_smaller(tmp_path):
    save(tmp_path / "large.jpg", size=(640, 480))
    source = open_source(str(tmp_path))
    assert source.load(0).size == (640, 480)
    assert source.load(0, at_least=100).size == (160, 120)
    ((_, photo),) = ahead(source, [0], workers=1, at_most=1, at_least=100)
    assert isinstance(photo, Image.Image) and photo.size == (160, 120)


def test_a_folder_is_read_without_the_libraries_of_other_sources(tree):
    code = (
        "import sys; from amx_jax.data.sources import open_source; open_source(sys.argv[1]).load(0);"
        "sys.exit(bool({'pyarrow', 'tensorflow_datasets', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tree)], check=False).returncode == 0


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


def test_no_more_images_are_in_memory_than_may_wait_and_the_one_in_use():
    alive: list[int] = []
    most = 0

    def read(index, at_least):
        nonlocal most
        image = Image.new("RGB", (1, 1))
        alive.append(index)
        most = max(most, len(alive))
        weakref.finalize(image, alive.remove, index)
        return image

    with contextlib.closing(ahead(Source(range(40), [None] * 40, read), range(40), 3, 4)) as images:
        for _, image in images:
            time.sleep(0.001)
            assert len(alive) <= 4  # while one is in use, that one is counted
            del image
    assert 2 <= most <= 5  # the next is decoded before the consumer lets go of its own
    assert not alive


@pytest.mark.parametrize(("workers", "at_most"), [(0, 1), (1, 0)])
def test_nothing_is_read_by_no_thread_or_into_no_space(workers, at_most):
    with pytest.raises(ConfigError, match="found 0, expected at least 1"):
        next(ahead(of_sizes(2), range(2), workers, at_most))


def own():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_who_stops_early_leaves_no_thread():
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
    assert not own()


def test_consumers_may_read_photos_of_their_own_meanwhile(tree):
    source = open_source(str(tree))
    for index, photo in ahead(source, [0, 1, 2] * 10, workers=3, at_most=3):
        assert np.array_equal(np.asarray(photo), read_photo(tree / source.ids[index]))


# --- TensorFlow Datasets --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


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


def test_sub_folders_are_labels_and_the_records_are_tfds_own(tree, data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    target, _ = build_tfds(tree, "labelled")
    builder = tfds.builder_from_directory(target)
    assert builder.info.features["label"].names == ["a", "b"]
    assert builder.info.splits["train"].num_examples == 3


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
    assert [path.name for path in data_dir.iterdir()] == ["once"]
    assert not own()


def prepared(folder, features, record):
    """A data set of one record, as another tool may have made it."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder.mkdir(parents=True)
    name, version = "other", tfds.core.Version(folder.name)
    identity = tfds.core.DatasetIdentity(
        name=name, version=version, data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 1, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [record]})
    writer.close_all()


def png(*size):
    file = io.BytesIO()
    Image.new("L", size, 7).save(file, "PNG")
    return file.getvalue()


def test_files_are_stored_as_they_are(tree, data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    target, _ = build_tfds(tree, "stored")
    skip = {"image": tfds.decode.SkipDecoding()}
    for record in tfds.builder_from_directory(target).as_data_source("train", decoders=skip):
        file = tree / record["file_name"].decode()
        assert record["image"] == file.read_bytes()
        assert record["label"] == "ab".index(file.parent.name)


def test_photos_in_the_folder_itself_have_no_label_and_many_make_several_files(
    tmp_path, data_dir, monkeypatch
):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr("amx_jax.data.tfds_folder.PER_SHARD", 4)
    monkeypatch.setattr("amx_jax.data.tfds_folder.AT_A_TIME", 3)
    widths = [index + 1 for index in range(10)]
    for width in widths:
        save(tmp_path / "flat" / f"{width:02d}.png", size=(width, 1))
    target, failures = build_tfds(tmp_path / "flat", "flat")
    info = tfds.builder_from_directory(target).info
    assert (sorted(info.features), failures) == (["file_name", "image"], [])
    assert info.splits["train"].shard_lengths == [4, 4, 2]
    source = open_source("tfds:flat/train")
    found = ahead(source, range(10), workers=4, at_most=4)
    assert [image.width for _, image in found if isinstance(image, Image.Image)] == widths


def test_a_folder_whose_name_cannot_be_a_label_is_refused(tmp_path):
    save(tmp_path / "f" / " a" / "x.png")
    with pytest.raises(ConfigError, match="found a sub-folder named ' a'"):
        build_tfds(tmp_path / "f", "labels")


def test_the_image_is_the_feature_of_that_name_or_the_only_one(data_dir):
    features = pytest.importorskip("tensorflow_datasets").features
    image, gray = features.Image(), features.LabeledImage(labels=9, shape=(None, None, 1))
    large, small = png(4, 3), png(2, 1)
    for version, kinds, record, found in (
        ("1.0.0", {"image": image, "b": image}, {"image": large, "b": small}, (4, 3)),
        ("2.0.0", {"photo": image, "image_mask": gray}, {"photo": large, "image_mask": small}, (4, 3)),
        ("3.0.0", {"a": image, "b": image}, {"a": large, "b": small}, "found 2 image features"),
        ("10.0.0", {"text": features.Text()}, {"text": "a"}, "found 0 image features"),
    ):
        prepared(data_dir / "other" / version, kinds, record)
        if isinstance(found, tuple):
            assert open_source(f"tfds:other:{version}/train").load(0).size == found
        else:
            with pytest.raises(ConfigError, match=found):
                open_source("tfds:other/train")  # the newest


def test_a_configuration_is_named_where_there_are_several(data_dir):
    image = {"image": pytest.importorskip("tensorflow_datasets").features.Image()}
    prepared(data_dir / "other" / "small-v2" / "1.0.0", image, {"image": png(4, 3)})
    assert open_source("tfds:other/train").ids == ("other/train/00000000",)
    prepared(data_dir / "other" / "big" / "1.0.0", image, {"image": png(40, 30)})
    with pytest.raises(ConfigError, match=r"found 2 configurations .* big, small-v2"):
        open_source("tfds:other/train")
    assert open_source("tfds:other/big/train").load(0).size == (40, 30)
    assert open_source("tfds:other/small-v2:1.0.0/train").load(0).size == (4, 3)


def test_damage_to_a_data_set_is_that_of_its_images_or_refused(data_dir):
    image = {"image": pytest.importorskip("tensorflow_datasets").features.Image()}
    folder = data_dir / "other" / "1.0.0"
    prepared(folder, image, {"image": b"no image"})
    with pytest.raises(ImageError, match=r"^other/train/00000000: found no image"):
        open_source("tfds:other/train").load(0)
    for file in folder.glob("*array_record*"):
        file.unlink()
    with pytest.raises(ImageError, match=r"^other/train/00000000: found a damaged record"):
        open_source("tfds:other/train").load(0)
    about = folder / "dataset_info.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match="found tfrecord files, expected array_record"):
        open_source("tfds:other/train")
    about.write_text("{")
    with pytest.raises(ConfigError, match="found a damaged data set") as refused:
        open_source("tfds:other/train")
    assert "\n" not in str(refused.value)


def test_without_tfds_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'amx-jax\[data\]'"):
        open_source("tfds:any/train")
