"""Ground truth in: where the objects of a folder's photos are, as regions of a classifier's input.

Pure reading. Knows how a photo is cropped, and nothing else of classifiers.

Layouts, told apart by the file that is there:

- ``FOLDER/annotations.json``, a list of records ``{"id", "size", "boxes_xyxy", "label"}``, and
  ``FOLDER/images/<id>.jpg``: boxes, all of one class.
- ``FOLDER/annotations.json``, an object with ``imagenet_classes_of_coco_category`` and ``images``,
  ``FOLDER/images/<file>`` and ``FOLDER/masks/<stem of file>.png``: a number for each instance.
- ``FOLDER/hand_boxes.json`` beside the photos: ``{"boxes": {file: [[name, [class, …], box], …]}}``.
- None of them: photos without ground truth.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from amx_jax.data.photos import DAMAGE, SUFFIXES, UPRIGHT, orientation, unhindered
from amx_jax.errors import AnnotationError, one_line

if TYPE_CHECKING:
    from amx_jax.classifiers.classifier import Preprocess

ANNOTATIONS = "annotations.json"
HAND_BOXES = "hand_boxes.json"
CROWD = 255  # marks pixels of many objects that nobody told apart

Box = tuple[float, float, float, float]


class Place(NamedTuple):
    """One object of a photo.

    Attributes:
        where: left, top, right and bottom edge in pixels of the photo; or its number in the mask.
        classes: class indices that are right for it; None where any is.
    """

    where: Box | int
    classes: frozenset[int] | None


@dataclass(frozen=True)
class Annotation:
    """What is known of one photo.

    Attributes:
        size: width and height of the photo, in pixels.
        places: its objects.
        mask: file with the number of the instance at each pixel, 0 for none.
    """

    size: tuple[int, int]
    places: tuple[Place, ...]
    mask: Path | None = None

    def regions(self, target: int, preprocess: "Preprocess") -> list[np.ndarray]:
        """Where in the classifier's input each object of a class is.

        A pixel belongs to a box, or takes the number of the mask, by where its centre lies in the
        photo: at left + (j + ½)·side / size, with the centre square of ``Preprocess.crop``.

        Args:
            target: class index.
            preprocess: size of the input, and how it is cropped.

        Returns:
            For each object of which the crop shows a pixel, bool ``(size, size)``, True there. Boxes
            may overlap.

        Raises:
            AnnotationError: the mask is damaged.

        Examples:
            >>> from amx_jax.classifiers.classifier import Preprocess
            >>> cats = [Place(box, frozenset({281})) for box in ((0, 0, 50, 100), (50, 0, 100, 50))]
            >>> preprocess = Preprocess(size=2, resize=2, mean=0.0, scale=1.0)
            >>> for region in Annotation((100, 100), tuple(cats)).regions(281, preprocess):
            ...     print(region.astype(int).tolist())
            [[1, 0], [1, 0]]
            [[0, 1], [0, 0]]
        """
        left, top, side = preprocess.square(self.size)
        centres = (np.arange(preprocess.size) + 0.5) * side / preprocess.size
        x, y = left + centres, top + centres
        found = []
        numbers = None
        for where, classes in self.places:
            if classes is not None and target not in classes:
                continue
            if isinstance(where, int):
                if self.mask is None:
                    continue
                if numbers is None:
                    numbers = _instances(self.mask)[np.ix_(y.astype(int), x.astype(int))]
                found.append(numbers == where)
                continue
            left, top, right, bottom = where
            found.append(((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right)))
        return [region for region in found if region.any()]

    def region(self, target: int, preprocess: "Preprocess") -> np.ndarray | None:
        """Where the objects of a class are: the union of :meth:`regions`.

        Args:
            target: as of :meth:`regions`.
            preprocess: likewise.

        Returns:
            bool ``(size, size)``, True somewhere; None where no object of the class is annotated or the
            crop shows no pixel of one.

        Raises:
            AnnotationError: as of :meth:`regions`.

        Examples:
            >>> from amx_jax.classifiers.classifier import Preprocess
            >>> cat = Place((0, 0, 50, 100), frozenset({281}))
            >>> preprocess = Preprocess(size=2, resize=2, mean=0.0, scale=1.0)
            >>> Annotation((100, 100), (cat,)).region(281, preprocess)
            array([[ True, False],
                   [ True, False]])
        """
        found = self.regions(target, preprocess)
        return np.logical_or.reduce(found) if found else None


def photo_folder(folder: str | Path) -> Path:
    """Where a data set's photos are: ``folder/images`` beside an ``annotations.json``, else the folder.

    Examples:
        >>> photo_folder("photos").name
        'photos'
    """
    folder = Path(folder)
    return folder / "images" if (folder / ANNOTATIONS).is_file() else folder


def finder(place: Annotation | None, preprocess: "Preprocess") -> Callable[[int], np.ndarray | None]:
    """Where the object lies in what a classifier sees of a photo, as a function of the class.

    Args:
        place: what is known of the photo; None where nothing is.
        preprocess: of the classifier.

    Returns:
        From a class's index to what :meth:`Annotation.region` says of it.

    Raises:
        AnnotationError: when it is called, as of :meth:`Annotation.region`.

    Examples:
        >>> from amx_jax.classifiers.classifier import Preprocess
        >>> find = finder(None, Preprocess(size=2, resize=2, mean=0.0, scale=1.0))
        >>> find(281) is None
        True
    """
    return lambda target: None if place is None else place.region(target, preprocess)


def find_annotations(folder: str | Path) -> dict[Path, Annotation]:
    """The ground truth of the photos in a folder, in one of the layouts above.

    Every file's form and size is checked here, before any work is done on a photo. A record whose photo
    is missing is passed over; several records of one photo add up.

    Args:
        folder: of the data set.

    Returns:
        For each photo that has a record, by its path below ``photo_folder(folder)``, what is known of
        it; empty for a plain folder of photos.

    Raises:
        AnnotationError: no such folder; JSON that is damaged or of another form; a photo or mask that
            is unreadable, of another size than annotated, or turned by its EXIF orientation.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (100, 80)).save(Path(folder, "cat.png"))
        ...     _ = Path(folder, "hand_boxes.json").write_text(
        ...         '{"boxes": {"cat.png": [["cat", [281, 282], [10, 10, 60, 70]]]}}'
        ...     )
        ...     (annotation,) = find_annotations(folder).values()
        >>> annotation.size, annotation.places[0].where
        ((100, 80), (10.0, 10.0, 60.0, 70.0))
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AnnotationError(
            f"{one_line(folder)}: found no folder, expected a data set; check the path"
        )
    photos = photo_folder(folder)
    for name, read in ((ANNOTATIONS, _annotations), (HAND_BOXES, _hand_boxes)):
        path = folder / name
        if path.is_file():
            return _joined(read(path, _names(photos)))
    return {}


