"""The certificate: what holds of a hard mask, recomputed from the mask alone."""

from dataclasses import dataclass

import numpy as np
from jax import Array

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.evaluator import Evaluator
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
    evaluator: Evaluator,
    images: Array,
    targets: Array,
    owners: np.ndarray,
    masks: np.ndarray,
    keys: Array,
    cell: int,
    trials: int,
) -> list[Certificate]:
    """Certify masks from nothing but the masks.

    Args:
        evaluator: the classifier on masked images.
        images: normalised, ``(n, H, W, C)``.
        targets: ``(n,)``.
        owners: which image each mask belongs to, ``(k,)``.
        masks: bool ``(k, H, W)``.
        keys: of the unseen backgrounds, ``(n,)``.
        cell: side of the squares of the minimality test, in pixels.
        trials: backgrounds of each kind.

    Returns:
        A certificate for each mask. Each depends on its own image only.
    """
    cells = cell_map(masks.shape[1:], cell)
    groups = []
    for mask in masks:
        without_one = [mask & (cells != number) for number in np.unique(cells[mask])]
        groups.append([np.ones_like(mask), mask, ~mask, *without_one])
    if not groups:
        return []
    sizes = [len(group) for group in groups]
    margins, probabilities = evaluator.judge(
        images, targets, np.repeat(owners, sizes), np.concatenate(groups)
    )
    ends = np.cumsum(sizes)[:-1]
    certificates = []
    for owner, mask, margin, probability in zip(
        owners, masks, np.split(margins, ends), np.split(probabilities, ends), strict=True
    ):
        sufficient = bool(margin[1] > MARGIN)
        certificates.append(
            Certificate(
                probability_image=float(probability[0]),
                probability_explanation=float(probability[1]),
                probability_complement=float(probability[2]),
                area=float(mask.mean()),
                sufficient=sufficient,
                necessary=bool(margin[2] < -MARGIN),  # clearly another class, not a tie
                minimal=sufficient and not (margin[3:] > MARGIN).any(),
                components=components(mask),
                robustness=evaluator.robustness(
                    images[owner], targets[owner], mask, keys[owner], trials
                ),
            )
        )
    return certificates
