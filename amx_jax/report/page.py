"""A report as one HTML page: photos and masks in, text out; knows nothing of files.

The page asks no network, and its Content-Security-Policy forbids it to. Names and words reach it as
JSON in which no character can end a script, and its own script writes them as text, never as HTML.
"""

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import median
from typing import Any

import jinja2
import numpy as np

from amx_jax.data.results import plain
from amx_jax.data.shown import Masked, Shown
from amx_jax.verify.words import per_cent

# Of a record: what the page shows, and no more.
SHOWN = (
    *("target", "decision", "area", "probability", "sufficient", "necessary", "words", "background"),
    *("instance", "top", "curve"),
)


def card(photo: Shown) -> dict[str, Any]:
    """What the page holds of a photo, besides the photo itself, as JSON.

    Args:
        photo: with its masks.

    Examples:
        >>> card(Shown("cat.png", failure="cat.png: found an empty file"))["failure"]
        'cat.png: found an empty file'
    """
    height, width = photo.pixels.shape[:2] if photo.pixels is not None else (0, 0)
    return {
        "name": photo.name,
        "failure": photo.failure,
        "width": width,
        "height": height,
        "masks": [_mask(one) for one in photo.masks],
    }


def _mask(one: Masked) -> dict[str, Any]:
    record = one.record
    kinds = record["robustness"].values()
    kept, trials = (sum(kind[name] for kind in kinds) for name in ("kept", "trials"))
    return {
        **{name: record.get(name) for name in SHOWN},
        "flags": record["controls"]["flags"],
        "retention": kept / trials if trials else None,
        "mask": _packed(one.mask),
        "levels": None if one.levels is None else _packed(one.levels),
    }


def _packed(values: np.ndarray) -> str:
    """A byte a pixel, deflated: the page reads them without a canvas, which some browsers falsify."""
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def page(cards: Sequence[Mapping[str, Any]], photos: Sequence[bytes | str | None], about: str) -> str:
    """The whole report.

    Args:
        cards: of the photos, as :func:`card` makes them.
        photos: of each the PNG file, or its address from the page, or None where there is none.
        about: whose report this is, as the classifier's name.

    Returns:
        HTML.

    Examples:
        >>> one = card(Shown("</script>.png", failure="found no image"))
        >>> text = page([one], [None], "tiny")
        >>> "default-src 'none'" in text, "</script>.png" in text
        (True, False)
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("amx_jax.report", "html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script = (_part(name) for name in ("page.css", "page.js"))
    outside = any(isinstance(photo, str) for photo in photos)
    return environment.get_template("page.html.jinja").render(
        about=about,
        lead=lead(cards).replace(" %", "\N{NO-BREAK SPACE}%"),
        cards=plain(cards),
        photos=[
            f"data:image/png;base64,{base64.b64encode(photo).decode()}"
            if isinstance(photo, bytes)
            else photo
            for photo in photos
        ],
        style=style,
        script=script,
        # 'self' is no origin of a page from the disk, and file: is no source of one from a server.
        images="data: 'self' file:" if outside else "data:",
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def lead(cards: Sequence[Mapping[str, Any]]) -> str:
    """What was found, in a sentence or three.

    Args:
        cards: of the photos.

    Examples:
        >>> lead([card(Shown("cat.png", failure="found no image"))])
        'None of 1 photo was explained.'
    """
    masks = [mask for card in cards for mask in card["masks"]]
    explained = sum(not card["failure"] for card in cards)
    photos = f"{len(cards):,} photo{'s' if len(cards) != 1 else ''}"
    if not masks:
        return f"None of {photos} was explained."
    flagged = sum(bool(mask["flags"]) for mask in masks)
    said = [
        f"{photos if explained == len(cards) else f'{explained:,} of {photos}'} explained"
        + (f" by {len(masks):,} masks" if len(masks) != explained else "")
        + f"; the kept pixels take {per_cent(median(mask['area'] for mask in masks))} of the photo"
        + (" in the median." if len(masks) > 1 else ".")
    ]
    sufficient = sum(mask["sufficient"] for mask in masks)
    if sufficient < len(masks):
        said.append(f"{sufficient:,} of {len(masks):,} masks keep the decision alone.")
    if flagged:
        said.append(f"Something speaks against {flagged:,} of the {len(masks):,} masks.")
    return " ".join(said)


def _part(name: str) -> str:
    return resources.files("amx_jax.report").joinpath("html", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a Content-Security-Policy names the one script or style that may be there."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