def _names(folder: Path) -> dict[str, Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise AnnotationError(
            f"{one_line(folder)}: cannot be listed: {error.strerror or error}; "
            f"expected the photos that {ANNOTATIONS} tells of"
        ) from error
    return {path.name: path for path in paths if path.suffix.lower() in SUFFIXES}


def _joined(found: Iterator[tuple[Path, Annotation]]) -> dict[Path, Annotation]:
    annotations: dict[Path, Annotation] = {}
    for photo, new in found:
        old = annotations.get(photo, Annotation(new.size, ()))
        annotations[photo] = Annotation(new.size, old.places + new.places, new.mask)
    return annotations


# --- the layouts ----------------------------------------------------------------------------------


def _annotations(path: Path, photos: dict[str, Path]) -> Iterator[tuple[Path, Annotation]]:
    content = _json(path)
    if isinstance(content, list):
        return _boxes(path, content, photos)
    if isinstance(content, dict) and "images" in content:
        return _masks(path, content, photos)
    raise _unlike(path, "it", content, "a list of records, or an object with 'images'")


def _boxes(path: Path, records: list, photos: dict[str, Path]) -> Iterator[tuple[Path, Annotation]]:
    by_stem: dict[str, list[Path]] = {}
    for photo in photos.values():
        by_stem.setdefault(photo.stem, []).append(photo)
    for number, record in enumerate(records):
        at = f"record {number}"
        name = _get(path, at, record, "id", str)
        for photo in by_stem.get(name, ()):
            at = f"the record of {name}"
            size = _size(path, at, _get(path, at, record, "size", list))
            label = record.get("label")
            if label is not None and type(label) is not int:
                raise _unlike(path, f"'label' in {at}", label, "a class index")
            classes = None if label is None else frozenset({label})
            boxes = _get(path, at, record, "boxes_xyxy", list)
            places = tuple(Place(_box(path, at, box), classes) for box in boxes)
            _check_size(photo, size, path)
            yield photo, Annotation(size, places)


def _masks(path: Path, content: dict, photos: dict[str, Path]) -> Iterator[tuple[Path, Annotation]]:
    categories = _get(path, "it", content, "imagenet_classes_of_coco_category", dict)
    classes = {name: _classes(path, f"category {name!r}", found) for name, found in categories.items()}
    for number, record in enumerate(_get(path, "it", content, "images", list)):
        at = f"image {number}"
        photo = photos.get(_get(path, at, record, "file", str))
        if photo is None:
            continue
        at = f"the record of {photo.name}"
        size = _size(path, at, [_get(path, at, record, key, int) for key in ("width", "height")])
        places = []
        for instance in _get(path, at, record, "instances", list):
            within = f"an instance in {at}"
            index = _get(path, within, instance, "id", int)
            if not 0 < index < CROWD:
                raise _unlike(path, f"'id' of {within}", index, f"1 to {CROWD - 1}")
            category = _get(path, within, instance, "category", str)
            places.append(Place(index, classes.get(category, frozenset())))
        mask = path.parent / "masks" / f"{photo.stem}.png"
        for file in (photo, mask):
            _check_size(file, size, path)
        yield photo, Annotation(size, tuple(places), mask)


def _hand_boxes(path: Path, photos: dict[str, Path]) -> Iterator[tuple[Path, Annotation]]:
    boxes = _get(path, "it", _json(path), "boxes", dict)
    for name, entries in boxes.items():
        if name not in photos:
            continue
        at = f"the boxes of {name}"
        if not isinstance(entries, list):
            raise _unlike(path, at, entries, "a list")
        places = []
        for entry in entries:
            if not isinstance(entry, list) or len(entry) != 3:
                raise _unlike(path, at, entry, "[name, [class, …], [left, top, right, bottom]]")
            places.append(Place(_box(path, at, entry[2]), _classes(path, at, entry[1])))
        yield photos[name], Annotation(_header(photos[name]), tuple(places))


# --- files and values -----------------------------------------------------------------------------


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise AnnotationError(f"{one_line(path)}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{one_line(path)}: found damaged JSON ({error}), expected annotations; "
            "mend it, or move it away to read the photos alone"
        ) from error


def _header(path: Path) -> tuple[int, int]:
    """The size of an image, without decoding it."""
    try:
        with unhindered(), Image.open(path) as image:
            if orientation(image) in UPRIGHT:
                raise AnnotationError(
                    f"{one_line(path)}: found a photo that its EXIF orientation turns, expected an "
                    "upright one, as boxes and masks do not turn with it; save it upright"
                )
            return image.size
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or "no image, or a damaged one"
        raise AnnotationError(
            f"{one_line(path)}: cannot be read: {reason}; expected an image that annotations tell of"
        ) from error


def _check_size(image: Path, size: tuple[int, int], path: Path) -> None:
    found = _header(image)
    if found != size:
        raise AnnotationError(
            f"{one_line(image)}: found {found[0]} × {found[1]} pixels, expected {size[0]} × {size[1]} "
            f"as {path.name} says; take the file that was annotated"
        )


def _instances(path: Path) -> np.ndarray:
    try:
        with unhindered(), Image.open(path) as image:
            mode, numbers = image.mode, np.asarray(image)
    except DAMAGE as error:
        raise AnnotationError(
            f"{one_line(path)}: found damaged or missing image data, expected a mask; fetch it again"
        ) from error
    if mode not in ("L", "P"):
        raise AnnotationError(
            f"{one_line(path)}: found an image of mode {mode}, expected 8-bit gray or palette with an "
            "instance's number at each pixel; save it so"
        )
    return numbers


def _get(path: Path, at: str, record: Any, key: str, kind: type) -> Any:
    if not isinstance(record, dict):
        raise _unlike(path, at, record, f"an object with {key!r}")
    if key not in record:
        raise AnnotationError(
            f"{one_line(path)}: found no {key!r} in {at}, expected {_KINDS[kind]}; add it"
        )
    if type(record[key]) is not kind:
        raise _unlike(path, f"{key!r} in {at}", record[key], _KINDS[kind])
    return record[key]


def _size(path: Path, at: str, value: list) -> tuple[int, int]:
    if len(value) != 2 or not all(type(number) is int and number > 0 for number in value):
        raise _unlike(path, f"the size in {at}", value, "width and height in pixels")
    return value[0], value[1]


def _box(path: Path, at: str, value: Any) -> Box:
    # The bound also refuses NaN, infinity and integers too long for a float.
    numbers = isinstance(value, list) and all(type(n) in (int, float) and abs(n) < 1e9 for n in value)
    if not numbers or len(value) != 4 or value[0] >= value[2] or value[1] >= value[3]:
        raise _unlike(path, f"a box in {at}", value, "[left, top, right, bottom] in pixels of the file")
    left, top, right, bottom = map(float, value)
    return left, top, right, bottom


def _classes(path: Path, at: str, value: Any) -> frozenset[int]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise _unlike(path, f"the classes in {at}", value, "a list of class indices")
    return frozenset(value)


def _unlike(path: Path, what: str, found: Any, expected: str) -> AnnotationError:
    text = ascii(found)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return AnnotationError(f"{one_line(path)}: found {what} to be {text}, expected {expected}; mend it")


_KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
