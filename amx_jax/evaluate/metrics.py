"""How good explanations are: each metric a function of one image's arrays, in NumPy.

Where a classifier is asked, it is given as ``classify``: normalised images ``(n, H, W, C)`` to the
target's probabilities ``(n,)``. A localisation never comes without its chance level, what a random
answer of the same size would score. Knows nothing of disks, methods or tables.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

Classify = Callable[[np.ndarray], np.ndarray]
Statistic = Callable[..., np.ndarray]  # (values, axis=) as np.median, np.mean


class Curve(NamedTuple):
    """The target's probability as pixels are moved in the order of a ranking.

    Attributes:
        auc: area under the curve by the trapezoidal rule, in [0, 1].
        shares: of the pixels that were moved, ``(steps + 1,)``, from 0 to 1.
        probabilities: at these shares, ``(steps + 1,)``.
    """

    auc: float
    shares: np.ndarray
    probabilities: np.ndarray


class Localisation(NamedTuple):
    """How well an explanation points at an object.

    Attributes:
        value: the metric, in [0, 1].
        chance: what an answer that knows nothing of the object is expected to score.
    """

    value: float
    chance: float


class Interval(NamedTuple):
    """A statistic of a sample and its confidence interval.

    Attributes:
        value: of the sample itself.
        lower: end of the interval.
        upper: end of the interval.
    """

    value: float
    lower: float
    upper: float


# --- confidence -----------------------------------------------------------------------------------


def average_drop(p_image: np.ndarray, p_explanation: np.ndarray) -> float:
    """Mean over images of max(0, p(x) − p(e)) / p(x): the confidence that the explanation loses.

    Args:
        p_image: p(x), the target's probability in each image, ``(n,)`` in [0, 1].
        p_explanation: p(e), that in each explanation, ``(n,)`` in [0, 1].

    Returns:
        0 (best) … 1; the papers print it in per cent. An image with p(x) = 0 has nothing to lose: 0.

    Raises:
        ValueError: no images, different shapes, or values outside [0, 1].

    Examples:
        >>> average_drop(np.array([0.8, 0.5]), np.array([0.4, 0.9]))
        0.25

    Reference: Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063); also in Jung and Oh,
    "Towards Better Explanations of Class Activation Mapping", ICCV 2021 (arXiv 2102.05228).
    """
    before, after = _probabilities(p_image, p_explanation)
    return _mean_share(before - after, before)


def average_gain(p_image: np.ndarray, p_explanation: np.ndarray) -> float:
    """Mean over images of max(0, p(e) − p(x)) / (1 − p(x)): the doubt that the explanation removes.

    Args:
        p_image: p(x), ``(n,)`` in [0, 1].
        p_explanation: p(e), ``(n,)`` in [0, 1].

    Returns:
        0 … 1 (best); the paper prints it in per cent. An image with p(x) = 1 has no doubt: 0.

    Raises:
        ValueError: no images, different shapes, or values outside [0, 1].

    Examples:
        >>> average_gain(np.array([0.5, 0.5]), np.array([0.75, 0.1]))
        0.25

    Reference: Zhang et al., "Opti-CAM", 2023 (arXiv 2301.07002).
    """
    before, after = _probabilities(p_image, p_explanation)
    return _mean_share(after - before, 1 - before)


def increase_in_confidence(p_image: np.ndarray, p_explanation: np.ndarray) -> float:
    """Share of images with p(e) > p(x).

    Args:
        p_image: p(x), ``(n,)`` in [0, 1].
        p_explanation: p(e), ``(n,)`` in [0, 1].

    Returns:
        0 … 1 (best); the papers print it in per cent.

    Raises:
        ValueError: no images, different shapes, or values outside [0, 1].

    Examples:
        >>> increase_in_confidence(np.array([0.8, 0.5]), np.array([0.4, 0.9]))
        0.5

    Reference: as of :func:`average_drop`.
    """
    before, after = _probabilities(p_image, p_explanation)
    return float(np.mean(after > before))


# --- order of the pixels --------------------------------------------------------------------------


def insertion_auc(
    classify: Classify,
    image: np.ndarray,
    ranking: np.ndarray,
    start: np.ndarray | None = None,
    steps: int = 224,
) -> Curve:
    """Area under the target's probability as pixels of the image enter, best-ranked first.

    The protocol is RISE's unless ``start`` says otherwise: from the image :func:`blurred`, in ``steps``
    equal parts, to the whole image. (RISE moves 224 pixels a step: 224 steps at 224 × 224.) Scores of
    another substrate are not comparable. A binary mask gives no order inside itself: rank by the
    logits that it was cut from.

    Args:
        classify: ``(steps + 1, H, W, C)`` to probabilities ``(steps + 1,)``, asked once.
        image: normalised, ``(H, W, C)``.
        ranking: ``(H, W)``, the higher the earlier; of equals the first in reading order.
        start: what the curve begins with, as ``image``; by default the image blurred.
        steps: equal parts, to a pixel.

    Returns:
        The area, higher is better, and its curve.

    Raises:
        ValueError: shapes that do not fit, a ranking that is not a number, no steps.

    Examples:
        >>> image = np.array([[[1.0], [0.0]]])
        >>> first = lambda images: images[:, 0, 0, 0]
        >>> insertion_auc(first, image, np.array([[1, 0]]), start=np.zeros_like(image), steps=2).auc
        0.75

    Reference: Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421).
    """
    return _curve(classify, blurred(image) if start is None else start, image, ranking, steps)


def deletion_auc(
    classify: Classify,
    image: np.ndarray,
    ranking: np.ndarray,
    end: np.ndarray | None = None,
    steps: int = 224,
) -> Curve:
    """Area under the target's probability as pixels of the image leave, best-ranked first.

    The protocol is RISE's unless ``end`` says otherwise: from the whole image, in ``steps`` equal
    parts, to zeros of the normalised space (not black: the colour that normalisation maps to 0).

    Args:
        classify: ``(steps + 1, H, W, C)`` to probabilities ``(steps + 1,)``, asked once.
        image: normalised, ``(H, W, C)``.
        ranking: ``(H, W)``, the higher the earlier; of equals the first in reading order.
        end: what the curve finishes with, as ``image``; by default zeros.
        steps: equal parts, to a pixel.

    Returns:
        The area, lower is better, and its curve.

    Raises:
        ValueError: shapes that do not fit, a ranking that is not a number, no steps.

    Examples:
        >>> image = np.array([[[1.0], [0.0]]])
        >>> deletion_auc(lambda images: images[:, 0, 0, 0], image, np.array([[1, 0]]), steps=2).auc
        0.25

    Reference: as of :func:`insertion_auc`.
    """
    return _curve(classify, image, np.zeros_like(image) if end is None else end, ranking, steps)


def blurred(image: np.ndarray) -> np.ndarray:
    """RISE's substrate of insertion: the image convolved with its 11 × 11 kernel, zeros around it.

    The kernel is a delta of 11 × 11 filtered with a Gaussian of standard deviation 5 that mirrors at
    the kernel's own edges, and so nearly flat: a Gaussian cut off at 11 × 11 would blur less.

    Args:
        image: normalised, ``(H, W, C)``.

    Returns:
        The same shape and type.

    Examples:
        >>> float(blurred(np.ones((20, 20, 1)))[10, 10, 0].round(6))
        1.0

    Reference: as of :func:`insertion_auc`; the kernel is that of its authors' published code.
    """
    kernel = ndimage.gaussian_filter1d(np.eye(11)[5], 5)
    for axis in (0, 1):
        image = ndimage.convolve1d(image, kernel, axis, mode="constant")
    return image


# --- where the object is --------------------------------------------------------------------------


def energy_pointing_game(saliency: np.ndarray, region: np.ndarray) -> Localisation:
    """Share of a map's mass within the region: Σ_{region} s / Σ s. Of a binary mask, its precision.

    Args:
        saliency: ``(H, W)``, binary or soft, nowhere negative.
        region: bool ``(H, W)``, where the object is.

    Returns:
        The share, 1 is best, and by chance the region's share of the image. A map without mass points
        nowhere: NaN, which an average over images must not pass over in silence.

    Raises:
        ValueError: shapes that differ, or a negative or not-finite value.

    Examples:
        >>> mask, region = np.array([[True, True], [False, False]]), np.array([[True, False]] * 2)
        >>> energy_pointing_game(mask, region)
        Localisation(value=0.5, chance=0.5)

    Reference: Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279).
    """
    saliency, region = _maps(saliency, region)
    if saliency.min() < 0 or not np.isfinite(saliency).all():
        raise ValueError("saliency: found a negative or not-finite value, expected a mass")
    mass = saliency.sum()
    value = saliency[region].sum() / mass if mass else np.nan
    return Localisation(float(value), float(region.mean()))


def iou(mask: np.ndarray, region: np.ndarray) -> Localisation:
    """Intersection over union, ``|M ∩ R| / |M ∪ R|``; that of two empty sets is 1.

    By chance, for a mask of the same area a whose pixels lie anywhere, and a region of area r (both
    shares of the image): a·r / (a + r − a·r), expected intersection over expected union. The expected
    ratio itself is larger by a term that vanishes with the number of pixels.

    Args:
        mask: bool ``(H, W)``.
        region: bool ``(H, W)``.

    Returns:
        The ratio, 1 is best. A minimal mask is far smaller than its object: a low value is no fault.

    Raises:
        ValueError: shapes that differ, or arrays that are not bool.

    Examples:
        >>> value, chance = iou(np.array([[True, True, False, False]]), np.array([[True] * 4]))
        >>> value, chance
        (0.5, 0.5)
    """
    for name, array in (("mask", mask), ("region", region)):
        if np.asarray(array).dtype != bool:
            raise ValueError(f"{name}: found {np.asarray(array).dtype}, expected bool: no soft mask")
    _maps(mask, region)
    a, r = np.mean(mask), np.mean(region)
    union = a + r - a * r
    return Localisation(_iou(mask, region), float(a * r / union) if union else 1.0)


def pointing_game(ranking: np.ndarray, region: np.ndarray, tolerance: float = 15) -> Localisation:
    """Whether the highest point of a map lies within some pixels of the region.

    Where several pixels share the maximum, the share of them that hit, which is the expected result of
    a choice among them: a constant map then scores exactly chance. Take a soft map: a binary mask is
    all ties, and this is then its precision with a tolerance.

    Args:
        ranking: soft map ``(H, W)``.
        region: bool ``(H, W)``, with at least one pixel.
        tolerance: greatest Euclidean distance of a hit from the region, in pixels.

    Returns:
        1 for a hit, 0 for a miss, or the share; by chance, the share of pixels that would hit.

    Raises:
        ValueError: shapes that differ, an empty region, or a map with a value that is not a number.

    Examples:
        >>> pointing_game(np.array([[0.1, 0.9, 0.3]]), np.array([[False, False, True]]), tolerance=0)
        Localisation(value=0.0, chance=0.3333333333333333)

    Reference: Zhang et al., "Top-Down Neural Attention by Excitation Backprop", IJCV 2018
    (arXiv 1608.00507), which draws the tolerance of 15 pixels.
    """
    ranking, region = _maps(ranking, region)
    if not region.any():
        raise ValueError("region: found no pixel, expected an object")
    if np.isnan(ranking).any():
        raise ValueError("ranking: found a value that is not a number")
    near = ndimage.distance_transform_edt(~region) <= tolerance
    return Localisation(float(near[ranking == ranking.max()].mean()), float(near.mean()))


# --- stability ------------------------------------------------------------------------------------


def max_sensitivity(
    explain: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    radius: float,
    samples: int,
    rng: np.random.Generator,
) -> float:
    """How far a small change of the image moves the map: max over δ of ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖.

    δ is uniform in [−radius, radius] in each value, so ‖δ‖∞ ≤ radius, and the norms are Euclidean. The
    paper's maximum is over the whole ball: a sampled one is a lower bound of it and grows with the
    samples. A map Φ(x) that is all zero has no scale and counts ‖Φ(x + δ)‖.

    Args:
        explain: Φ, from a normalised image ``(H, W, C)`` to a map of any one shape.
        image: x, normalised, ``(H, W, C)``.
        radius: of the ball, in normalised units.
        samples: how many δ are drawn, at least 1.
        rng: draws them.

    Returns:
        At least 0 (best).

    Raises:
        ValueError: no samples, or a map that changes its shape.

    Examples:
        >>> constant = lambda image: np.ones((2, 2))
        >>> max_sensitivity(constant, np.zeros((2, 2, 3)), 0.1, 5, np.random.default_rng(0))
        0.0

    Reference: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019
    (arXiv 1901.09392); the division by ‖Φ(x)‖ is that of later libraries.
    """
    if samples < 1:
        raise ValueError(f"samples: found {samples}, expected at least 1")
    reference = explain(image)
    noise = (rng.uniform(-radius, radius, image.shape).astype(image.dtype) for _ in range(samples))
    return greatest_change(reference, [explain(image + delta) for delta in noise])


def greatest_change(reference: np.ndarray, moved: Sequence[np.ndarray]) -> float:
    """The greatest distance of some maps from one, over that one's norm: max ‖m − r‖ / ‖r‖.

    Args:
        reference: r, of any shape; one that is all zero has no scale, and the distance itself counts.
        moved: m, each of the same shape; at least one.

    Returns:
        At least 0 (no change).

    Raises:
        ValueError: maps of two shapes.

    Examples:
        >>> greatest_change(np.array([3.0, 4.0]), [np.array([3.0, 4.0]), np.array([0.0, 0.0])])
        1.0

    Reference: as of :func:`max_sensitivity`.
    """
    reference = np.asarray(reference, float)
    distances = []
    for one in moved:
        if np.shape(one) != reference.shape:
            raise ValueError(
                f"explain: found maps {reference.shape} and {np.shape(one)}, expected one shape"
            )
        distances.append(np.linalg.norm(np.asarray(one, float) - reference))
    return float(max(distances) / (np.linalg.norm(reference) or 1.0))


def iou_matrix_mean(masks: Sequence[np.ndarray] | np.ndarray) -> float:
    """Mean over all pairs of masks of their IoU: how alike explanations of several seeds are.

    Args:
        masks: bool ``(n, H, W)`` of one image, n at least 2; the IoU of two empty masks is 1.

    Returns:
        0 … 1 (all the same).

    Raises:
        ValueError: fewer than two masks, shapes that differ, or masks that are not bool.

    Examples:
        >>> iou_matrix_mean(np.array([[[True, True]], [[True, False]]]))
        0.5
    """
    if len(masks) < 2:
        raise ValueError(f"masks: found {len(masks)}, expected at least 2")
    return float(np.mean([iou(first, second).value for first, second in combinations(masks, 2)]))


# --- over images ----------------------------------------------------------------------------------


def bootstrap_interval(
    values: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Statistic = np.median,
) -> Interval:
    """A percentile bootstrap: quantiles (1 ∓ confidence)/2 of the statistic of resampled values.

    Args:
        values: one for each image, ``(n,)``, finite; images are taken as independent.
        confidence: in (0, 1).
        resamples: how many samples of n values are drawn with replacement.
        seed: of the draws.
        statistic: ``(values, axis=)``, as ``np.median``.

    Returns:
        The statistic of the values and its interval. That of few values is too narrow.

    Raises:
        ValueError: no values, one that is not finite, or a confidence outside its range.

    Examples:
        >>> bootstrap_interval(np.array([2.0, 2.0, 2.0]))
        Interval(value=2.0, lower=2.0, upper=2.0)

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values: found {values!r}, expected one finite number for each image")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: found {confidence}, expected more than 0 and less than 1")
    drawn = np.random.default_rng(seed).integers(0, values.size, (resamples, values.size))
    ends = np.quantile(statistic(values[drawn], axis=-1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(values, axis=-1)), float(ends[0]), float(ends[1]))


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    of: Literal["difference", "ratio"] = "difference",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Statistic = np.median,
) -> Interval:
    """Two methods on the same images: the bootstrap of a_i − b_i or of a_i / b_i, image by image.

    Images differ more than methods do; drawing images, not values, takes that out. The median ratio is
    the median of the ratios, not the ratio of the medians.

    Args:
        a: of one method, ``(n,)``.
        b: of the other, ``(n,)``, for the same images in the same order; positive for a ratio.
        of: what is compared.
        confidence: in (0, 1).
        resamples: as for :func:`bootstrap_interval`.
        seed: of the draws.
        statistic: as for :func:`bootstrap_interval`.

    Returns:
        The statistic, by default the median, and its interval: the methods differ where that excludes 0
        (or 1 for a ratio).

    Raises:
        ValueError: shapes that differ, a ratio to a value that is not positive, and as
            :func:`bootstrap_interval`.

    Examples:
        >>> a, b = np.array([1.0, 4.0, 9.0]), np.array([2.0, 8.0, 18.0])
        >>> paired_bootstrap(a, b, of="ratio")
        Interval(value=0.5, lower=0.5, upper=0.5)
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"found values {a.shape} and {b.shape}, expected the same images")
    if of == "ratio" and not (b > 0).all():
        raise ValueError("b: found a value that is not positive, expected what can be divided by")
    return bootstrap_interval(a / b if of == "ratio" else a - b, confidence, resamples, seed, statistic)


# --- shared ---------------------------------------------------------------------------------------


def _probabilities(p_image: np.ndarray, p_explanation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(p_image, float), np.asarray(p_explanation, float)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"found probabilities {before.shape} and {after.shape}, expected two (n,)")
    if not all(((p >= 0) & (p <= 1)).all() for p in (before, after)):
        raise ValueError("found a probability outside [0, 1]")
    return before, after


def _mean_share(change: np.ndarray, whole: np.ndarray) -> float:
    """Mean of max(0, change) / whole; 0 where there is no whole, as change is then not positive."""
    return float(np.mean(np.maximum(change, 0) / np.where(whole > 0, whole, 1)))


def _curve(
    classify: Classify, start: np.ndarray, end: np.ndarray, ranking: np.ndarray, steps: int
) -> Curve:
    ranking = np.asarray(ranking, float)
    if start.shape != end.shape or start.shape[:-1] != ranking.shape or ranking.ndim != 2:
        raise ValueError(
            f"found images {start.shape} and {end.shape} and a ranking {ranking.shape}, "
            "expected (H, W, C) twice and (H, W)"
        )
    if np.isnan(ranking).any():
        raise ValueError("ranking: found a value that is not a number")
    if steps < 1:
        raise ValueError(f"steps: found {steps}, expected at least 1")
    counts = np.round(np.linspace(0, ranking.size, steps + 1)).astype(int)
    place = np.empty(ranking.size, int)
    place[np.argsort(-ranking, axis=None, kind="stable")] = np.arange(ranking.size)
    moved = place.reshape(ranking.shape) < counts[:, None, None]
    probabilities = np.asarray(classify(np.where(moved[..., None], end, start)), float)
    if probabilities.shape != counts.shape:
        raise ValueError(
            f"classify: found {probabilities.shape}, expected {counts.shape}: one an image"
        )
    shares = counts / ranking.size
    auc = np.sum(np.diff(shares) * (probabilities[1:] + probabilities[:-1])) / 2
    return Curve(float(auc), shares, probabilities)


def _maps(values: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, region = np.asarray(values, float), np.asarray(region, bool)
    if values.ndim != 2 or values.shape != region.shape or not values.size:
        raise ValueError(f"found maps {values.shape} and {region.shape}, expected (H, W) twice")
    return values, region


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = np.sum(first | second)
    return float(np.sum(first & second) / union) if union else 1.0
