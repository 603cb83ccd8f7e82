"""An explanation as a notebook shows it: two pictures and the certificate in words."""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from amx_jax.report.pictures import encode_png, explanation_pictures

SIDE = 224  # of each picture, in pixels of the page


def explanation_html(
    pixels: np.ndarray,
    mask: np.ndarray,
    background: tuple[int, int, int],
    label: str,
    words: Sequence[str],
) -> str:
    """A piece of HTML that needs nothing but itself.

    Args:
        pixels: uint8 ``(H, W, 3)``, or gray ``(H, W, 1)``, the classifier's input.
        mask: bool ``(H, W)``, true where kept.
        background: the colour of the removed pixels, 0 … 255 each.
        label: of the explained class.
        words: the certificate, a sentence each.

    Returns:
        HTML, its text escaped.

    Examples:
        >>> pixels, mask = np.zeros((5, 5, 3), np.uint8), np.eye(5, dtype=bool)
        >>> text = explanation_html(pixels, mask, (127, 127, 127), "<cat>", ["Kept."])
        >>> text.count("data:image/png"), "&lt;cat&gt;" in text, "<cat>" in text
        (2, True, False)
    """
    pictures = explanation_pictures(pixels, mask, background)
    images = "".join(
        f'<img width="{SIDE}" alt="{escape(alt)}" style="margin-right: 12px" '
        f'src="data:image/png;base64,{base64.b64encode(encode_png(pictures[name])).decode()}">'
        for name, alt in (("overlay", f"overlay: {label}"), ("explanation", f"kept pixels: {label}"))
    )
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in words)
    return f"<div><p><strong>{escape(label)}</strong></p>{images}<ul>{said}</ul></div>"
