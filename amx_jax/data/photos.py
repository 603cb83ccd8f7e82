"""Photos in: finding the files, decoding them to RGB, naming what is made of them.

Knows nothing of classifiers: a photo leaves here upright, in full, 8 bits a channel.
"""

import importlib.util
import itertools
import os
import re
import stat
import struct
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from amx_jax.data.results import EXPLANATION
from amx_jax.errors import ImageError, one_line

# Free to use by scikit-image's own documentation of each: chelsea, coffee and camera are CC0 by
# their photographers, rocket was released into the public domain by SpaceX. Its motorcycle is left
# out: it comes from the Middlebury stereo benchmark, which states no licence.
BUNDLED = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png")

# Pillow's name of each format that is read, and the suffixes by which a folder's photos are known.
# Others are refused even where Pillow opens them: EPS, for one, would start Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
SUFFIXES = frozenset(itertools.chain.from_iterable(FORMATS.values()))
PIXEL_LIMIT = 20_480**2  # a square of 20,000 and a little: 1.7 GB as Pillow holds RGB

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What decoders raise on damaged data; Pillow promises no common base.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_pillow = threading.Lock()
_readers = 0  # inside unhindered, with Pillow's own limit kept meanwhile in _limit
_limit: int | None = None
_PILLOW = r"(PIL|amx_jax\.data\.photos)\b"  # the modules that its warnings are laid to


@dataclass(frozen=True)
class Failure:
    """A photo that gives no result.

    Attributes:
        image: the path as the user gave it, or as it was found in a folder.
        reason: one line that names the file, as the message of an ``ImageError`` does.
    """

    image: str
    reason: str


def bundled_photos() -> list[Path]:
    """Public-domain photos for a first try; scikit-image carries them.

    Returns:
        The files of ``BUNDLED``, in that order.

    Raises:
        ImageError: scikit-image is not installed or came without them.

    Examples:
        >>> [photo.name for photo in bundled_photos()]
        ['chelsea.png', 'coffee.png', 'rocket.jpg', 'camera.png']
    """
    # find_spec locates the package without running it: importing it takes longer than decoding.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ImageError("the bundled photos are not installed: pip install scikit-image")
    folder = Path(spec.submodule_search_locations[0], "data")
    missing = [name for name in BUNDLED if not (folder / name).is_file()]
    if missing:
        raise ImageError(
            f"{one_line(folder)}: found no {', '.join(missing)}; "
            "install scikit-image again: pip install --force-reinstall scikit-image"
        )
    return [folder / name for name in BUNDLED]


def find_photos(paths: Sequence[str | Path]) -> tuple[list[Path], list[Failure]]:
    """The image files that paths stand for, each file once.

    A file is taken as it is, whatever its name. A folder gives the image files in it and below it,
    known by ``SUFFIXES`` and sorted; hidden ones are passed over, and so are folders that hold an
    ``explanation.json`` or belong to a saved page, lest a second run explain the pictures of the first.

    Args:
        paths: files and folders.

    Returns:
        The files in the order of ``paths``, and a failure for every path that is missing, cannot be
        listed, or is a folder without images.

    Examples:
        >>> find_photos(["no/such.png"])
        ([], [Failure(image='no/such.png', reason='no/such.png: does not exist; check the path')])
    """
    found: dict[str, Path] = {}
    failures: list[Failure] = []
    for given in paths:
        path = Path(given)
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (OSError, ValueError) as error:
            failures.append(Failure(str(given), _no_access(path, error)))
            continue
        if not is_folder:
            found.setdefault(os.path.realpath(path), path)
        elif str(given) == "":  # to Path the current folder, but most likely an unset variable
            failures.append(Failure("", "'': found an empty path, expected a file or folder"))
        else:
            photos, problems = _list_folder(path)
            failures += problems
            for photo in photos:
                found.setdefault(os.path.realpath(photo), photo)
    return list(found.values()), failures


