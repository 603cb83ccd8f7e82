"""One photo's curves: what a growing share of its pixels, most important first, is worth.

The sufficiency-area curve says on which share of backgrounds the nested masks of an explanation keep
the decision; insertion and deletion (:mod:`amx_jax.evaluate.metrics`) what they do to the target's
probability. Knows nothing of methods, records or tables.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from amx_jax.classifiers.classifier import Classifier
from amx_jax.evaluate.metrics import deletion_auc, insertion_auc
from amx_jax.lift import Devices
from amx_jax.objective.decision import probability

AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the nested masks
TRIALS = 16  # backgrounds of each kind for each of them
STEPS = 28  # of insertion and deletion: 1,792 pixels of 224 × 224 each


def nested_masks(
    mask: np.ndarray, ranking: np.ndarray, areas: Sequence[float] = AREAS
) -> list[np.ndarray]:
    """An explanation as a family of masks, each within the next.

    What was certified comes before all else: the mask's own pixels in the order of the ranking, then
    the others in that order. Of equals the first in reading order.

    Args:
        mask: bool ``(H, W)``.
        ranking: ``(H, W)``, larger is more important.
        areas: shares of the pixels, in [0, 1].

    Returns:
        For each area a bool ``(H, W)`` that keeps that share, to the nearest pixel.

    Raises:
        ValueError: shapes that differ, a ranking that is not a number, or an area outside [0, 1].

    Examples:
        >>> certified, ranking = np.array([[False, True, False]]), np.array([[2.0, 1.0, 3.0]])
        >>> [nested.tolist() for nested in nested_masks(certified, ranking, (1 / 3, 2 / 3))]
        [[[False, True, False]], [[False, True, True]]]
    """
    if mask.shape != ranking.shape or np.isnan(ranking).any():
        raise ValueError(
            f"found a mask {mask.shape} and a ranking {ranking.shape}, expected two (H, W) of numbers"
        )
    if not all(0 <= area <= 1 for area in areas):
        raise ValueError(f"areas: found {tuple(areas)}, expected shares from 0 to 1")
    place = np.empty(mask.size, int)
    place[np.lexsort((-ranking.ravel(), ~mask.ravel()))] = np.arange(mask.size)
    return [place.reshape(mask.shape) < round(area * mask.size) for area in areas]


def levels(mask: np.ndarray, ranking: np.ndarray, areas: Sequence[float] = AREAS) -> np.ndarray:
    """The whole family of :func:`nested_masks` in one picture.

    Args:
        mask: bool ``(H, W)``.
        ranking: ``(H, W)``, larger is more important.
        areas: shares of the pixels, in rising order.

    Returns:
        For each pixel the index of the first area whose mask holds it, uint8 ``(H, W)``; of a
        pixel that none holds, how many areas there are.

    Raises:
        ValueError: as of :func:`nested_masks`.

    Examples:
        >>> certified, ranking = np.array([[False, True, False]]), np.array([[2.0, 1.0, 3.0]])
        >>> levels(certified, ranking, (1 / 3, 2 / 3)).tolist()
        [[2, 0, 1]]
    """
    outside = np.stack([~nested for nested in nested_masks(mask, ranking, areas)])
    return outside.sum(axis=0, dtype=np.uint8)


def sufficiency_curve(
    ask: Callable[[list[np.ndarray]], Sequence[float]],
    mask: np.ndarray,
    ranking: np.ndarray,
    areas: Sequence[float] = AREAS,
) -> dict[str, list[float]]:
    """How many backgrounds the nested masks of an explanation keep the decision on.

    Args:
        ask: from masks, bool ``(H, W)``, to the share of backgrounds on which each keeps the decision.
        mask: bool ``(H, W)``.
        ranking: ``(H, W)``, larger is more important.
        areas: of the masks.

    Returns:
        ``area`` and ``retention``, as :func:`amx_jax.evaluate.summary.mean_curve` takes them.

    Raises:
        ValueError: as of :func:`nested_masks`.

    Examples:
        >>> certified, ranking = np.array([[False, True]]), np.array([[2.0, 1.0]])
        >>> sufficiency_curve(lambda masks: [m.mean() for m in masks], certified, ranking, (0.5, 1.0))
        {'area': [0.5, 1.0], 'retention': [0.5, 1.0]}
    """
    retention = ask(nested_masks(mask, ranking, areas))
    return {"area": list(map(float, areas)), "retention": list(map(float, retention))}


class Curves:
    """Insertion and deletion of rankings, by one program for all of them.

    In full float32 precision, as the certificates. Scores depend on :data:`STEPS`: compare those of
    equal steps only.

    Args:
        classifier: f.
        chunk: as of :class:`amx_jax.lift.Devices`.

    Examples:
        >>> from amx_jax import Preprocess
        >>> upper_left = Classifier(  # class 1 where that pixel is bright
        ...     apply=lambda params, image: jnp.stack([0.0, 20 * (image[0, 0, 0] - 0.5)]),
        ...     params=(),
        ...     preprocess=Preprocess(size=8, resize=8, mean=0.0, scale=255.0),
        ... )
        >>> photo, ranking = np.full((8, 8, 3), 255, np.uint8), -np.arange(64.0).reshape(8, 8)
        >>> insertion, deletion = Curves(upper_left)(photo, ranking, 1)
        >>> insertion > 0.95, deletion < 0.05
        (True, True)
    """

    def __init__(self, classifier: Classifier, chunk: int = 0):
        devices = Devices(chunk=chunk)
        self._normalize = classifier.preprocess.normalize
        self._params = devices.replicate(classifier.params)
        self._size = devices.slots(STEPS + 1)

        def one(params, target, image):
            with jax.default_matmul_precision("highest"):
                logits, _ = classifier.apply(params, image)
            return probability(classifier.head, logits, target)

        self._ask = devices.lift(one, shared=2)

    def __call__(self, pixels: np.ndarray, ranking: np.ndarray, target: int) -> tuple[float, float]:
        """The areas under both curves, in [0, 1].

        Args:
            pixels: uint8 ``(H, W, C)``.
            ranking: ``(H, W)``, larger is more important.
            target: the class whose probability is followed.

        Returns:
            Insertion, higher is better, and deletion, lower is better.

        Raises:
            ValueError: as of :func:`amx_jax.evaluate.metrics.insertion_auc`.
        """

        def classify(images: np.ndarray) -> np.ndarray:
            padding = [(0, self._size - len(images)), (0, 0), (0, 0), (0, 0)]
            asked = jnp.asarray(np.pad(images, padding), jnp.float32)
            return np.asarray(self._ask(self._params, np.int32(target), asked))[: len(images)]

        image = self._normalize(pixels.astype(np.float32))
        return (
            insertion_auc(classify, image, ranking, steps=STEPS).auc,
            deletion_auc(classify, image, ranking, steps=STEPS).auc,
        )
