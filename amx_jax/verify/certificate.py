"""The certificate: what holds of a hard mask, recomputed from the mask alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Search
from amx_jax.verify.prune import cell_map, components


@dataclass(frozen=True)
class Certificate:
    """What was measured on the final hard mask.

    Attributes:
        probability_image: p_t(x).
        probability_explanation: p_t(e).
        probability_complement: p_t of the photo without the kept pixels.
        area: kept share of the pixels.
        sufficient: the explanation alone has the target as its top class.
        necessary: the complement alone does not.
        minimal: sufficient, and no kept cell can be removed alone without losing the target.
        components: number of 4-connected regions.
        robustness: ``{kind: (kept, trials)}``, unseen backgrounds that keep the target.
    """

    probability_image: float
    probability_explanation: float
    probability_complement: float
    area: float
    sufficient: bool
    necessary: bool
    minimal: bool
    components: int
    robustness: dict[str, tuple[int, int]]


def certify(
    mask: np.ndarray, cell: int, robustness: Callable[[np.ndarray], dict[str, tuple[int, int]]]
) -> Search[Certificate]:
    """Certify a mask from nothing but the mask.

    Args:
        mask: bool ``(H, W)``.
        cell: side of the squares of the minimality test, in pixels.
        robustness: of a mask, ``{kind: (kept, trials)}``.

    Yields:
        The masks to be judged, as :func:`amx_jax.verify.prune.prune` does.

    Returns:
        The certificate.
    """
    cells = cell_map(mask.shape, cell)
    without_one = [mask & (cells != number) for number in np.unique(cells[mask])]
    margins, probabilities = yield [np.ones_like(mask), mask, ~mask, *without_one]
    sufficient = bool(margins[1] > MARGIN)
    return Certificate(
        probability_image=float(probabilities[0]),
        probability_explanation=float(probabilities[1]),
        probability_complement=float(probabilities[2]),
        area=float(mask.mean()),
        sufficient=sufficient,
        necessary=bool(margins[2] < -MARGIN),  # clearly another class, not a tie
        minimal=sufficient and not (margins[3:] > MARGIN).any(),
        components=components(mask),
        robustness=robustness(mask),
    )
