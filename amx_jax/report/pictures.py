"""Pictures of masks, drawn from arrays; knows nothing of classifiers, files or results."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Yellow of Okabe and Ito's colour-blind-safe palette, the lightest of it: what is removed is dark
# gray, so the line differs from it in lightness and not in hue alone.
CONTOUR = (240, 228, 66)
# Pixels that the classifier never sees: gray from 205 to 255, unlike both what is kept and what is
# removed, and a gray line where they begin, since a photo may be as pale itself.
PALEST, PALE_CONTRAST, RIM = 205, 50 / 255, 150
# Removed pixels: gray from 30 to 120. Not from 0: night photos must stay recognisable.
DARKEST, CONTRAST = 30, 90 / 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L


def overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo, gray and dark outside the mask, with a bright line around what is kept.

    The kept pixels are exact: the line lies outside them.

    Args:
        pixels: uint8 ``(H, W, 3)``.
        mask: bool ``(H, W)``, true where kept.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: another type or shape.

    Examples:
        >>> pixels, mask = np.full((5, 5, 3), 200, np.uint8), np.zeros((5, 5), bool)
        >>> mask[2, 2] = True
        >>> overlay(pixels, mask)[2, :3].tolist()
        [[101, 101, 101], [240, 228, 66], [200, 200, 200]]
    """
    _check(pixels, mask)
    gray = (DARKEST + CONTRAST * (pixels @ LUMA)).round().astype(np.uint8)
    picture = np.where(mask[..., None], pixels, gray[..., None])
    width = max(1, round(min(mask.shape) / 200))
    picture[_grow(mask, width) & ~mask] = CONTOUR
    return picture


