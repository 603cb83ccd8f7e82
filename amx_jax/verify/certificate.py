"""The certificate: what holds of a hard mask, recomputed from the mask alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.bounds import clopper_pearson_lower
from amx_jax.verify.notion import Notion
from amx_jax.verify.pool import Search
from amx_jax.verify.prune import cell_map, components

WAVE = 8  # cells whose removal is tested at once where each test asks about several backgrounds

Kept = dict[str, tuple[int, int]]  # by kind of background: on how many of how many
# (mask, least probability) -> on how many unseen backgrounds it keeps the decision
Retention = Callable[[np.ndarray, float], Kept]


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
        holds: what the notion asks: of *plain* on the stated colour, of *worst* on each of the search's
            backgrounds, of *robust* that ``bound`` is at least 1 − δ.
        minimal: on the stated colour, or on the search's backgrounds where the notion is not plain, the
            notion holds, and no kept cell can be removed alone without losing that.
        components: number of 4-connected regions.
        robustness: ``{kind: (kept, trials)}``, unseen backgrounds on which the goal is met.
        bound: what the share of such backgrounds exceeds, kinds being equally likely, with the
            confidence ``certainty``.
        certainty: less than asked where earlier masks of the photo were tested and failed.
    """

    probability_image: float
    probability_explanation: float
    probability_complement: float
    area: float
    sufficient: bool
    necessary: bool
    holds: bool
    minimal: bool
    components: int
    robustness: Kept
    bound: float
    certainty: float


def pooled_bound(robustness: Kept, certainty: float) -> float:
    """The exact lower bound of the share of kept backgrounds over all kinds, equally likely.

    As many trials of each kind vary less than as many of a random kind, so the binomial bound holds
    (Hoeffding 1956).

    Examples:
        >>> round(pooled_bound({"noise": (50, 50), "blur": (48, 50)}, 0.95), 3)
        0.938
    """
    kept, trials = (sum(column) for column in zip(*robustness.values(), strict=True))
    return clopper_pearson_lower(kept, trials, certainty)


def certify(
    mask: np.ndarray,
    cell: int,
    notion: Notion,
    robustness: Kept,
    certainty: float,
    share: float | None = None,
) -> Search[Certificate]:
    """Certify a mask from nothing but the mask.

    Args:
        mask: bool ``(H, W)``.
        cell: side of the squares of the minimality test, in pixels.
        notion: when a mask holds.
        robustness: of this mask on unseen backgrounds.
        certainty: confidence of the bound.
        share: what the bound must reach for the mask to hold; None where the notion itself decides.

    Yields:
        Candidates, as :meth:`Notion.test` does.

    Returns:
        The certificate.
    """
    notion.forget()
    cells = cell_map(mask.shape, cell)
    without_one = [mask & (cells != number) for number in np.unique(cells[mask])]
    if notion.plain and notion.goal == "sufficient":  # one round of questions is enough
        judged = yield [np.ones_like(mask), mask, ~mask, *without_one]
        margins, probabilities = judged.margins[:3], judged.probabilities[:3]
        scores = np.delete(notion.scores(judged), [0, 2])
    else:
        margins, probabilities = yield [np.ones_like(mask), mask, ~mask]
        scores = yield from notion.test([mask])
        # The first cell that can go decides, and to know that one can costs all backgrounds.
        for first in range(0, len(without_one) if scores[0] > MARGIN else 0, WAVE):
            some = without_one[first : first + WAVE]
            scores = np.append(scores, (yield from notion.test(some)))
            if (scores[1:] > MARGIN).any():
                break
    bound = pooled_bound(robustness, certainty)
    found = scores > MARGIN
    return Certificate(
        probability_image=float(probabilities[0]),
        probability_explanation=float(probabilities[1]),
        probability_complement=float(probabilities[2]),
        area=float(mask.mean()),
        sufficient=bool(margins[1] > MARGIN),
        necessary=bool(margins[2] < -MARGIN),  # clearly another class, not a tie
        holds=bool(found[0]) if share is None else bound >= share,
        minimal=bool(found[0]) and not found[1:].any(),
        components=components(mask),
        robustness=robustness,
        bound=bound,
        certainty=certainty,
    )
