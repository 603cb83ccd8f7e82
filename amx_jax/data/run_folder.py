"""The folder of a data-set-scale run: what it was begun with, who works in it, and its log.

``run.json`` says with which data, classifier and configuration it was begun; another is refused. Each
process holds a lock while it works, and appends to a log of its own, a JSON object a line.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from amx_jax.data.results import check_output, plain, read_json, write_json
from amx_jax.errors import OutputError, one_line

MANIFEST = "run.json"
HIDDEN = ".run"  # the folder of locks and checkpoints
IMAGES = "images.json"


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a run is begun with, or compare it with what the folder was begun with.

    Args:
        folder: of the run; made if missing.
        about: what a result depends on, as JSON.

    Raises:
        OutputError: the folder takes no files, or was begun with something else; names each field.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     begin(Path(name), {"config": {"steps": 100}})
        ...     begin(Path(name), {"config": {"steps": 100}})
        ...     try:
        ...         begin(Path(name), {"config": {"steps": 200}})
        ...     except OutputError as error:
        ...         str(error).removeprefix(name)
        ': was begun with config.steps 100, found 200; give the same, or another output folder'
    """
    check_output(folder)
    path = folder / MANIFEST
    if not path.exists():
        write_json(path, about)
        return
    before = read_json(path, "what a run was begun with", "choose another output folder")
    theirs, ours = dict(_leaves(before)), dict(_leaves(plain(about)))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        found = ", ".join(f"{n} {theirs.get(n)!r}, found {ours.get(n)!r}" for n in names)
        raise OutputError(
            f"{one_line(folder)}: was begun with {found}; give the same, or another output folder"
        )


def note_images(folder: Path, images: int) -> None:
    """Write how many images a run is of, which may grow from one process to the next."""
    write_json(folder / HIDDEN / IMAGES, images)


def count_images(folder: Path) -> int | None:
    """How many images a run is of; None where that was not noted."""
    path = folder / HIDDEN / IMAGES
    return read_json(path, "a number", "run again") if path.exists() else None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


class Busy(OutputError):
    """Another process holds a lock."""


class Lock:
    """Held by who works in a folder; freed by the system when its process ends, however it ends.

    Args:
        folder: of the run.
        name: of what is locked.

    Raises:
        Busy: another process holds it; says which.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, Lock(Path(name), "0"):
        ...     pass
    """

    def __init__(self, folder: Path, name: str):
        path = folder / HIDDEN / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+")
        if not _locked(self._file):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise Busy(
                f"{one_line(folder)}: found {holder} at work in this folder, expected no other; wait "
                "for its end, or choose another output folder"
            )
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _locked(file: TextIO) -> bool:
    """Whether this process holds the lock of a file now.

    It goes with the process, so a lock that was left behind by a kill holds nobody up.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Log:
    """What happened, a JSON object a line; one that a kill cut off is no harm to the next.

    Args:
        path: appended to.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     log = Log(Path(name, "log.jsonl"))
        ...     log("explained", id="cat.jpg")
        ...     log.close()
        ...     [line] = Path(name, "log.jsonl").read_text().splitlines()
        >>> sorted(json.loads(line))
        ['event', 'id', 'time']
    """

    def __init__(self, path: Path):
        cut_off = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:
            self._file.write("\n")

    def __call__(self, event: str, **about: Any) -> None:
        line = {"time": round(time.time(), 3), "event": event, **about}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
