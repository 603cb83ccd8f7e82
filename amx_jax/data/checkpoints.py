"""Work under way, saved now and then by Orbax, so that a run that is killed loses little of it.

Knows nothing of what is saved: a name and a list of arrays each.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from amx_jax.data.results import write_json
from amx_jax.errors import OutputError, one_line

KEPT = 2  # checkpoints of one process: the last, and the one before, where the last is damaged

CHECKSUMS = "checksums.json"  # written last: a checkpoint without it is none

Arrays = Sequence[np.ndarray]


class Checkpoints:
    """The checkpoints of one process.

    Processes share nothing: each has a folder of its own, and none waits for another.

    Args:
        folder: absolute; made if missing.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(Path(folder, "0"))
        ...     checkpoints.save({"cat.jpg": [np.arange(3), np.array(True)]})
        ...     checkpoints.close()
        ...     [(name, arrays)] = read_checkpoints(Path(folder)).items()
        >>> name, [array.tolist() for array in arrays]
        ('cat.jpg', [[0, 1, 2], True])
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._manager = _manager(folder)

    def save(self, states: Mapping[str, Arrays]) -> None:
        """Write a checkpoint, whole or not at all, and delete the oldest where there are too many.

        Args:
            states: by name.

        Raises:
            OutputError: it cannot be written, as on a full disk.
        """
        import orbax.checkpoint as ocp

        # Arrays of the same shapes are written as one: a file for each of thousands would take longer.
        by_shape = sorted(states, key=lambda name: _shapes(states[name]))
        groups = [list(names) for _, names in groupby(by_shape, key=lambda n: _shapes(states[n]))]
        arrays = [
            [np.stack(leaves) for leaves in zip(*(states[n] for n in g), strict=True)] for g in groups
        ]
        step = (self._manager.latest_step() or 0) + 1
        # Orbax refuses an empty tree.
        items: dict[str, Any] = {"arrays": ocp.args.StandardSave(arrays)} if arrays else {}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(names=ocp.args.JsonSave(groups), **items),
                force=True,
            )
            checkpoint = self._folder / str(step)
            write_json(checkpoint / CHECKSUMS, _checksums(checkpoint))
        except (OSError, ValueError) as error:  # ValueError: of Orbax's storage, with its cause
            raise OutputError(
                f"{one_line(self._folder)}: a checkpoint cannot be written: {_short(error)}; "
                "free some space or choose another output folder"
            ) from error

    def close(self) -> None:
        """Free what Orbax holds."""
        self._manager.close()


def read_checkpoints(folder: Path) -> dict[str, list[np.ndarray]]:
    """What the last good checkpoint of each process holds; a damaged one counts as not written.

    Args:
        folder: of the processes' folders; may be missing.

    Returns:
        Arrays by name.
    """
    found: dict[str, list[np.ndarray]] = {}
    for own in sorted(path for path in folder.glob("*") if path.is_dir()):
        found |= next(_good(own), {})
    return found


def delete_checkpoints(folder: Path) -> None:
    """Delete those of all processes."""
    shutil.rmtree(folder, ignore_errors=True)


def _good(folder: Path) -> Iterator[dict[str, list[np.ndarray]]]:
    """The whole checkpoints of one process, the last first."""
    import orbax.checkpoint as ocp

    manager = _manager(folder)
    try:
        for step in sorted(manager.all_steps(), reverse=True):
            checkpoint = folder / str(step)
            try:
                # Before Orbax sees it: its threads outlive an error, and print tracebacks of their own.
                if json.loads((checkpoint / CHECKSUMS).read_bytes()) != _checksums(checkpoint):
                    raise ValueError("its checksums do not fit")
                names = ocp.args.Composite(names=ocp.args.JsonRestore())
                groups, arrays = manager.restore(step, args=names)["names"], []
                if groups:
                    args = ocp.args.Composite(arrays=ocp.args.StandardRestore())
                    arrays = manager.restore(step, args=args)["arrays"]
                yield {
                    name: [leaf[i] for leaf in leaves]
                    for group, leaves in zip(groups, arrays, strict=True)
                    for i, name in enumerate(group)
                }
            except Exception as error:  # damage shows as whatever its reader trips over
                logging.getLogger(__name__).warning(
                    "%s: a damaged checkpoint (%s); the one before it is used",
                    one_line(checkpoint),
                    _short(error),
                )
    finally:
        manager.close()


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import multihost

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every save
    # No barrier among the hosts of a jax.distributed: each saves when it likes.
    own = multihost.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=False,  # Orbax would make it together with the others
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,
        multiprocessing_options=alone,
    )
    return ocp.CheckpointManager(folder, options=options)


def _shapes(arrays: Arrays) -> tuple:
    return tuple((array.dtype.str, array.shape) for array in arrays)


def _checksums(checkpoint: Path) -> dict[str, int]:
    """Of each of its files, by name."""
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(checkpoint).as_posix(): zlib.crc32(path.read_bytes()) for path in files}


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
