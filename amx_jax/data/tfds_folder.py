"""A folder of photos made a TFDS data set: many small files become a few large ones, read in any order.

Needs TensorFlow Datasets and ``array_record``, not TensorFlow. Knows nothing of classifiers.
"""

import contextlib
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from amx_jax.data.photos import Failure
from amx_jax.data.sources import Source, ahead, import_tfds, open_folder, tfds_folder
from amx_jax.errors import ConfigError, ImageError, OutputError, one_line

VERSION = "1.0.0"
SPLIT = "train"
# A reader keeps each shard it has touched open. The 1.28 million photos of ImageNet make 257 of this
# size, well below the 1,024 files that a process may commonly open.
PER_SHARD = 5000
AT_A_TIME = 100  # TFDS writes its metadata anew at each call: 8 ms with 1,000 labels, a photo 0.3


def build_tfds(
    folder: str | Path, name: str, data_dir: str | Path | None = None, workers: int = 4
) -> tuple[Path, list[Failure]]:
    """Turn a folder of photos into a TFDS data set, which ``tfds:NAME/train`` then opens.

    Its features are ``image``; ``file_name``, the path below the folder; and, where every photo lies in
    a sub-folder, ``label``, by the name of the first one on its path. Records are in the order of
    :func:`open_source`. Each photo is decoded once, to see that it can be, and stored as the bytes of
    its file: nothing is lost, and formats may be mixed. TensorFlow's own reader decodes of them JPEG,
    PNG, GIF and BMP; this package all of ``FORMATS``.

    Not the builders of TFDS: above 1 GB they sort through temporary files that take TensorFlow.

    Args:
        folder: of photos, as of :func:`open_source`.
        name: of the data set: small letters, digits and ``_``, a letter first.
        data_dir: where data sets are; ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
        workers: threads that decode.

    Returns:
        The data set's folder, and a failure for each photo that was left out as it cannot be read.

    Raises:
        ConfigError: the folder is missing or holds no photos; a name that cannot be one; TFDS is not
            installed.
        ImageError: none of the photos can be read.
        OutputError: the data set exists already, or cannot be written; no part of it is left.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{one_line(name) or repr(name)}: found a data set's name that TFDS does not take, "
            "expected small letters, digits and _, a letter first; choose another"
        )
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{one_line(folder)}: found no folder, expected one of photos; check the path"
        )
    folder = Path(folder)
    source = open_folder(folder)
    labels = _labels(folder, source)
    tfds = import_tfds()
    target = tfds_folder(data_dir) / name / VERSION
    if os.path.lexists(target):
        raise OutputError(
            f"{one_line(target)}: exists already; choose another name, or remove it to build it again"
        )
    failures: list[Failure] = []
    temporary = target.with_name(f"incomplete.{uuid.uuid4().hex}_{VERSION}")  # passed over by TFDS
    try:
        temporary.mkdir(parents=True)
        writer = _writer(tfds, name, temporary, sorted(set(labels)))
        with contextlib.closing(_examples(folder, source, labels, workers, failures)) as examples:
            while batch := list(itertools.islice(examples, AT_A_TIME)):
                writer.add_examples({SPLIT: batch})
        if len(failures) == len(source):
            raise ImageError(
                f"{one_line(folder)}: found no photo that can be read, expected one at least; the "
                f"first: {failures[0].reason}"
            )
        writer.close_all()
        temporary.rename(target)
    except (OSError, RuntimeError) as error:  # RuntimeError, from array_record
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"{one_line(target)}: cannot be written: {reason}; make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # where nothing else is in it
    return target, failures


def _labels(folder: Path, source: Source) -> list[str]:
    """The label of each photo; empty where one lies in the folder itself."""
    if not all("/" in name for name in source.ids):
        return []
    labels = [name.split("/")[0] for name in source.ids]
    for label in sorted(set(labels)):
        # TFDS writes one a line, and reads it stripped.
        if not label.isprintable() or label != label.strip():
            raise ConfigError(
                f"{one_line(folder)}: found a sub-folder named {label!a}, expected a name that can be "
                "a label, without blanks around it; rename it"
            )
    return labels


def _writer(tfds: Any, name: str, folder: Path, labels: list[str]) -> Any:
    features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
    if labels:
        features["label"] = tfds.features.ClassLabel(names=labels)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Photos of a folder, as they were.",
        features=tfds.features.FeaturesDict(features),
    )
    writer = tfds.core.SequentialWriter(info, PER_SHARD, file_format="array_record")
    writer.initialize_splits([SPLIT])
    return writer


def _examples(
    folder: Path, source: Source, labels: list[str], workers: int, failures: list[Failure]
) -> Generator[dict[str, Any], None, None]:
    # at_least=1: a JPEG is checked to its end all the same, in a third of the time.
    for index, photo in ahead(source, range(len(source)), workers, 2 * workers, at_least=1):
        name = source.ids[index]
        if isinstance(photo, ImageError):
            failures.append(Failure(os.fspath(folder / name), str(photo)))
            continue
        # A path, which TFDS stores as the file's bytes; pixels it would encode, by TensorFlow.
        example: dict[str, Any] = {"image": os.path.abspath(folder / name)}
        example["file_name"] = name.encode("utf-8", "backslashreplace")
        if labels:
            example["label"] = labels[index]
        yield example
