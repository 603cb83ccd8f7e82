"""Images in, by the thousand: a folder, a table of paths or a TFDS data set, decoded ahead of use.

Pure reading. Knows nothing of classifiers: a target is passed on as it is written. Nothing is decoded
before it is asked for, and what is wrong with one image is that image's error, not the source's.
"""

import csv
import io
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amx_jax.data.photos import DAMAGE, FORMATS, decode, find_photos, read_photo, unhindered
from amx_jax.errors import ConfigError, ImageError, one_line

TFDS = "tfds:"
EXPECTED = "a folder of images, a table that ends in .csv or .parquet, or tfds:NAME/SPLIT"
INSTALL = "pip install 'amx-jax[data]'"
_NAME = re.compile(
    r"(?P<name>[A-Za-z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>\d+\.\d+\.\d+))?/(?P<split>[^/]+)"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Source:
    """Images by index, each with a name that is the same in every run.

    Attributes:
        ids: one for each image, all distinct.
        targets: the class to explain, by name or index; None where the classifier's own top class is.
        read: decodes an image from its index and the ``at_least`` of :func:`read_photo`; the message of
            an ``ImageError`` that it raises need not say which image it was.
    """

    ids: Sequence[str]
    targets: Sequence[str | None]
    read: Callable[[int, int | None], Image.Image]

    def __post_init__(self):
        if len(set(self.ids)) < len(self.ids):
            ((name, count),) = Counter(self.ids).most_common(1)
            raise ConfigError(
                f"{one_line(name)}: found this id {count} times, expected it once; take out the "
                "repeated images, or tell them apart in a column 'id' of the table"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image; several threads may do so at once.

        Args:
            index: from 0 to ``len(self) - 1``.
            at_least: as of :func:`read_photo`: a JPEG may come back smaller, to be decoded faster.

        Returns:
            An image of mode RGB, upright.

        Raises:
            ImageError: it cannot be read; the message begins with its id.
        """
        try:
            return self.read(index, at_least)
        except ImageError as error:
            raise ImageError(f"{one_line(self.ids[index])}: {error}") from error


def open_source(name: str) -> Source:
    """The images that a name stands for.

    - A folder: the images in it and below it, as :func:`find_photos` finds them. Their ids are their
      paths below the folder, by which they are sorted.
    - A table, ``.csv`` or ``.parquet``: a row for each image, in that order. Column ``path``, from the
      table's folder on; ``id``, else the path as written; ``target``, a class by name or index, where
      it is not empty. Other columns are passed over.
    - ``tfds:NAME/SPLIT``: a data set that TensorFlow Datasets has prepared as ``array_record`` or
      ``parquet`` below ``$TFDS_DATA_DIR`` (else ``~/tensorflow_datasets``). ``NAME`` may be
      ``imagenette``, ``imagenette/full-size-v2``, ``imagenette:1.0.0``; ``SPLIT`` a part as
      ``train[:10%]``. Ids are ``NAME/SPLIT/00000017``. TensorFlow itself is not needed.

    Args:
        name: as above.

    Returns:
        The source; no image of it has been opened yet.

    Raises:
        ConfigError: nothing of that name, nothing in it, an id twice, a damaged table or one without
            the column; a data set not prepared, or without such a split or image; a library missing.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for file in ("cat.png", "ant.png"):
        ...         Image.new("RGB", (4, 3)).save(Path(folder, file))
        ...     source = open_source(folder)
        ...     source.ids, source.load(0).size
        (('ant.png', 'cat.png'), (4, 3))
    """
    path = Path(name)
    if name.startswith(TFDS):
        return _open_tfds(name.removeprefix(TFDS))
    if os.path.isdir(name):
        return open_folder(path)
    if os.path.exists(name):
        if path.suffix.lower() in (".csv", ".parquet"):
            return _open_table(path)
        raise ConfigError(f"{one_line(name)}: found a file, expected {EXPECTED}; give its folder")
    scheme = re.match(r"[A-Za-z][\w+.-]+:", name)  # two letters or more: C: is a drive
    if scheme:
        raise ConfigError(f"{one_line(name)}: found a source of kind {scheme[0]}, expected {EXPECTED}")
    raise ConfigError(f"{one_line(name) or repr(name)}: does not exist, expected {EXPECTED}")


def ahead(
    source: Source,
    indices: Iterable[int],
    workers: int,
    at_most: int,
    at_least: int | None = None,
) -> Generator[tuple[int, Image.Image | ImageError], None, None]:
    """Images of a source in a given order, decoded in threads while the consumer is busy.

    Args:
        source: where from.
        indices: of the images, in the order they shall come; taken as they are needed.
        workers: threads.
        at_most: images at a time that are decoded, or being so, and not yet taken.
        at_least: as of :meth:`Source.load`.

    Yields:
        An index, and the image or what is wrong with it.

    Raises:
        ConfigError: ``workers`` or ``at_most`` below 1.
        Exception: any other than ``ImageError`` that an image raises, at that image's turn.

    Examples:
        >>> source = Source("abc", [None] * 3, lambda index, _: Image.new("RGB", (index + 1, 1)))
        >>> [(index, photo.size) for index, photo in ahead(source, [2, 0], workers=2, at_most=2)]
        [(2, (3, 1)), (0, (1, 1))]
    """
    for what, value in (("workers", workers), ("at_most", at_most)):
        if value < 1:
            raise ConfigError(f"{what}: found {value}, expected at least 1; raise it")

    def load(index: int) -> Image.Image | ImageError:
        try:
            return source.load(index, at_least)
        except ImageError as error:
            return error

    def first() -> tuple[int, Image.Image | ImageError]:
        index, future = waiting.popleft()
        return index, future.result()

    # Not Grain: its threads prefetch as well, but an early end and errors by item take more than this.
    waiting: deque[tuple[int, Future[Image.Image | ImageError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        for index in indices:
            if len(waiting) == at_most:
                yield first()  # not by way of a variable here, which would keep the image alive
            waiting.append((index, pool.submit(load, index)))
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


# --- files ----------------------------------------------------------------------------------------


def open_folder(folder: Path) -> Source:
    """The images in a folder and below it; see :func:`open_source`."""
    photos, failures = find_photos([folder])
    if failures:
        raise ConfigError(failures[0].reason)
    found = sorted((photo.relative_to(folder).as_posix(), photo) for photo in photos)
    ids, paths = zip(*found, strict=True)
    return Source(ids, (None,) * len(ids), lambda index, at_least: _read(paths[index], at_least))


def _read(path: Path, at_least: int | None) -> Image.Image:
    """The photo; in the message of an error, its id takes the place of its path."""
    try:
        return read_photo(path, at_least)
    except ImageError as error:
        raise ImageError(str(error).removeprefix(f"{one_line(path)}: ")) from error


def _open_table(path: Path) -> Source:
    name = one_line(path)
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if "path" not in columns:
        found = _short(", ".join(columns)) or "no column"
        raise ConfigError(f"{name}: found {found}, expected a column named path; add or rename it")
    written = columns["path"]
    if not written:
        raise ConfigError(f"{name}: found no rows, expected one for each image; add them")
    for column in ("path", "id"):
        if "" in columns.get(column, ()):
            row = columns[column].index("") + 1
            raise ConfigError(
                f"{name}: found no {column} in row {row}, expected one in each; fill it in"
            )
    paths = [path.parent / text for text in written]  # an absolute one stays as it is
    targets = [_target(text) for text in columns.get("target", [""] * len(paths))]
    # An id of its own does not say which file it is; then the message has both.
    read = read_photo if "id" in columns else _read
    ids = columns.get("id", written)
    return Source(ids, targets, lambda index, at_least: read(paths[index], at_least))


def _target(text: str) -> str | None:
    # A column of numbers with gaps is one of floats to pandas, and is so written: 281.0.
    return re.sub(r"^(\d+)\.0$", r"\1", text.strip()) or None


def _csv(path: Path) -> dict[str, list[str]]:
    """The columns of a table by name, each as long as the table has rows."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error, "a table in UTF-8 with commas") from error
    header = rows[0][1] if rows else []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise ConfigError(
                f"{one_line(path)}: found {len(row)} values in line {line}, expected {len(header)} as "
                "in the first line; mend it, with quotes around a value that has a comma"
            )
    return {name: [row[place] for _, row in rows[1:]] for place, name in enumerate(header)}


def _parquet(path: Path) -> dict[str, list[str]]:
    """As :func:`_csv`; a column that is of no use here comes empty, as it may hold whole images."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{one_line(path)}: pyarrow is not installed; {INSTALL}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read([name for name in ("path", "id", "target") if name in names])
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error, "a Parquet file") from error
    columns: dict[str, list[str]] = {name: [] for name in names}
    for name, values in table.to_pydict().items():
        columns[name] = ["" if value is None else str(value) for value in values]
    return columns


def _unreadable(path: Path, error: Exception, expected: str) -> ConfigError:
    reason = getattr(error, "strerror", None) or _short(error)
    return ConfigError(
        f"{one_line(path)}: cannot be read: {reason}; expected {expected}; check it, or write it again"
    )


def _short(text: Any) -> str:
    line = " ".join(str(text).split())
    return one_line(line if len(line) <= 200 else f"{line[:197]}...")


# --- TensorFlow Datasets --------------------------------------------------------------------------


def import_tfds() -> Any:
    """The package ``tensorflow_datasets``, which takes a second to import.

    Raises:
        ConfigError: it is not installed, or not in full.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ConfigError(
            f"tensorflow_datasets: cannot be imported ({_short(error)}), expected it to be installed; "
            f"{INSTALL}"
        ) from error
    return tensorflow_datasets


def tfds_folder(data_dir: str | Path | None = None) -> Path:
    """Where data sets are: as given, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    # TFDS reads the variable once, on import; here, whenever it is asked for.
    return Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    ).expanduser()


def _open_tfds(name: str) -> Source:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{TFDS}{one_line(name)}: found no data set and split in this, expected tfds:NAME/SPLIT, "
            "as tfds:imagenette/validation or tfds:my_photos:1.0.0/train"
        )
    tfds = import_tfds()
    split = match["split"]
    folder = _prepared(name, match["name"], match["config"], match["version"])
    try:
        builder = tfds.builder_from_directory(folder)
        splits = ", ".join(sorted(builder.info.splits))
        features = dict(builder.info.features)
    except Exception as error:  # TFDS promises no common base for what damaged files raise
        raise ConfigError(
            f"{one_line(folder)}: found a damaged data set ({_short(error)}), expected one that TFDS "
            "can read; prepare it again"
        ) from error
    image = _image_feature(name, features, tfds.features.Image)
    try:
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise ConfigError(
            f"{one_line(folder)}: found {builder.info.file_format.value} files, expected array_record, "
            f"which can be read in any order; tfds build {match['name']} --file_format=array_record"
        ) from error
    except ImportError as error:
        raise ConfigError(f"{TFDS}{name}: array_record is not installed; {INSTALL}") from error
    except ValueError as error:
        raise ConfigError(
            f"{TFDS}{name}: found no split {split} ({_short(error)}), expected one of {splits}, or a "
            "part of one as train[:10%]"
        ) from error
    # Of each record its image only, and as the bytes that were stored: so a photo has the same pixels
    # here as in its file, and what the other features would need to be decoded is not needed.
    example = tfds.features.FeaturesDict({image: features[image]})
    as_stored = {image: tfds.decode.SkipDecoding()}

    def read(index: int, at_least: int | None) -> Image.Image:
        try:
            data = example.deserialize_example_np(records[index], decoders=as_stored)[image]
        except DAMAGE as error:  # RuntimeError, from array_record
            raise ImageError(
                f"found a damaged record ({_short(error)}), expected an image; prepare "
                f"{one_line(folder)} again"
            ) from error
        return _decode_bytes(data, at_least)

    # Ids by position: a feature as file_name is there in some data sets only, and nothing keeps two
    # images from sharing one.
    ids = tuple(f"{name}/{index:08d}" for index in range(len(records)))
    return Source(ids, (None,) * len(ids), read)


def _prepared(name: str, dataset: str, config: str | None, version: str | None) -> Path:
    """The folder of a data set's files: ``NAME/VERSION``, or ``NAME/CONFIG/VERSION``."""
    # Not by tfds.builder: for a data set it has code for, it takes the version and the configuration
    # that are newest there, prepared or not, and asks the network about those that are not.
    folder = tfds_folder() / dataset
    if config:
        folder /= config
    elif not _versions(folder):
        configs = [path for path in _folders(folder) if _versions(path)]
        if len(configs) > 1:
            raise ConfigError(
                f"{TFDS}{name}: found {len(configs)} configurations in {one_line(folder)}, expected "
                f"one of them in the name, as {TFDS}{dataset}/{configs[0].name}/SPLIT; they are "
                f"{', '.join(path.name for path in configs)}"
            )
        folder = configs[0] if configs else folder
    found = _versions(folder)
    if not found or (version and version not in found):
        raise ConfigError(
            f"{TFDS}{name}: found {'version ' + ', '.join(found) if found else 'no data set'} in "
            f"{one_line(folder)}, expected {version or 'one'} to be prepared there; "
            f"tfds build {dataset} --file_format=array_record, or set TFDS_DATA_DIR"
        )
    return folder / (version or found[-1])


def _versions(folder: Path) -> list[str]:
    """The prepared versions of a data set, the newest last."""
    found = [path.name for path in _folders(folder) if (path / "dataset_info.json").is_file()]
    found = [name for name in found if _VERSION.fullmatch(name)]
    return sorted(found, key=lambda name: [int(number) for number in name.split(".")])


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _image_feature(name: str, features: dict[str, Any], kind: type) -> str:
    # The type itself: LabeledImage, a mask of classes, derives from it. And TFDS stores an image of
    # floats as the four bytes of each in a PNG with transparency, which is no picture.
    images = [key for key, feature in features.items() if type(feature) is kind]
    images = [key for key in images if features[key].np_dtype != np.float32]
    if "image" in images:
        return "image"
    if len(images) == 1:
        return images[0]
    raise ConfigError(
        f"{TFDS}{name}: found {len(images)} image features of 8 or 16 bits among "
        f"{_short(', '.join(sorted(features)))}, expected one, or one of them named image; "
        "take another data set"
    )


def _decode_bytes(data: bytes, at_least: int | None) -> Image.Image:
    """As :func:`read_photo`, of a file's content."""
    with unhindered():
        try:
            return decode(io.BytesIO(data), at_least)
        except Image.UnidentifiedImageError as error:
            raise ImageError(
                f"found no image (the data start with {data[:8]!r}), expected one of "
                f"{', '.join(FORMATS)}; take it out of the data set"
            ) from error
        except DAMAGE as error:
            raise ImageError(
                f"found damaged or truncated image data ({_short(error)}), expected a whole image; "
                "take it out of the data set"
            ) from error
