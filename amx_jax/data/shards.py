"""Rows out by the thousand: Parquet files that pandas, DuckDB and 🤗 datasets read as they are.

A row for each image, an explanation or why there is none. While a run is under way its rows lie in
small *pieces* in a hidden folder; at the end :func:`merge` makes files of them, in the order of the
images. Every file appears by a rename, so none is ever half-written, and the same rows give the same
bytes.
"""

import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from amx_jax.data.results import plain, read_json
from amx_jax.errors import ConfigError, OutputError, one_line

PIECES = ".pieces"
# Of the record: what is not of the image or not the same again, and what no column has room for.
LEFT_OUT = ("seconds", "config", "versions", "top")
COMPRESSION = "zstd"
PARTS = "part-*-of-*.parquet"


class _Damaged(OutputError):
    """A file with no rows to be had from it, unlike one that cannot be opened now."""


def row(name: str, record: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """The row of an explained image.

    Args:
        name: its id.
        record: as :meth:`amx_jax.Explanation.record` makes it.
        mask: bool ``(H, W)``.

    Returns:
        A value for each column of :func:`schema`.
    """
    found, notion, method = record["probability"], record["notion"], record["method"]
    kept = {key: value for key, value in record.items() if key not in LEFT_OUT}
    return {
        "id": text(name),
        "failure": None,
        "target": record["target"]["index"],
        "label": record["target"]["name"],
        "rival": record["decision"].get("rival", {}).get("name"),
        "probability_image": found["image"],
        "probability_explanation": found["explanation"],
        "probability_complement": found["complement"],
        "area": record["area"],
        "sufficient": record["sufficient"],
        "necessary": record["necessary"],
        "holds": notion["holds"],
        "minimal": record["minimal"]["holds"],
        "cell": record["minimal"]["cell"],
        "calls": record["minimal"]["calls"],
        "steps": record["steps"],
        "components": record["components"],
        "notion": notion["name"],
        "goal": notion["goal"],
        "confidence": notion["confidence"],
        "method": method["name"],
        "start": method["start"],
        "area_before_pruning": record["before_pruning"]["area"],
        "robustness": [{"kind": kind, **counts} for kind, counts in record["robustness"].items()],
        "robustness_bound": record["robustness_bound"]["share"],
        "certainty": record["robustness_bound"]["certainty"],
        "flags": list(record["controls"]["flags"]),
        "words": " ".join(record["words"]),
        "mask": _png(mask),
        "record": text(json.dumps(plain(kept), ensure_ascii=False, allow_nan=False)),
    }


def failed(name: str, reason: str) -> dict[str, Any]:
    """The row of an image that has no explanation: everything but its id and the reason is null.

    Examples:
        >>> failed("cat.jpg", "cat.jpg: found no image")["failure"]
        'cat.jpg: found no image'
    """
    return {"id": text(name), "failure": text(reason)}


def text(name: str) -> str:
    r"""The name in valid Unicode: a file's need not be, and Parquet's must.

    Examples:
        >>> text("caf\udce9.jpg")
        'caf\\udce9.jpg'
    """
    return name.encode("utf-8", "backslashreplace").decode()


def _png(mask: np.ndarray) -> bytes:
    """A PNG of a bit a pixel."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", optimize=True)
    return file.getvalue()


def mask_of(png: bytes) -> np.ndarray:
    """The mask in a row, bool ``(H, W)``.

    Examples:
        >>> mask_of(_png(np.eye(2, dtype=bool))).tolist()
        [[True, False], [False, True]]
    """
    return np.asarray(Image.open(io.BytesIO(png)), bool)


def schema() -> Any:
    """The columns and their types, a ``pyarrow.Schema``."""
    pa = _pyarrow()
    kept = pa.struct([("kind", pa.string()), ("kept", pa.int32()), ("trials", pa.int32())])
    types = {
        "id failure label rival notion goal method start words record": pa.string(),
        "target cell calls steps components": pa.int32(),
        "probability_image probability_explanation probability_complement area confidence "
        "area_before_pruning robustness_bound certainty": pa.float64(),
        "sufficient necessary holds minimal": pa.bool_(),
        "robustness": pa.list_(kept),
        "flags": pa.list_(pa.string()),
        "mask": pa.binary(),
    }
    by_name = {name: kind for names, kind in types.items() for name in names.split()}
    order = [
        *("id", "failure", "target", "label", "rival"),
        *("probability_image", "probability_explanation", "probability_complement"),
        *("area", "sufficient", "necessary", "holds", "minimal", "cell", "calls", "steps"),
        *("components", "notion", "goal", "confidence", "method", "start", "area_before_pruning"),
        *("robustness", "robustness_bound", "certainty", "flags", "words", "mask", "record"),
    ]
    return pa.schema([(name, by_name[name]) for name in order])


def pieces(folder: Path) -> Path:
    """Where the pieces of a run's folder lie."""
    return folder / PIECES


def write_shard(
    path: Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write rows as a Parquet file, whole or not at all.

    Args:
        path: of the file; its folder is made if missing.
        rows: of :func:`row` and :func:`failed`.
        metadata: JSON by key, of all the rows.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    pa = _pyarrow()
    import pyarrow.parquet as pq

    about = {key: json.dumps(plain(value), sort_keys=True) for key, value in (metadata or {}).items()}
    table = pa.Table.from_pylist(list(rows), schema=schema().with_metadata(about))
    _write(
        path,
        lambda file: pq.write_table(table, file, compression=COMPRESSION, write_page_checksum=True),
    )


def _write(path: Path, content: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is whole whenever it is there, after a loss of power as well."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                content(file)
                file.flush()
                os.fsync(file.fileno())  # its name must not be on the disk before its content is
            os.replace(temporary, path)
            _sync(path.parent)  # and what it replaces may be deleted only once its name is
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{one_line(path)}: cannot be written: {error.strerror or error}; free some space or "
            "choose another output folder"
        ) from error


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name != "posix":  # Windows opens no folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a Parquet file.

    Args:
        path: of the file.
        columns: those wanted; all by default.

    Raises:
        OutputError: it is missing, unreadable, damaged, or of other columns.
    """
    return _table(path, columns).to_pylist()


def _table(path: Path, columns: Sequence[str] | None = None) -> Any:
    pa = _pyarrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found, wanted = file.schema_arrow, schema()
            if not found.equals(wanted):
                odd = sorted(set(found.names) ^ set(wanted.names)) or ["types"]
                raise _Damaged(
                    f"{one_line(path)}: found other columns than a run writes ({', '.join(odd[:5])}); "
                    "take the file away, or choose another folder"
                )
            return file.read(list(columns) if columns is not None else None)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are no UTF-8
        if isinstance(error, OSError) and error.errno:  # the system's; Arrow's own have no number
            raise OutputError(
                f"{one_line(path)}: cannot be read: {os.strerror(error.errno)}; mend that and run again"
            ) from error
        reason = " ".join(str(error).split())[:150]
        raise _Damaged(
            f"{one_line(path)}: found a damaged Parquet file ({reason}), expected a whole one; take it "
            "away and run again"
        ) from error


def read_columns(folder: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Some columns of all rows of a run's folder, each image once; one file is open at a time.

    Args:
        folder: of the run, finished or not.
        columns: their names.

    Raises:
        OutputError: there is no such folder, it holds no rows, or a file is damaged.
    """
    paths = files(folder)
    if not paths:
        raise OutputError(
            f"{one_line(folder)}: found no rows of a run, expected part-*.parquet; give the output "
            "folder of `amx run`"
        )
    found: dict[str, list[Any]] = {name: [] for name in columns}
    seen: set[str] = set()
    for path in paths:
        table = _table(path, ["id", *columns])
        new = [place for place, name in enumerate(table["id"].to_pylist()) if name not in seen]
        seen.update(table["id"].take(new).to_pylist())
        for name in columns:
            found[name] += table[name].take(new).to_pylist()
    return found


def finished(folder: Path) -> tuple[set[str], list[Path]]:
    """The ids that have a row, and the files that are damaged.

    Another process may put the files together meanwhile.

    Args:
        folder: of the run.

    Raises:
        OutputError: a file cannot be read that may well be whole, as one without permission.
    """
    while True:
        names: set[str] = set()
        damaged = []
        paths = files(folder)
        for path in paths:
            try:
                # All columns: what is damaged must be found now, not when the run is put together.
                names |= set(_table(path)["id"].to_pylist())
            except _Damaged:
                damaged.append(path)
            except OutputError:
                if path.exists():
                    raise
        if all(path.exists() for path in paths):  # else a merge has moved rows behind our back
            return names, damaged


def files(folder: Path) -> list[Path]:
    """The Parquet files of a run's folder: finished ones, and then pieces."""
    # Looked for in the order that rows move in, so that a merge moves none past us.
    small = sorted(pieces(folder).glob("*.parquet"))
    new = sorted(_new(folder).glob(PARTS)) if _whole(folder).exists() else []
    return _parts(folder) + new + small


def set_aside(path: Path) -> Path:
    """Take a damaged file out of the run; its images are explained anew. Returns its new name.

    Raises:
        OutputError: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.corrupt")
    try:
        os.replace(path, aside)
    except OSError as error:
        raise OutputError(
            f"{one_line(path)}: cannot be set aside: {error.strerror or error}; "
            "take the file away and run again"
        ) from error
    return aside


def merge(
    folder: Path, names: Sequence[str], rows: int, metadata: Mapping[str, Any] | None = None
) -> list[Path]:
    """Make ``part-00000-of-00003.parquet`` … of all rows, in the order of some ids.

    It may be stopped at any moment and begun again. New files are first written beside the pieces; once
    all are whole the old ones are deleted and the new ones take their place, so that whoever reads the
    folder meets no id twice.

    Args:
        folder: of the run.
        names: the ids, each with a row in it. Rows of others, as of a larger run, come after them.
        rows: in each file, at most.
        metadata: as of :func:`write_shard`.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be read or written, or an id has no row.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     write_shard(pieces(folder) / "0.parquet", [failed(id, "gone") for id in "cab"])
        ...     for path in merge(folder, "abc", rows=2):
        ...         print(path.name, [row["id"] for row in read_rows(path, ["id"])])
        part-00000-of-00002.parquet ['a', 'b']
        part-00001-of-00002.parquet ['c']
    """
    try:
        _complete(folder)  # an earlier one
        where: dict[str, tuple[Path, int]] = {}
        for path in reversed(files(folder)):  # of an id with two rows, which are the same, the first
            found = _table(path, ["id"])["id"].to_pylist()
            where |= {name: (path, place) for place, name in enumerate(found)}
        order = list(dict.fromkeys([*names, *sorted(where.keys() - set(names))]))
        missing = [name for name in order if name not in where]
        if missing:
            raise OutputError(
                f"{one_line(folder)}: found no row of {len(missing)} of {len(order)} images, as of "
                f"{one_line(missing[0])}, expected one of each; run again"
            )
        count = -(-len(order) // rows)
        parts = [folder / f"part-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        asked = {name: (parts[place // rows], place % rows) for place, name in enumerate(order)}
        if files(folder) != parts or where != asked:
            for number, part in enumerate(parts):
                own = order[number * rows : (number + 1) * rows]
                write_shard(_new(folder) / part.name, _gathered(own, where), metadata)
            note = json.dumps([part.name for part in parts]).encode()
            _write(_whole(folder), lambda file: file.write(note))
            _complete(folder)
    except OSError as error:
        raise OutputError(
            f"{one_line(folder)}: its files cannot be put together: {error.strerror or error}; mend "
            "that and run again"
        ) from error
    return _parts(folder)


def _new(folder: Path) -> Path:
    """Where :func:`merge` writes."""
    return pieces(folder) / "new"


def _whole(folder: Path) -> Path:
    """The note that says that all it wrote is whole, and what that is."""
    return _new(folder) / "whole.json"


def _complete(folder: Path) -> None:
    """Put the new files in the place of all others, where they are whole; else drop them."""
    new = _new(folder)
    if not new.exists():
        return
    if _whole(folder).exists():
        parts = read_json(_whole(folder), "the names of files", "delete it and run again")
        for path in [*_parts(folder), *pieces(folder).glob("*.parquet")]:
            in_place = path.parent == folder and path.name in parts and not (new / path.name).exists()
            if not in_place:
                path.unlink()
        for part in parts:
            if (new / part).exists():
                os.replace(new / part, folder / part)
        _sync(folder)
        _whole(folder).unlink()
    for path in new.iterdir():
        path.unlink()
    new.rmdir()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(PARTS))


def _gathered(names: Iterable[str], where: Mapping[str, tuple[Path, int]]) -> list[dict[str, Any]]:
    """The rows of some ids, from wherever they are; of each file no others are kept."""
    places: dict[Path, list[int]] = {}
    for name in names:
        path, place = where[name]
        places.setdefault(path, []).append(place)
    rows = {
        row["id"]: row
        for path, wanted in places.items()
        for row in _table(path).take(wanted).to_pylist()
    }
    return [rows[name] for name in names]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError("pyarrow is not installed: pip install 'amx-jax[data]'") from None
    return pyarrow
