"""Results out: one folder of pictures and numbers per photo, and one index of them all.

The contract: ``<folder>/<stem>/<name>.png``, ``<folder>/<stem>/explanation.json`` and
``<folder>/explanations.json``; of an evaluation ``<folder>/<name>.png``, ``<folder>/evaluation.csv``
and ``<folder>/evaluation.json``. Every file appears by a rename, so none is ever half-written.
Knows nothing of what the pictures show or the numbers mean.
"""

import csv
import io
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from amx_jax.errors import OutputError, one_line

EXPLANATION = "explanation.json"
EXPLANATIONS = "explanations.json"
EVALUATION = "evaluation"
PNG = b"\x89PNG\r\n\x1a\n"


def check_output(folder: str | Path) -> Path:
    """Make the output folder and make sure, before any work is done, that it takes files.

    Args:
        folder: where results shall go; it and its parents are made if missing.

    Returns:
        The folder.

    Raises:
        OutputError: it is a file, lies below one, or refuses a new file.
    """
    if str(folder) == "":  # to Path the current folder, but most likely an unset variable
        raise OutputError("'': found an empty path, expected a folder for the results")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Only an attempt tells: permission bits do not bind root, nor describe a read-only mount.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        for path in (folder, *folder.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise OutputError(
                    f"{one_line(path)}: found a file, expected a folder for the results; "
                    "choose another output folder"
                ) from error
        raise _refused(folder, error) from error
    return folder


def write_explanation(
    folder: str | Path, stem: str, pictures: Mapping[str, np.ndarray], record: Mapping[str, Any]
) -> Path:
    """Write the result of one photo as a whole or not at all.

    Everything is first written to a hidden temporary folder beside the target. A new result then
    appears by one rename. An older result is replaced file by file, ``explanation.json`` last, so
    that a crash leaves each file either old or new and the record never ahead of its pictures;
    files of other names in that folder are left alone.

    Args:
        folder: the output folder.
        stem: name of the result's folder, as ``unique_stems`` makes it.
        pictures: uint8 ``(H, W)`` or ``(H, W, 3)`` by name; each becomes ``<name>.png``.
        record: what ``explanation.json`` holds; numbers that are not finite become null.

    Returns:
        The result's folder.

    Raises:
        OutputError: the files cannot be written, as on a full disk, or ``stem`` or a picture's name
            is not a plain file name.
        ValueError: a picture of another type or shape.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mask = np.zeros((2, 2), np.uint8)
        ...     target = write_explanation(folder, "cat", {"mask": mask}, {"area": 0.0})
        ...     target.name, sorted(file.name for file in target.iterdir())
        ('cat', ['explanation.json', 'mask.png'])
    """
    target = Path(folder, stem)
    _check_names(stem, *pictures)
    for name, picture in pictures.items():
        gray_or_rgb = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not gray_or_rgb:
            raise ValueError(
                f"picture {name!r} is {picture.dtype} {picture.shape}, "
                "expected uint8 (H, W) or (H, W, 3)"
            )
    text = _to_json(record)
    # Not tempfile.mkdtemp: its folders are closed to everyone but their owner, and stay so.
    temporary = Path(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, picture in pictures.items():
            Image.fromarray(picture).save(temporary / f"{name}.png")
        (temporary / EXPLANATION).write_bytes(text)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            for name in (*(f"{name}.png" for name in pictures), EXPLANATION):
                os.replace(temporary / name, target / name)
    except OSError as error:
        raise _refused(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def write_index(folder: str | Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write all records to ``explanations.json``, replacing an older one in one step.

    Args:
        folder: the output folder.
        records: as given to :func:`write_explanation`, in the order they shall have.

    Returns:
        The file.

    Raises:
        OutputError: the file cannot be written.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(write_index(folder, [{"p": float("nan")}]).read_text(), end="")
        [
          {
            "p": null
          }
        ]
    """
    return write_json(Path(folder, EXPLANATIONS), list(records))


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file in one step: whoever reads it finds the old one or the new one.

    Args:
        path: the file, in a folder that exists.
        value: numbers that are not finite become null, arrays lists, paths text.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(write_json(Path(folder, "areas.json"), np.array([0.5])).read_text(), end="")
        [
          0.5
        ]
    """
    return write_whole(path, _to_json(value))


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file in one step: whoever reads it finds the old one or the new one.

    Args:
        path: the file, in a folder that exists.
        content: of it.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error
    return path


def read_explanations(folder: str | Path) -> list[dict[str, Any]]:
    """The records that :func:`write_index` wrote.

    Args:
        folder: the output folder.

    Returns:
        The records in their order.

    Raises:
        OutputError: ``explanations.json`` is missing, unreadable or damaged.
    """
    path = Path(folder, EXPLANATIONS)
    records = read_json(path, "a list of records", "run the explanation again")
    if not _are_records(records):
        raise OutputError(
            f"{one_line(path)}: found other JSON, expected a list of records; run the explanation again"
        )
    return records


def write_evaluation(
    folder: str | Path,
    records: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
) -> Path:
    """Write what was measured, its summaries and its plots, replacing those of an older evaluation.

    Everything is first written to a hidden temporary folder beside its place, then moved file by file,
    ``evaluation.json`` last: a full disk leaves all of the old, a crash each file either old or new.

    Args:
        folder: the output folder, made if missing.
        records: one for each photo and method. In ``evaluation.csv`` each is a line, its nested values
            in columns as ``probability.image``, its lists left out, and what is None an empty cell.
        summaries: one for each method.
        pictures: PNG files by name; each becomes ``<name>.png``.

    Returns:
        ``evaluation.json``, which holds ``records`` and ``summaries``; numbers that are not finite
        become null.

    Raises:
        OutputError: the files cannot be written, or a picture's name is not a plain file name.
        ValueError: a picture that is not a PNG file.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = [{"image": "cat", "probability": {"image": 0.5}, "energy": None}]
        ...     path = write_evaluation(folder, records, [], {})
        ...     print(path.with_suffix(".csv").read_text(), end="")
        image,probability.image,energy
        cat,0.5,
    """
    _check_names(*pictures)
    for name, picture in pictures.items():
        if not picture.startswith(PNG):
            raise ValueError(f"picture {name!r} begins with {picture[:8]!r}, expected a PNG file")
    path = Path(folder, f"{EVALUATION}.json")
    files = {f"{name}.png": picture for name, picture in pictures.items()}
    files[f"{EVALUATION}.csv"] = _to_csv(records)
    files[path.name] = _to_json({"summaries": list(summaries), "records": list(records)})
    temporary = Path(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        for name in files:
            os.replace(temporary / name, path.with_name(name))
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def read_evaluation(folder: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What :func:`write_evaluation` wrote.

    Args:
        folder: the output folder.

    Returns:
        The records and the summaries, in their order.

    Raises:
        OutputError: ``evaluation.json`` is missing, unreadable or damaged.
    """
    path = Path(folder, f"{EVALUATION}.json")
    expected, again = "records and summaries", "run the evaluation again"
    found = read_json(path, expected, again)
    if not (
        isinstance(found, dict)
        and _are_records(found.get("records"))
        and _are_records(found.get("summaries"))
    ):
        raise OutputError(f"{one_line(path)}: found other JSON, expected {expected}; {again}")
    return found["records"], found["summaries"]


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


def is_below(name: Any) -> bool:
    """Whether the ``folder`` of a record lies within the output: the file may come from anyone.

    Examples:
        >>> [is_below(name) for name in ("dogs", "dogs/2", "../dogs", "/dogs", "", 3)]
        [True, True, False, False, False, False]
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and ".." not in path.parts
        and not (path.is_absolute() or Path(name).is_absolute())
    )


def _check_names(*names: str) -> None:
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name:
            raise OutputError(f"{name!r}: expected the plain name of a file or folder, no path")


def read_json(path: Path, expected: str, again: str) -> Any:
    """A JSON file that this package wrote.

    Args:
        path: the file.
        expected: what it should hold, for the message.
        again: how to mend it, likewise.

    Raises:
        OutputError: it is missing, cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutputError(
            f"{one_line(path)}: does not exist; give the output folder of a finished run"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{one_line(path)}: cannot be read: {error.strerror or error}; "
            "give the output folder of a finished run"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OutputError(
            f"{one_line(path)}: found damaged JSON ({error}), expected {expected}; {again}"
        ) from error


def _to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """A line for each record; a column that nests or holds a list in any record is no column."""
    rows = [_flat(plain(record)) for record in records]
    keys = dict.fromkeys(key for row in rows for key in row)
    no_cell = {key for row in rows for key, value in row.items() if isinstance(value, list)}
    for key in keys:
        parts = key.split(".")
        no_cell |= {".".join(parts[:depth]) for depth in range(1, len(parts))}
    columns = [key for key in keys if key not in no_cell]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "backslashreplace")


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _to_json(value: Any) -> bytes:
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    # A file name that is not UTF-8 reaches us with lone surrogates; Python's escape of one is
    # JSON's as well, and reads back as the same name.
    return text.encode("utf-8", "backslashreplace")


def plain(value: Any) -> Any:
    """The value in JSON's own types: arrays as lists, paths as text, not-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and of JAX
        return plain(value.tolist())
    return value


def _refused(path: Path, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return OutputError(
        f"{one_line(path)}: cannot be written: {reason}; make room or choose another output folder"
    )