def _list_folder(folder: Path) -> tuple[list[Path], list[Failure]]:
    photos: list[Path] = []
    failures: list[Failure] = []

    def refused(error: OSError):
        path = Path(error.filename)
        failures.append(Failure(str(path), _no_access(path, error)))

    for root, folders, files in os.walk(folder, onerror=refused):
        reports = {f"{Path(name).stem}-files" for name in files if name.endswith(".html")}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in reports]
        if EXPLANATION not in files:
            photos += [
                Path(root, name)
                for name in files
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
            ]
    if not photos and not failures:
        reason = (
            f"{one_line(folder)}: found no image files in this folder, expected names that end in "
            f"{', '.join(sorted(SUFFIXES))}; give the files themselves if theirs end otherwise"
        )
        failures.append(Failure(str(folder), reason))
    return sorted(photos), failures


def read_photo(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decode a photo to RGB, upright.

    Transparent pixels are laid over white. 16-bit gray is scaled to 8 bits by its full range. Of an
    animation, the first frame.

    Args:
        path: a file of one of ``FORMATS``, of at most ``PIXEL_LIMIT`` pixels.
        at_least: if given, a JPEG may come back smaller by 2, 4 or 8, as long as its short side
            keeps this many pixels; large ones decode many times faster.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: the file is missing, a folder, not readable, empty, not an image, damaged, too
            large, or of 32-bit numbers that have no defined white.

    Examples:
        >>> photo = read_photo(bundled_photos()[0])
        >>> photo.mode, photo.size
        ('RGB', (451, 300))
    """
    path = Path(path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ImageError(_no_access(path, error)) from error
    name = one_line(path)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: found a folder, expected an image file; give a file in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
        raise ImageError(f"{name}: found a pipe or device, expected an image file; save it as one")
    if status.st_size == 0:
        raise ImageError(f"{name}: found an empty file, expected an image; fetch or save it again")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(_no_access(path, error)) from error
    with file, unhindered():
        try:
            return decode(file, at_least)
        except Image.UnidentifiedImageError as error:
            file.seek(0)
            raise ImageError(
                f"{name}: found no image (the file starts with {file.read(8)!r}), expected one of "
                f"{', '.join(FORMATS)}; convert it or save it again"
            ) from error
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        except DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                f"{name}: found damaged or truncated image data ({reason}), "
                "expected a whole image; fetch or save it again"
            ) from error


def decode(file: BinaryIO, at_least: int | None) -> Image.Image:
    """As :func:`read_photo`, of an open file, inside :func:`unhindered`.

    Raises:
        ImageError: it is too large, or of 32-bit numbers that have no defined white.
        Exception: one of ``DAMAGE``.
    """
    Image.init()
    available = [name for name in FORMATS if name in Image.OPEN]  # AVIF: not in every build
    with Image.open(file, formats=available) as image:
        width, height = image.size
        if width * height > PIXEL_LIMIT:
            raise ImageError(
                f"found {width} × {height} pixels, {width * height / 1e6:.0f} million; "
                f"expected at most {PIXEL_LIMIT / 1e6:.0f} million; scale it down"
            )
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        photo = _to_rgb(image)
        turn = UPRIGHT.get(orientation(image))
        if turn is not None:
            photo = photo.transpose(turn)
        photo.info.clear()  # or whoever reads the orientation from it would turn it again
        return photo


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError(
            "found 32-bit float pixels, which have no defined white; expected 8 or 16 bits; "
            "scale and convert them"
        )
    if image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")  # a copy where it is RGB already: the file gets closed
    layer = image.convert("RGBA")
    photo = Image.new("RGB", image.size, "white")
    photo.paste(layer, mask=layer.getchannel("A"))
    return photo


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """16-bit gray by its full range: round(v / 257), in 16 bits throughout."""
    if pixels.dtype.itemsize > 2:
        low, high = pixels.min(), pixels.max()
        if low < 0 or high > 0xFFFF:
            raise ImageError(
                f"found 32-bit gray from {low} to {high}, expected 0 to 65535; "
                "scale it and convert it to 8 or 16 bits"
            )
    quotient, rest = np.divmod(pixels.astype(np.uint16), np.uint16(257))
    return (quotient + (rest > 128)).astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image: one of ``UPRIGHT``, or another number for an upright one."""
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, and fails where that is damaged.
    # A damaged note beside a good picture is no reason to refuse the picture.
    if image.format == "TIFF":  # turned by Pillow as it was decoded
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1


@contextmanager
def unhindered() -> Iterator[None]:
    """Without Pillow's own limit on pixels and its warnings; in any number of threads at once."""
    # Pillow warns above 89 and refuses above 179 million pixels, by one setting for the process.
    # PIXEL_LIMIT takes its place, before any pixel is decoded. Its other warnings are about notes
    # beside the picture, such as odd EXIF; what damages the picture raises. The first reader in takes
    # both away, the last one out puts them back: one at a time, two threads were no faster than one.
    # Not warnings.catch_warnings: it puts back the list of filters it found, and where threads
    # overlap that is the list of another one's with-block, for good.
    global _readers, _limit
    with _pillow:
        if _readers == 0:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _readers += 1
        warnings.filterwarnings("ignore", category=UserWarning, module=_PILLOW)
    try:
        yield
    finally:
        with _pillow:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _limit
                with suppress(ValueError):  # gone with a list that another thread put back
                    warnings.filters.remove(("ignore", None, UserWarning, re.compile(_PILLOW), 0))  # type: ignore[attr-defined]


def _no_access(path: Path, error: OSError | ValueError) -> str:
    name = one_line(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{name}: does not exist; check the path"
    if isinstance(error, PermissionError):
        return f"{name}: permission denied, expected a readable file; change its permissions"
    reason = getattr(error, "strerror", None) or error
    return f"{name}: cannot be read: {reason}; check the path"


def unique_stems(paths: Sequence[str | Path]) -> list[str]:
    """A name for the output folder of each photo, distinct also where case does not count.

    The file's name without its suffix; where several share it, with the parent folder, the suffix
    or both added, whichever tells them all apart, and else with a number. Characters that some file
    system refuses become ``_``, and so do dots, so that no name can equal that of a file.

    Args:
        paths: the photos; the names depend on this list and on nothing else.

    Returns:
        One name for each path, in order; at most 200 bytes of UTF-8.

    Examples:
        >>> unique_stems(["cat.jpg", "dog.jpg"])
        ['cat', 'dog']
        >>> unique_stems(["a/cat.jpg", "b/Cat.png"])
        ['a-cat', 'b-Cat']
        >>> unique_stems(["a/cat.jpg", "a/cat.png"])
        ['cat-jpg', 'cat-png']
    """
    photos = [Path(path) for path in paths]
    stems = [_safe(photo.stem, 100) or "image" for photo in photos]
    groups: dict[str, list[int]] = {}
    for index, stem in enumerate(stems):
        groups.setdefault(_key(stem), []).append(index)
    taken = {key for key, members in groups.items() if len(members) == 1}
    for members in groups.values():
        if len(members) == 1:
            continue
        parents = [_safe(photos[i].parent.name, 50) for i in members]
        suffixes = [_safe(photos[i].suffix[1:], 16) for i in members]
        same = [stems[i] for i in members]
        none = [""] * len(members)
        for before, after in ((parents, none), (none, suffixes), (parents, suffixes)):
            parts = zip(before, same, after, strict=True)
            names = ["-".join(filter(None, part)) for part in parts]
            keys = {_key(name) for name in names}
            if len(keys) == len(members) and not keys & taken:
                break
        else:
            numbered = (f"{same[0]}-{number}" for number in itertools.count(1))
            free = (name for name in numbered if _key(name) not in taken)
            names = list(itertools.islice(free, len(members)))
        taken.update(map(_key, names))
        for index, name in zip(members, names, strict=True):
            stems[index] = name
    return stems


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _safe(text: str, limit: int) -> str:
    """The text as part of a file name, at most ``limit`` bytes of UTF-8; may be empty."""
    text = "".join(
        character if character.isprintable() and character not in '\\/:*?"<>|.' else "_"
        for character in unicodedata.normalize("NFC", text)
    )
    text = text.encode()[:limit].decode(errors="ignore").strip()
    # Windows keeps these names for devices.
    return f"{text}_" if re.fullmatch(r"(?i)con|prn|aux|nul|(com|lpt)\d", text) else text
