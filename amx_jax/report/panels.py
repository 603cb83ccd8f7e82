"""Pictures of explanations as figures for papers, drawn from arrays and records, not from files."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from amx_jax.errors import one_line
from amx_jax.report.pictures import CONTOUR, on_background, overlay, strip, unseen_faded
from amx_jax.verify.words import per_cent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 300  # inches, that of a page of two columns; dots per inch
GAP, LINE, EDGE = 0.07, 0.15, 0.03  # inches: between pictures, of a line of text, around everything
TALLEST = 1.25  # a picture's height over its width; what is taller is made narrower
POINTS, SMALL = 8.0, 6.5  # size of the text; that below pictures narrower than NARROW inches
NARROW = 1.2
TICK, PAUSE = 140, 2500  # milliseconds that a frame of an animation stays, and the last two


class Geometry(Protocol):
    """What is asked of a classifier's preprocessing."""

    def uncrop(self, values: np.ndarray, size: tuple[int, int], outside: Any) -> np.ndarray:
        """An array of the input's pixels laid back over a photo of this width and height."""
        ...


class Pictured(NamedTuple):
    """An explanation as figures show it.

    Attributes:
        photo: uint8 ``(H, W, 3)``, of any size.
        mask: bool ``(H, W)``, true where kept.
        seen: bool ``(H, W)``, true where the classifier sees the photo.
        record: as :meth:`amx_jax.Explanation.record` makes it.
    """

    photo: np.ndarray
    mask: np.ndarray
    seen: np.ndarray
    record: Mapping[str, Any]

    def overlay(self) -> np.ndarray:
        """The photo with what is removed in gray and a line around what is kept."""
        return unseen_faded(overlay(self.photo, self.mask), self.photo, self.seen)

    def pictures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The photo, the overlay and the kept pixels, each with what is not seen almost white."""
        colour = tuple(self.record["background"]["rgb"])
        kept = on_background(self.photo, self.mask, (colour[0], colour[1], colour[2]))
        photo, kept = (unseen_faded(one, self.photo, self.seen) for one in (self.photo, kept))
        return photo, self.overlay(), kept


class Panel(NamedTuple):
    """A picture of a figure.

    Attributes:
        picture: uint8 ``(H, W, 3)``.
        below: lines of text below it; one that is too long is cut.
        above: one above it.
    """

    picture: np.ndarray
    below: tuple[str, ...] = ()
    above: str = ""


def shown(
    record: Mapping[str, Any],
    pixels: np.ndarray,
    mask: np.ndarray,
    photo: np.ndarray | None = None,
    geometry: Geometry | None = None,
) -> Pictured:
    """An explanation, made ready to be drawn: over its photo where that is given, else over the input.

    Args:
        record: as :meth:`amx_jax.Explanation.record` makes it.
        pixels: the classifier's input, uint8 ``(h, w, C)``.
        mask: bool ``(h, w)``, true where kept.
        photo: the whole photo, uint8 ``(H, W, 3)``, upright, of any size.
        geometry: the classifier's ``preprocess``, by which the input was cut out of the photo.

    Examples:
        >>> from amx_jax import Preprocess
        >>> pixels, mask = np.zeros((2, 2, 3), np.uint8), np.eye(2, dtype=bool)
        >>> preprocess = Preprocess(size=2, resize=2, mean=0.0, scale=1.0)
        >>> shown({}, pixels, mask, np.zeros((4, 6, 3), np.uint8), preprocess).mask.sum()
        np.int64(8)
    """
    if photo is None or geometry is None:
        pixels = np.broadcast_to(pixels, (*mask.shape, 3))
        return Pictured(pixels, mask, np.ones_like(mask), record)
    size = photo.shape[1], photo.shape[0]
    laid = geometry.uncrop(np.stack([mask, np.ones_like(mask)], axis=-1), size, False)
    return Pictured(photo, laid[..., 0], laid[..., 1], record)


def explanation_grid(explained: Sequence[Pictured], columns: int = 1, dpi: float = DPI) -> "Figure":
    """A row for each photo: the photo, the overlay, and the kept pixels alone.

    Args:
        explained: from :func:`shown`.
        columns: photos beside each other, three pictures each.
        dpi: of a PNG file.

    Raises:
        ValueError: nothing to draw, or fewer than one column.

    Examples:
        >>> pixels, mask = np.zeros((2, 2, 3), np.uint8), np.eye(2, dtype=bool)
        >>> record = {"target": {"name": "cat"}, "area": 0.5, "notion": {"holds": True}}
        >>> record["probability"] = {"image": 0.9, "explanation": 0.8}
        >>> record["background"] = {"rgb": [127, 127, 127]}
        >>> figure = explanation_grid([shown(record, pixels, mask)])
        >>> [axes.get_title() for axes in figure.axes]
        ['photo', 'overlay', 'kept pixels']
    """
    panels = []
    for index, one in enumerate(explained):
        p = one.record["probability"]
        texts = (
            (one.record["target"]["name"], f"p(x) {p['image']:.2f}"),
            _area(one.record),
            (f"p(e) {p['explanation']:.2f}",),
        )
        names = ("photo", "overlay", "kept pixels") if index < columns else ("", "", "")
        panels += [Panel(*parts) for parts in zip(one.pictures(), texts, names, strict=True)]
    return sheet(panels, 3 * columns, dpi)


def method_strip(
    rows: Sequence[Mapping[str, Pictured]], columns: int | None = None, dpi: float = DPI
) -> "Figure":
    """One photo, or one a row: what each method keeps of it, side by side.

    Args:
        rows: for each photo, its explanations by the method's name, of one class.
        columns: pictures beside each other, the photo's own included; by default all of a photo.
        dpi: of a PNG file.

    Raises:
        ValueError: nothing to draw, fewer than one column, or more than one photo and fewer columns
            than pictures of it.
    """
    panels, widest = [], max((len(row) + 1 for row in rows), default=0)
    if columns is not None and columns < widest and len(rows) > 1:
        raise ValueError(f"columns: found {columns} and {len(rows)} photos, expected at least {widest}")
    for index, row in enumerate(rows):
        first = next(iter(row.values()))
        target, p = first.record["target"]["name"], first.record["probability"]["image"]
        panels.append(Panel(first.pictures()[0], (target, f"p(x) {p:.2f}"), "" if index else "photo"))
        for method, one in row.items():
            p = one.record["probability"]["explanation"]
            below = (*_area(one.record), f"p(e) {p:.2f}")
            panels.append(Panel(one.overlay(), below, "" if index else method))
        panels += [BLANK] * (widest - 1 - len(row) if len(rows) > 1 else 0)
    return sheet(panels, widest if columns is None else columns, dpi)


class Step(NamedTuple):
    """A mask on its way to an explanation.

    Attributes:
        name: what is said of it, such as ``step 8``.
        shown: the photo with that mask.
    """

    name: str
    shown: Pictured


def evolution_strip(steps: Sequence[Step], columns: int = 6, dpi: float = DPI) -> "Figure":
    """Some of the masks of a run in one row: the first, the last two, and some between them.

    Args:
        steps: in their order, the pruned mask last.
        columns: how many.
        dpi: of a PNG file.

    Raises:
        ValueError: nothing to draw, or fewer than one column.
    """
    if columns < 1 or not steps:
        raise ValueError(f"found {len(steps)} steps and {columns} columns, expected at least 1 of each")
    panels = [
        Panel(one.shown.overlay(), (_share(one.shown),), one.name) for one in selected(steps, columns)
    ]
    return sheet(panels, len(panels), dpi)


def selected(steps: Sequence[Step], count: int) -> list[Step]:
    """So many of the steps: the first, the last two, and between them as evenly as may be by log area.

    Masks shrink by factors, so that steps at equal distances would show most of a run as one mask.

    Examples:
        >>> def step(name, kept):
        ...     mask = np.arange(100).reshape(10, 10) < kept
        ...     photo = np.zeros((10, 10, 3), np.uint8)
        ...     return Step(name, Pictured(photo, mask, np.ones_like(mask), {}))
        >>> steps = [step(str(kept), kept) for kept in (80, 78, 40, 39, 38, 20, 10, 10, 3)]
        >>> [one.name for one in selected(steps, 5)]
        ['80', '40', '20', '10', '3']
    """
    if len(steps) <= count:
        return list(steps)
    if count < 3:
        return [*steps[:1], *steps[-1:]][-count:]
    logs = [math.log(max(float(one.shown.mask.mean()), 1e-9)) for one in steps[:-1]]
    chosen = {0, len(logs) - 1}
    for wanted in np.linspace(logs[0], logs[-1], count - 1)[1:-1]:
        free = [index for index in range(len(logs)) if index not in chosen]
        chosen.add(min(free, key=lambda index: abs(logs[index] - wanted)))
    return [*(steps[index] for index in sorted(chosen)), steps[-1]]


def evolution_gif(steps: Sequence[Step], ticks: int = TICK) -> bytes:
    """The masks of a run one after the other, with their step and area below; the last two stay longer.

    Args:
        steps: in their order, the pruned mask last; of photos of one size.
        ticks: milliseconds that a frame stays.

    Returns:
        A GIF file that begins again when it has ended.

    Raises:
        ValueError: nothing to draw.

    Examples:
        >>> one = Pictured(np.zeros((64, 96, 3), np.uint8), *np.ones((2, 64, 96), bool), {})
        >>> evolution_gif([Step("step 0", one), Step("pruned", one)])[:6]
        b'GIF89a'
    """
    if not steps:
        raise ValueError("steps: found none, expected at least one")
    frames = [
        Image.fromarray(strip([one.shown.overlay()], [f"{one.name}    {_share(one.shown)}"]))
        for one in steps
    ]
    width = max(frame.width for frame in frames)
    frames = [_widened(frame, width) for frame in frames]
    # One palette for all, without dithering: what stays the same stays the same to the pixel.
    sample = Image.new("RGB", (width, 2 * frames[0].height))
    sample.paste(frames[0])
    sample.paste(frames[-1], (0, frames[0].height))
    found = sample.quantize(254, Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found[: 3 * 254], 255, 255, 255, *CONTOUR])
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    times = [PAUSE if index >= len(frames) - 2 else ticks for index in range(len(frames))]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return file.getvalue()


def _widened(frame: Image.Image, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, frame.height), "white")
    canvas.paste(frame, ((width - frame.width) // 2, 0))
    return canvas


def _area(record: Mapping[str, Any]) -> tuple[str, ...]:
    kept = f"{per_cent(record['area'])} of the pixels"
    return (kept,) if record["notion"]["holds"] else (kept, "not enough")


def _share(one: Pictured) -> str:
    """Of the pixels that the classifier sees."""
    return per_cent(float(one.mask.sum() / one.seen.sum()))


def room(columns: int) -> float:
    """Width of a picture where so many are side by side, in inches."""
    return (WIDTH - 2 * EDGE - GAP * (columns - 1)) / columns


def sheet(panels: Sequence[Panel], columns: int, dpi: float = DPI) -> "Figure":
    """Pictures in rows, 7 inches wide in all, each row as high as its pictures.

    Args:
        panels: row by row.
        columns: pictures in a row.
        dpi: of a PNG file.

    Raises:
        ValueError: no pictures, or fewer than one column.
    """
    if columns < 1 or not panels:
        raise ValueError(
            f"found {len(panels)} pictures, {columns} columns, expected at least 1 of each"
        )
    from matplotlib.figure import Figure

    width = room(columns)
    points = SMALL if width < NARROW else POINTS
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [width * min(TALLEST, max(_ratio(one) for one in row)) for row in rows]
    above = [LINE if any(one.above for one in row) else 0.0 for row in rows]
    below = [LINE * max(len(one.below) for one in row) for row in rows]
    total = sum(heights) + sum(above) + sum(below) + GAP * (len(rows) - 1) + 2 * EDGE
    figure = Figure((WIDTH, total), dpi)
    top = total - EDGE
    for row, height, over, under in zip(rows, heights, above, below, strict=True):
        top -= over
        for index, one in enumerate(row):
            if one is BLANK:
                continue
            left = EDGE + index * (width + GAP)
            box = left / WIDTH, (top - height) / total, width / WIDTH, height / total
            axes = figure.add_axes(box)
            axes.imshow(one.picture, aspect="equal")
            axes.set_anchor("N")
            axes.set_axis_off()
            title = fitted(one.above, width, points)
            axes.set_title(title, fontsize=points, pad=3, parse_math=False)
            drawn = width * min(_ratio(one), height / width)  # narrower ones keep their height
            for number, text in enumerate(one.below):
                figure.text(
                    (left + width / 2) / WIDTH,
                    (top - drawn - 0.04 - LINE * number) / total,
                    fitted(text, width, points),
                    fontsize=points,
                    ha="center",
                    va="top",
                    parse_math=False,
                )
        top -= height + under + GAP
    return figure


def _ratio(one: Panel) -> float:
    return one.picture.shape[0] / one.picture.shape[1]


def fitted(text: str, inches: float, points: float) -> str:
    """The text in one line, its end replaced by … where it is wider than there is room.

    Examples:
        >>> fitted("Egyptian Cat", 2.0, 8.0), fitted("a very long name of a class", 0.8, 8.0)
        ('Egyptian Cat', 'a very long…')
    """
    text = one_line(text)
    if _wide(text, points) <= 72 * inches:
        return text
    fits, fails = 0, len(text)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _wide(text[:middle].rstrip() + "…", points) <= 72 * inches:
            fits = middle
        else:
            fails = middle
    return text[:fits].rstrip() + "…"


@cache
def _wide(text: str, points: float) -> float:
    """Width in points."""
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        return float(TextPath((0, 0), text.replace("$", r"\$"), size=points).get_extents().width)


BLANK = Panel(np.full((1, 1000, 3), 255, np.uint8))