def _grow(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask and every pixel at most ``width`` rows and columns away from it."""
    height, length = mask.shape
    padded = np.pad(mask, width)
    rows = np.any([padded[i : i + height] for i in range(2 * width + 1)], axis=0)
    return np.any([rows[:, j : j + length] for j in range(2 * width + 1)], axis=0)


def on_background(pixels: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """The kept pixels as they are, one colour everywhere else.

    Args:
        pixels: uint8 ``(H, W, 3)``.
        mask: bool ``(H, W)``, true where kept.
        rgb: the colour, 0 … 255 each.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: another type or shape.

    Examples:
        >>> pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
        >>> on_background(pixels, np.array([[True, False]]), (9, 9, 9)).tolist()
        [[[0, 1, 2], [9, 9, 9]]]
    """
    _check(pixels, mask)
    return np.where(mask[..., None], pixels, np.array(rgb, np.uint8))


def unseen_faded(picture: np.ndarray, pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A picture of the photo in which what the classifier does not see is almost white.

    Args:
        picture: uint8 ``(H, W, 3)``, such as an overlay.
        pixels: the photo, uint8 ``(H, W, 3)``.
        seen: bool ``(H, W)``, true where the classifier sees the photo.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: another type or shape.

    Examples:
        >>> pixels = np.zeros((1, 3, 3), np.uint8)
        >>> unseen_faded(pixels, pixels, np.array([[True, False, False]])).tolist()
        [[[0, 0, 0], [150, 150, 150], [205, 205, 205]]]
    """
    _check(picture, seen)
    _check(pixels, seen)
    pale = (PALEST + PALE_CONTRAST * (pixels @ LUMA)).round().astype(np.uint8)
    pale[_grow(seen, max(1, round(min(seen.shape) / 400)))] = RIM
    return np.where(seen[..., None], picture, pale[..., None])


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """White where the mask keeps, black elsewhere.

    Args:
        mask: bool ``(H, W)``.

    Returns:
        uint8 ``(H, W)``, 0 and 255 only.

    Raises:
        ValueError: another type or shape: a soft mask has no such picture.

    Examples:
        >>> mask_picture(np.array([[True, False]])).tolist()
        [[255, 0]]
    """
    _check_mask(mask)
    return np.where(mask, np.uint8(255), np.uint8(0))


def encode_png(pixels: np.ndarray) -> bytes:
    """A picture as a PNG file in memory, exact to the pixel.

    Args:
        pixels: uint8 ``(H, W)`` or ``(H, W, 3)``.

    Examples:
        >>> encode_png(np.zeros((2, 2, 3), np.uint8))[1:4]
        b'PNG'
    """
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def decode_png(png: bytes) -> np.ndarray:
    """A PNG file in memory as uint8 ``(H, W, 3)``."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def explanation_pictures(
    pixels: np.ndarray, mask: np.ndarray, background: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """The pictures of one explanation, by the names they are saved under.

    Args:
        pixels: uint8 ``(H, W, 3)``, or gray ``(H, W, 1)``, the classifier's input.
        mask: bool ``(H, W)``, true where kept.
        background: the colour of the removed pixels, 0 … 255 each.

    Returns:
        ``input``, ``mask``, ``overlay`` and ``explanation``.

    Examples:
        >>> pixels, mask = np.zeros((5, 5, 3), np.uint8), np.eye(5, dtype=bool)
        >>> list(explanation_pictures(pixels, mask, (127, 127, 127)))
        ['input', 'mask', 'overlay', 'explanation']
    """
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return {
        "input": pixels,
        "mask": mask_picture(mask),
        "overlay": overlay(pixels, mask),
        "explanation": on_background(pixels, mask, background),
    }


def strip(
    images: Sequence[np.ndarray], labels: Sequence[str] | None = None, text: int | None = None
) -> np.ndarray:
    """Pictures side by side on white, each with a caption below it if there are labels.

    Args:
        images: uint8 ``(H, W)`` or ``(H, W, 3)``, all of one height.
        labels: a caption for each; a column widens where its caption is wider than its picture.
        text: size of the captions in pixels; by default a sixteenth of the height.

    Returns:
        uint8 ``(H', W', 3)``.

    Raises:
        ValueError: no images, unequal heights, or as many labels as do not fit.

    Examples:
        >>> strip([np.zeros((100, 50), np.uint8), np.zeros((100, 80, 3), np.uint8)]).shape
        (100, 134, 3)
    """
    heights = {image.shape[0] for image in images}
    if len(heights) != 1:
        raise ValueError(f"expected images of one height, found heights {sorted(heights)}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"expected {len(images)} labels, found {len(labels)}")
    height = heights.pop()
    gap = max(4, height // 50)
    font = ImageFont.load_default(text or max(11, height // 16))
    boxes = [font.getbbox(label) for label in labels or [""] * len(images)]
    texts = [math.ceil(box[2]) for box in boxes]
    widths = [max(image.shape[1], text + gap) for image, text in zip(images, texts, strict=True)]
    below = math.ceil(max(box[3] for box in boxes)) + 2 * gap if labels else 0
    total = sum(widths) + gap * (len(images) - 1)
    canvas = Image.new("RGB", (total, height + below), "white")
    draw = ImageDraw.Draw(canvas)
    left = 0
    for index, (image, width) in enumerate(zip(images, widths, strict=True)):
        canvas.paste(Image.fromarray(image), (left + (width - image.shape[1]) // 2, 0))
        if labels:
            start = left + (width - texts[index]) // 2
            draw.text((start, height + gap), labels[index], "black", font)
        left += width + gap
    return np.array(canvas)


def _check_mask(mask: np.ndarray) -> None:
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"expected a mask of bool (H, W), found {mask.dtype} {mask.shape}")


def _check(pixels: np.ndarray, mask: np.ndarray) -> None:
    _check_mask(mask)
    if pixels.dtype != np.uint8 or pixels.shape != (*mask.shape, 3):
        raise ValueError(
            f"expected pixels of uint8 {(*mask.shape, 3)}, found {pixels.dtype} {pixels.shape}"
        )
