"""Figures as files in memory, with the fonts that they need; the same figure gives the same bytes."""

import io
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What Matplotlib would write of itself and of the time: none of it is of the figure.
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
STYLE: Any = {
    "pdf.fonttype": 42,  # TrueType: text that can be searched and edited, as publishers ask
    "svg.fonttype": "path",  # letters as outlines: an SVG file carries no fonts
    "svg.hashsalt": "amx",  # or each file would have other names for the same things
}


def encode_figure(figure: "Figure", suffix: str = "png") -> bytes:
    """The figure as a file.

    Args:
        figure: of Matplotlib; PNG has its resolution. PDF and SVG hold the pixels of its pictures as
            they are, whatever the resolution.
        suffix: ``png``, ``pdf`` or ``svg``.

    Returns:
        The file's content.

    Raises:
        ValueError: another suffix.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> encode_figure(Figure())[1:4], encode_figure(Figure(), "pdf")[:5]
        (b'PNG', b'%PDF-')
    """
    import matplotlib

    if suffix not in METADATA:
        raise ValueError(f"suffix: found {suffix!r}, expected {', '.join(METADATA)}")
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        if suffix != "png":
            for axes in figure.axes:
                for picture in axes.images:
                    picture.set_interpolation("none")  # else they are resampled for some screen
        figure.savefig(file, format=suffix, dpi="figure", metadata=METADATA[suffix])
    return file.getvalue()
