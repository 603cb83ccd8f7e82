"""What ``amx explain`` wrote, read again: the records, their pictures, and the photos themselves.

Knows how a photo is cropped, and nothing else of classifiers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from amx_jax.data.photos import DAMAGE, read_photo
from amx_jax.data.results import EXPLANATION, EXPLANATIONS, is_below, read_explanations, read_json
from amx_jax.errors import ConfigError, ImageError, OutputError, one_line

if TYPE_CHECKING:
    from amx_jax.classifiers.classifier import Preprocess

CHANGED = 2.0  # of 255: a photo whose crop is on average farther from input.png is another photo
AGAIN = "explain the photos again"


class Explained(NamedTuple):
    """One explanation of a folder.

    Attributes:
        record: of ``explanation.json``.
        pixels: the classifier's input, uint8 ``(h, w, 3)``.
        mask: bool ``(h, w)``, true where kept.
    """

    record: dict[str, Any]
    pixels: np.ndarray
    mask: np.ndarray


def read_records(folder: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The records of a folder, each with the folder of its pictures.

    Args:
        folder: that ``amx explain`` wrote, or that of one photo in it.

    Raises:
        OutputError: it is neither, or damaged.
    """
    folder = Path(folder)
    one = folder / EXPLANATION
    if not (folder / EXPLANATIONS).exists() and one.exists():
        record = read_json(one, "a record", AGAIN)
        found = [(folder, record)]
    elif folder.exists() and not (folder / EXPLANATIONS).exists():
        raise OutputError(
            f"{one_line(folder)}: found neither {EXPLANATIONS} nor {EXPLANATION}, expected a "
            "folder that amx explain wrote"
        )
    else:
        found = [(folder / _name(folder, record), record) for record in read_explanations(folder)]
        if not found:
            raise OutputError(f"{one_line(folder)}: found no explanations; {AGAIN}")
    for place, record in found:
        _check(place, record)
    return found


def read_picture(path: Path, mode: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A picture that belongs to an explanation.

    Args:
        path: a PNG file.
        mode: of Pillow, *RGB* or *L*.
        shape: that it must have; any by default.

    Raises:
        ImageError: it is missing, damaged, or of another shape.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = np.asarray(image.convert(mode))
    except (*DAMAGE, Image.UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or "found damaged data, expected a PNG file"
        raise ImageError(f"{one_line(path)}: cannot be read: {reason}; {AGAIN}") from error
    if shape is not None and found.shape != shape:
        raise ImageError(
            f"{one_line(path)}: found a picture {found.shape}, expected {shape} as of input.png; "
            f"{AGAIN}"
        )
    return found


def read_mask(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A folder's ``mask.png``, bool: true where it is lighter than half.

    Args:
        folder: of an explanation.
        shape: that it must have.

    Raises:
        ImageError: it is missing, damaged, or of another shape.
    """
    return read_picture(folder / "mask.png", "L", shape) > 127


def read_pictures(place: Path, record: dict[str, Any]) -> Explained:
    """A record with its ``input.png`` and ``mask.png``.

    Raises:
        ImageError: one of them is missing or damaged, or they are of two sizes.
    """
    pixels = read_picture(place / "input.png", "RGB")
    return Explained(record, pixels, read_mask(place, pixels.shape[:2]))


def own_photo(found: Explained, folder: Path, most: int) -> "tuple[np.ndarray, Preprocess]":
    """The photo of an explanation, upright, and how the classifier cropped it.

    A photo smaller than the classifier's input is enlarged, as the classifier saw it enlarged.

    Args:
        found: the explanation.
        folder: of its pictures; a photo's relative path is of the current folder, or else of one that
            holds this one.
        most: pixels of its long side; a larger one is made smaller.

    Returns:
        uint8 ``(H, W, 3)``, gray where the classifier sees gray, and its preprocessing.

    Raises:
        ImageError: the photo is not where it was, or not what it was.
    """
    from amx_jax.classifiers.classifier import Preprocess

    given = found.record["image"]
    try:
        preprocess = Preprocess(**found.record["preprocess"])
    except KeyError:
        reason = "explained by an earlier version, which did not write how it was cropped"
        raise ImageError(f"{one_line(given)}: {reason}; {AGAIN}") from None
    except (TypeError, ConfigError) as error:
        reason = f"the record's preprocess is damaged: {' '.join(str(error).split())}"
        raise ImageError(f"{one_line(given)}: {reason}; {AGAIN}") from error
    path = next((p for p in _places(given, folder) if p.is_file()), Path(given))
    crop = preprocess.crop(read_photo(path, preprocess.resize))
    there = np.broadcast_to(crop, (*crop.shape[:2], 3)).astype(float)
    if there.shape != found.pixels.shape or np.abs(there - found.pixels).mean() > CHANGED:
        raise ImageError(f"{one_line(path)}: is another photo than the one that was explained; {AGAIN}")
    photo = read_photo(path)
    if preprocess.channels == 1:
        photo = photo.convert("L").convert("RGB")
    short, long = sorted(photo.size)
    scale = max(min(1.0, most / long), preprocess.resize / short)
    if scale != 1:
        width, height = (max(1, round(length * scale)) for length in photo.size)
        photo = photo.resize(
            (width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        )
    return np.asarray(photo), preprocess


def _places(image: str, folder: Path) -> Iterator[Path]:
    yield Path(image)
    if not Path(image).is_absolute():
        yield from (parent / image for parent in folder.absolute().parents)


def _name(folder: Path, record: dict[str, Any]) -> str:
    """Of the folder of a record's pictures; benchmarks write none and name it as the photo."""
    name = record.get("folder", Path(str(record.get("image"))).stem)
    if not is_below(name):
        raise OutputError(
            f"{one_line(folder)}: found a record whose folder is {name!r}, expected a plain "
            f"name or a path below this one; {AGAIN}"
        )
    return name


def _check(place: Path, record: Any) -> None:
    """Whether a record has what pictures are made of."""
    try:
        target, method, p = record["target"], record["method"], record["probability"]
        rgb = record["background"]["rgb"]
        wanted: list[tuple[Any, list[Any]]] = [
            (str, [record["image"], record["weights"], target["name"], method["name"]]),
            (int | float, [record["area"], p["image"], p["explanation"], target["index"], *rgb]),
            (bool, [record["notion"]["holds"], method["pruned"]]),
        ]
        whole = all(isinstance(value, kind) for kind, values in wanted for value in values)
        whole &= len(rgb) == 3
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise OutputError(
            f"{one_line(place)}: found a record that lacks some of what amx explain writes; {AGAIN}"
        )
