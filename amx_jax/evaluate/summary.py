"""From what was measured of each photo and method to one summary a method, in JSON's own types.

A record is a dict of one photo and method. A value that is None, or not a number, was not measured: it
is left out, and each figure says on how many photos it rests. Methods are compared on the photos that
both have. Knows nothing of classifiers, disks or tables.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from amx_jax.evaluate.metrics import Interval, average_drop, average_gain, bootstrap_interval

Photos = Mapping[str, Mapping[str, Any]]  # one method's records by photo
Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two of (…, n) to (…)


class Figure(TypedDict):
    """A mean, median or share, and on how many photos it rests; None where on none."""

    value: float | None
    photos: int


class Estimate(TypedDict):
    """A statistic with its 95 % bootstrap interval; None where it is not a number.

    An end alone is None where resamples divide by zero.
    """

    value: float | None
    lower: float | None
    upper: float | None
    photos: int


class Localised(TypedDict):
    """How well a method finds the annotated objects.

    Attributes:
        annotated: photos with a value: annotated, and the mask not empty where an empty one has none.
        value: mean of the metric.
        chance: mean of its chance level on the same photos.
        lift: mean of value / chance, where chance is above 0.
        versus: mean of the difference to the reference's value, photo by photo.
        lift_versus: the same of value / chance.
    """

    annotated: int
    value: float | None
    chance: float | None
    lift: Figure
    versus: Estimate
    lift_versus: Estimate


class Randomised(TypedDict):
    """A method's explanations of a classifier with random parameters, against the real one's.

    Attributes:
        photos: with such an explanation.
        holds: how many of its masks satisfy the notion.
        empty: how many keep nothing: the classifier gives its class to the bare background.
        rank_correlation: mean of Spearman's ρ between the two rankings of a photo.
        iou: mean IoU of a mask with the same share of the random classifier's ranking.
        iou_chance: what that would be for a ranking at random.
    """

    photos: int
    holds: int
    empty: int
    rank_correlation: Figure
    iou: Figure
    iou_chance: Figure


class MethodSummary(TypedDict):
    """One method over all its photos.

    Attributes:
        method: its name.
        reference: name of the method it is compared with.
        photos: how many records it has.
        empty: how many of its masks keep nothing: their area of 0 is no merit.
        holds: share of masks that satisfy the notion by their certificate.
        sufficient: share of them, on the stated colour.
        necessary: share.
        minimal: share of those that were tested.
        area: median, of all masks, those that do not hold included.
        area_p90: 90th percentile, between two masks by linear interpolation.
        ratio: median area over the reference's, on the photos that both have.
        drop: average drop, 0 (best) … 1.
        gain: average gain, 0 … 1 (best).
        retention: ``kept`` and ``trials`` summed over photos and their ``share``, by background kind.
        bound: median certified lower bound of the retention.
        energy: energy-based pointing game.
        energy_matched: that of nested masks of the area that the first method's masks have.
        iou: intersection over union.
        pointing: pointing game.
        insertion: mean area under the curve, higher is better.
        deletion: the same, lower is better.
        sensitivity: median of max-sensitivity, 0 is best.
        specific: share of masks that keep their label where masks like them do not.
        leaking: share of masks whose shape gives the label without the photo.
        stability: mean IoU of the masks of several seeds.
        randomised: against a classifier that has learned nothing.
        components: median number of connected regions.
        seconds: median.
        passes: median number of images that the classifier was asked about.
    """

    method: str
    reference: str
    photos: int
    empty: int
    holds: Figure
    sufficient: Figure
    necessary: Figure
    minimal: Figure
    area: Estimate
    area_p90: float | None
    ratio: Estimate
    drop: float
    gain: float
    retention: dict[str, dict[str, Any]]
    bound: Figure
    energy: Localised
    energy_matched: Localised
    iou: Localised
    pointing: Localised
    insertion: Figure
    deletion: Figure
    sensitivity: Figure
    specific: Figure
    leaking: Figure
    stability: Figure
    randomised: Randomised
    components: Figure
    seconds: Figure
    passes: Figure


def summarise(records: Sequence[Mapping[str, Any]], reference: str = "amx") -> list[MethodSummary]:
    """Each method's figures, and its intervals against the reference on the photos that both have.

    Intervals are percentile bootstraps that draw photos, 2,000 times. The ratio is that of the medians,
    median a_i / median b_i, both of the photos drawn. The order of the records does not matter.

    Args:
        records: one for each photo (``image``) and ``method``.
        reference: the method that the others are compared with; where it has no records, neither a
            ratio nor a difference has a value.

    Returns:
        The reference first, the others by their median area.

    Raises:
        ValueError: two records of one photo and method, or a probability outside [0, 1].

    Examples:
        >>> record = {
        ...     "image": "cat", "method": "amx", "area": 0.02, "holds": True, "sufficient": True,
        ...     "necessary": True, "minimal": None, "components": 2, "bound": 0.9, "seconds": 3.0,
        ...     "probability": {"image": 0.8, "explanation": 0.6}, "passes": 500,
        ...     "retention": {"noise": {"kept": 31, "trials": 32}}, "insertion": None, "deletion": None,
        ...     "energy": 0.9, "energy_chance": 0.3, "iou": None, "iou_chance": None,
        ...     "energy_matched": 0.9, "energy_matched_chance": 0.3,
        ...     "pointing": None, "pointing_chance": None, "curve": None, "sensitivity": None,
        ...     "controls": None, "randomised": None,
        ... }
        >>> ours, rise = summarise([record, record | {"method": "rise", "area": 0.05}])
        >>> rise["ratio"]
        {'value': 2.5, 'lower': 2.5, 'upper': 2.5, 'photos': 1}
        >>> ours["minimal"], ours["energy"]["annotated"], round(ours["energy"]["lift"]["value"], 6)
        ({'value': None, 'photos': 0}, 1, 3.0)
    """
    methods: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        photos = methods.setdefault(record["method"], {})
        if record["image"] in photos:
            raise ValueError(
                f"found two records of {record['image']!r} and {record['method']!r}, expected one"
            )
        photos[record["image"]] = record
    methods = {method: dict(sorted(photos.items())) for method, photos in methods.items()}
    summaries = [_summary(method, methods[method], reference, methods) for method in methods]
    return sorted(summaries, key=_place)


def mean_curve(records: Sequence[Mapping[str, Any]], method: str, shares: np.ndarray) -> np.ndarray:
    """Median over a method's photos of the retention at given areas.

    Each photo's ``curve`` is interpolated linearly between its points. Outside of the areas that it was
    measured at it says nothing, and the photo counts only at the other shares; so give shares that all
    photos cover, or the median is of different photos along the curve.

    Args:
        records: as for :func:`summarise`; those without a curve are passed over.
        method: whose records count.
        shares: areas, ``(k,)`` in [0, 1].

    Returns:
        ``(k,)`` in [0, 1], NaN where no photo was measured.

    Raises:
        ValueError: a curve with as many areas as retentions do not fit.

    Examples:
        >>> curve = {"area": [0.1, 0.3], "retention": [0.5, 1.0]}
        >>> record = {"image": "cat", "method": "amx", "curve": curve}
        >>> mean_curve([record], "amx", np.array([0.05, 0.2, 0.3])).tolist()
        [nan, 0.75, 1.0]
    """
    shares = np.asarray(shares, float)
    rows = []
    for record in records:
        if record["method"] != method or record["curve"] is None:
            continue
        points = [np.asarray(record["curve"][axis], float) for axis in ("area", "retention")]
        if points[0].shape != points[1].shape or points[0].ndim != 1:
            raise ValueError(
                f"curve of {record['image']!r}: found areas {points[0].shape} and retentions "
                f"{points[1].shape}, expected two (n,)"
            )
        area, retention = np.array(points)[:, np.isfinite(points).all(axis=0)]
        if area.size:
            order = np.argsort(area, kind="stable")
            rows.append(np.interp(shares, area[order], retention[order], left=np.nan, right=np.nan))
    median = np.full(shares.shape, np.nan)
    if rows:
        seen = ~np.isnan(rows).all(axis=0)  # NumPy warns of a median of nothing
        median[seen] = np.nanmedian(np.array(rows)[:, seen], axis=0)
    return median


def _place(summary: MethodSummary) -> tuple[bool, float, str]:
    area = summary["area"]["value"]
    first = summary["method"] == summary["reference"]
    return not first, math.inf if area is None else area, summary["method"]


def _summary(
    method: str, photos: Photos, reference: str, methods: Mapping[str, Photos]
) -> MethodSummary:
    others = methods.get(reference, {})
    areas = _known(photos, "area")
    before, after = (
        np.array([record["probability"][of] for record in photos.values()], float)
        for of in ("image", "explanation")
    )
    return MethodSummary(
        method=method,
        reference=reference,
        photos=len(photos),
        empty=sum(area == 0 for area in areas.values()),
        holds=_figure(np.mean, _known(photos, "holds")),
        sufficient=_figure(np.mean, _known(photos, "sufficient")),
        necessary=_figure(np.mean, _known(photos, "necessary")),
        minimal=_figure(np.mean, _known(photos, "minimal")),
        area=_paired(areas, areas, lambda a, _: np.median(a, axis=-1)),
        area_p90=float(np.percentile(list(areas.values()), 90)) if areas else None,
        ratio=_paired(areas, _known(others, "area"), _ratio_of_medians),
        drop=average_drop(before, after),
        gain=average_gain(before, after),
        retention=_pooled(photos),
        bound=_figure(np.median, _known(photos, "bound")),
        energy=_localised("energy", photos, others),
        energy_matched=_localised("energy_matched", photos, others),
        iou=_localised("iou", photos, others),
        pointing=_localised("pointing", photos, others),
        insertion=_figure(np.mean, _known(photos, "insertion")),
        deletion=_figure(np.mean, _known(photos, "deletion")),
        sensitivity=_figure(np.median, _known(photos, "sensitivity")),
        specific=_figure(np.mean, _known(photos, "controls", "specificity", "holds")),
        leaking=_figure(np.mean, _known(photos, "controls", "leakage", "flagged")),
        stability=_figure(np.mean, _known(photos, "controls", "stability", "iou")),
        randomised=_against_random(photos),
        components=_figure(np.median, _known(photos, "components")),
        seconds=_figure(np.median, _known(photos, "seconds")),
        passes=_figure(np.median, _known(photos, "passes")),
    )


def _known(photos: Photos, *keys: str) -> dict[str, float]:
    """What was measured, by photo: under a key, or under keys one within the other."""
    found = {}
    for image, record in photos.items():
        value: Any = record
        for key in keys:
            value = value if value is None else value[key]
        if value is not None and math.isfinite(value):
            found[image] = float(value)
    return found


def _figure(statistic: Callable[[list[float]], Any], values: Mapping[str, float]) -> Figure:
    value = float(statistic(list(values.values()))) if values else None
    return Figure(value=value, photos=len(values))


def _pooled(photos: Photos) -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for record in photos.values():
        for kind, counts in record["retention"].items():
            pool = kinds.setdefault(kind, {"kept": 0, "trials": 0})
            for key in pool:
                pool[key] += counts[key]
    for pool in kinds.values():
        pool["share"] = pool["kept"] / pool["trials"] if pool["trials"] else None
    return kinds


def _against_random(photos: Photos) -> Randomised:
    holds, area, correlation, iou, chance = (
        _known(photos, "randomised", key)
        for key in ("holds", "area", "rank_correlation", "iou", "iou_chance")
    )
    return Randomised(
        photos=len(holds),
        holds=int(sum(holds.values())),
        empty=sum(value == 0 for value in area.values()),
        rank_correlation=_figure(np.mean, correlation),
        iou=_figure(np.mean, iou),
        iou_chance=_figure(np.mean, chance),
    )


def _localised(key: str, photos: Photos, others: Photos) -> Localised:
    value, chance, lift = _lifted(key, photos)
    their_value, _, their_lift = _lifted(key, others)
    return Localised(
        annotated=len(value),
        value=_figure(np.mean, value)["value"],
        chance=_figure(np.mean, chance)["value"],
        lift=_figure(np.mean, lift),
        versus=_paired(value, their_value, _mean_difference),
        lift_versus=_paired(lift, their_lift, _mean_difference),
    )


def _lifted(key: str, photos: Photos) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """A metric, its chance level, and the one over the other."""
    value = _known(photos, key)
    chance = {image: c for image, c in _known(photos, f"{key}_chance").items() if image in value}
    return value, chance, {image: value[image] / c for image, c in chance.items() if c > 0}


def _ratio_of_medians(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.median(a, axis=-1) / np.median(b, axis=-1)


def _mean_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.mean(a - b, axis=-1)


def _paired(ours: Mapping[str, float], theirs: Mapping[str, float], compare: Compare) -> Estimate:
    """A comparison on the photos that both have, which are drawn together."""
    shared = [image for image in ours if image in theirs]
    if not shared:
        return Estimate(value=None, lower=None, upper=None, photos=0)
    a, b = (np.array([values[image] for image in shared]) for values in (ours, theirs))

    def statistic(photos: np.ndarray, axis: int) -> np.ndarray:
        chosen: np.ndarray = photos.astype(int)
        return compare(a[chosen], b[chosen])

    with np.errstate(divide="ignore", invalid="ignore"):  # by a median area of 0
        found = bootstrap_interval(np.arange(len(shared)), statistic=statistic)
    return _estimate(found, len(shared))


def _estimate(interval: Interval, photos: int) -> Estimate:
    value, lower, upper = (end if math.isfinite(end) else None for end in interval)
    return Estimate(value=value, lower=lower, upper=upper, photos=photos)
