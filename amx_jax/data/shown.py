"""What a report shows, read from the folder that a command wrote: each photo with its masks.

A photo or a mask that cannot be read is that photo's failure, not the report's.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amx_jax.data import shards
from amx_jax.data.explained import read_mask, read_picture
from amx_jax.data.results import EXPLANATIONS, is_below, read_explanations
from amx_jax.data.run_folder import MANIFEST
from amx_jax.data.sources import Source, ahead
from amx_jax.errors import ImageError, OutputError, one_line

# Of a record: what a report cannot do without, as JSON has it.
NEEDED = {
    **dict.fromkeys(("image", "folder", "classifier"), str),
    **dict.fromkeys(("target", "probability", "background", "robustness", "controls"), dict),
    **{"area": int | float, "sufficient": bool, "words": list},
}
WORKERS, AT_MOST = 2, 16  # threads that decode photos of a run, and photos that wait


@dataclass(frozen=True)
class Masked:
    """One explanation of a photo.

    Attributes:
        record: as :meth:`amx_jax.Explanation.record` makes it, of a run without what no row holds.
        mask: bool ``(H, W)``, true where kept.
        levels: as of :func:`amx_jax.evaluate.curves.levels`, where the record has a curve.
    """

    record: Mapping[str, Any]
    mask: np.ndarray
    levels: np.ndarray | None = None


@dataclass(frozen=True)
class Shown:
    """One photo, and what was found of it.

    Attributes:
        name: what it is called.
        pixels: what the classifier saw, uint8 ``(H, W, 3)``; None where it failed.
        masks: its explanations, one for each instance that was asked about.
        failure: why there is nothing to show.
    """

    name: str
    pixels: np.ndarray | None = None
    masks: tuple[Masked, ...] = ()
    failure: str | None = None


def is_explained(folder: Path) -> bool:
    """Whether ``amx explain`` wrote it."""
    return (folder / EXPLANATIONS).exists()


def is_run(folder: Path) -> bool:
    """Whether ``amx run`` wrote it."""
    return (folder / MANIFEST).exists()


def of_explained(
    folder: Path, records: Sequence[Mapping[str, Any]] | None = None
) -> Generator[Shown, None, None]:
    """The photos of an output folder of ``amx explain``, in their order, one at a time.

    Args:
        folder: with ``explanations.json``.
        records: of its photos; all by default. Those of one image belong together.

    Raises:
        OutputError: the index is missing, damaged, or of another form.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in read_explanations(folder) if records is None else records:
        odd = [name for name, kind in NEEDED.items() if not isinstance(record.get(name), kind)]
        if odd or not is_below(record["folder"]):
            raise OutputError(
                f"{one_line(folder / EXPLANATIONS)}: found a record without its "
                f"{odd[0] if odd else 'folder below this one'}, expected what this version writes; run "
                "the explanation again"
            )
        groups.setdefault(record["image"], []).append(record)
    for name, group in groups.items():
        try:
            pixels = read_picture(folder / group[0]["folder"] / "input.png", "RGB")
            masks = tuple(_masked(folder / record["folder"], record, pixels) for record in group)
        except ImageError as error:
            yield Shown(name, failure=str(error))
        else:
            yield Shown(name, pixels, masks)


def _masked(folder: Path, record: Mapping[str, Any], pixels: np.ndarray) -> Masked:
    mask = read_mask(folder, pixels.shape[:2])
    levels = None
    if record.get("curve"):
        levels = read_picture(folder / "levels.png", "L", pixels.shape[:2])
    return Masked(record, mask, levels)


def of_run(
    folder: Path, source: Source, crop: Callable[[Image.Image], np.ndarray], at_least: int
) -> Generator[Shown, None, None]:
    """The photos of an output folder of ``amx run``, in the order of its rows, one at a time.

    Args:
        folder: of the run, finished or not.
        source: of its photos, which are read again.
        crop: the classifier's preprocessing, from a photo to uint8 ``(H, W, C)``.
        at_least: as of :meth:`Source.load`.

    Raises:
        OutputError: there are no rows, or a file is damaged.
    """
    columns = shards.read_columns(folder, ["id", "failure", "mask", "record"])
    rows = list(zip(*columns.values(), strict=True))
    places = {shards.text(name): place for place, name in enumerate(source.ids)}
    asked = [places[name] for name, failure, *_ in rows if failure is None and name in places]
    photos = ahead(source, asked, WORKERS, AT_MOST, at_least)
    for name, failure, png, record in rows:
        if failure is not None:
            yield Shown(name, failure=failure)
        elif name not in places:
            yield Shown(name, failure="found no photo of this name any more; say where with --data")
        else:
            _, photo = next(photos)
            if isinstance(photo, ImageError):
                yield Shown(name, failure=str(photo))
                continue
            pixels, mask = crop(photo), shards.mask_of(png)
            if pixels.shape[:2] != mask.shape:
                raise OutputError(
                    f"{one_line(folder)}: found masks {mask.shape} for photos {pixels.shape[:2]}, "
                    "expected one size; give the run's own classifier with --weights"
                )
            pixels = np.broadcast_to(pixels, (*mask.shape, 3))
            yield Shown(name, pixels, (Masked(json.loads(record), mask),))
