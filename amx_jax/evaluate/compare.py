"""Many photos, several methods, one judge: the records that tables and plots are made of.

Every method ranks the pixels of the same crop for the same classifier, and the same search, notion and
certificate make a mask of its ranking.
"""

import copy
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from amx_jax.classifiers.classifier import Classifier
from amx_jax.config import METHODS as NAMES
from amx_jax.config import Config
from amx_jax.errors import UnknownNameError, nearest
from amx_jax.evaluate.curves import TRIALS, Curves, nested_masks, sufficiency_curve
from amx_jax.evaluate.metrics import energy_pointing_game, greatest_change, iou, pointing_game
from amx_jax.evaluate.peers import METHODS
from amx_jax.evaluate.randomised import randomised
from amx_jax.explainer import Explainer, Photo
from amx_jax.explanation import Explanation, Unexplained

PRUNED = "+prune"  # the end of a method's name that asks for pruning; the optimiser's masks always are
RADIUS = 0.02 * 255  # of the noise in perturbed copies: a fiftieth of the range of pixel values


class Measures(NamedTuple):
    """What is measured of each explanation besides its certificate.

    Attributes:
        curves: the sufficiency-area curve on :data:`~amx_jax.evaluate.curves.TRIALS` unseen backgrounds
            of each kind, and insertion and deletion by RISE's protocol in 28 steps.
        sensitivity: perturbed copies of each photo by which the max-sensitivity of its ranking is
            estimated; 0 for none. What is random in a ranking, or which of several won the race for the
            smallest robust mask, may change with a copy, and counts.
        randomised: whether the photos are explained once more for a classifier with random parameters.
    """

    curves: bool = False
    sensitivity: int = 0
    randomised: bool = False


ONLY_THE_CERTIFICATE = Measures()


@dataclass(frozen=True)
class Failure(Unexplained):
    """Why a method has no explanation of a photo.

    Attributes:
        image: what the photo is called.
        method: the method's name.
    """

    image: str
    method: str


def configured(config: Config, method: str) -> Config:
    """The configuration of a method by the name that a table shows.

    Args:
        config: what all methods share.
        method: ``amx``, one of ``amx_jax.evaluate.peers.METHODS`` for the smallest top share of its
            ranking that holds, or that with ``+prune``.

    Raises:
        UnknownNameError: no such method.

    Examples:
        >>> some = configured(Config(), "gradcam"), configured(Config(), "gradcam+prune")
        >>> [(c.method, c.prune) for c in some]
        [('gradcam', False), ('gradcam', True)]
    """
    name, plus, _ = method.partition(PRUNED)
    if name not in NAMES or method != name + plus or (name == "amx" and plus):
        raise UnknownNameError(
            f"no method {method!r}{nearest(method, NAMES)}; there are {', '.join(NAMES)}"
        )
    return replace(config, method=name, prune=name == "amx" or bool(plus))


def compare(
    classifier: Classifier,
    photos: Sequence[Photo],
    names: Sequence[str],
    regions: Sequence[Any],
    configs: Mapping[str, Config],
    others: Sequence[Photo] = (),
    measures: Measures = ONLY_THE_CERTIFICATE,
    on_progress: Callable[[str, str, int], None] = lambda method, what, done: None,
    on_finished: Callable[[str], None] = lambda method: None,
) -> Iterator[dict[str, Any] | Failure]:
    """Explain photos in several ways.

    Args:
        classifier: f.
        photos: as :class:`Explainer` takes them.
        names: what each is called.
        regions: for each a function from the target's index to a bool ``(H, W)`` of the classifier's
            input, where the object is, or to None where that is not known.
        configs: by the name that a table shows, as :func:`configured` makes them.
        others: as of :class:`Explainer`.
        measures: what is measured after the last photo of each method, so that no photo's seconds
            have a part in it.
        on_progress: called with the method, what was done last and of how many photos.
        on_finished: called with a method whose records are complete.

    Yields:
        Method by method, photo by photo, the record that :mod:`amx_jax.evaluate.summary` takes, or why
        there is none. The ``measures`` of a record are None when it is yielded, and are filled in
        later, in the same dict.
    """
    explainer = control = unlearned = None
    areas: dict[str, float] = {}  # of the first method's masks, by photo
    curves = Curves(classifier) if measures.curves else None
    for method, own in configs.items():
        explainer = _following(explainer, classifier, own, others)
        costs = sum(METHODS[ranking].passes for ranking in explainer.rankings)
        found: list[tuple[Explanation, dict[str, Any]]] = []
        before = time.perf_counter()
        for name, region, explanation in zip(names, regions, explainer.stream(photos), strict=True):
            seconds = time.perf_counter() - before
            if isinstance(explanation, Unexplained):
                yield Failure(explanation.reason, name, method)
            else:
                if method == next(iter(configs)):
                    areas[name] = explanation.certificate.area
                place = region(explanation.target)
                record = record_of(method, name, explanation, place, seconds, areas.get(name), costs)
                if any(measures):  # else an explanation's arrays need not stay in memory
                    found.append((explanation, record))
                yield record
            before = time.perf_counter()
        explanations = [explanation for explanation, _ in found]
        measured: dict[str, Iterator[dict[str, Any]]] = {}
        if curves is not None:
            measured["curves"] = _curves(explainer, curves, explanations)
        if measures.sensitivity:
            measured["perturbed copies"] = _sensitivity(explainer, explanations, measures.sensitivity)
        if measures.randomised:
            unlearned = unlearned or randomised(classifier, jax.random.key(own.seed))
            bare = replace(own, controls=0, seeds=1)
            control = _following(control, unlearned, bare, others)
            measured["randomised classifier"] = _randomised(control, explanations)
        for what, values in measured.items():
            for done, ((_, record), value) in enumerate(zip(found, values, strict=True), 1):
                record.update(value)
                on_progress(method, what, done)
        on_finished(method)


def _following(
    before: Explainer | None, classifier: Classifier, config: Config, others: Sequence[Photo]
) -> Explainer:
    """The explainer of a configuration; what verifies is compiled once if but the method is new."""
    if before is not None and config == replace(
        before.config, method=config.method, prune=config.prune
    ):
        return before.ranked_by(config.method, config.prune)
    return Explainer(classifier, config, others=others)


def _curves(
    explainer: Explainer, curves: Curves, explanations: Sequence[Explanation]
) -> Iterator[dict[str, Any]]:
    """Of each photo the sufficiency-area curve, insertion and deletion."""
    for one in explanations:
        insertion, deletion = curves(one.pixels, one.ranking, one.target)
        ask = partial(explainer.retention, one, trials=TRIALS)
        curve = sufficiency_curve(ask, one.mask, one.ranking)
        yield {"insertion": insertion, "deletion": deletion, "curve": curve}


def _sensitivity(
    explainer: Explainer, explanations: Sequence[Explanation], count: int
) -> Iterator[dict[str, Any]]:
    """Of each photo how far its ranking moves with small noise; the copies share full batches."""
    twin = copy.copy(explainer)  # the same programs; a copy needs no controls, and one ranking
    twin.config = replace(explainer.config, controls=0, seeds=1)
    seed = twin.config.seed
    photos = (noisy for one in explanations for noisy in perturbed(one.pixels, count, seed))
    targets = (one.target for one in explanations for _ in range(count))
    moved = twin.stream(photos, targets)
    for one in explanations:
        found = islice(moved, count)
        rankings = [noisy.ranking for noisy in found if not isinstance(noisy, Unexplained)]
        whole = len(rankings) == count  # of fewer the maximum would be too small
        yield {"sensitivity": greatest_change(one.ranking, rankings) if whole else None}


def perturbed(pixels: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Copies of a photo with a little noise, uniform in ± :data:`RADIUS`, rounded and clipped.

    Args:
        pixels: uint8 ``(H, W, C)``; what it shows, not its place among others, says what is drawn.
        count: of the copies.
        seed: of the run.

    Returns:
        uint8 ``(H, W, C)`` each.

    Examples:
        >>> gray = np.full((8, 8, 3), 127, np.uint8)
        >>> [int(np.abs(copy - 127.0).max()) for copy in perturbed(gray, 2, seed=0)]
        [5, 5]
    """
    rng = np.random.default_rng([seed, zlib.crc32(pixels.tobytes())])
    noisy = (pixels + rng.uniform(-RADIUS, RADIUS, pixels.shape) for _ in range(count))
    return [np.clip(np.round(values), 0, 255).astype(np.uint8) for values in noisy]


def _randomised(control: Explainer, explanations: Sequence[Explanation]) -> Iterator[dict[str, Any]]:
    """How alike each explanation is to that of a classifier that has learned nothing."""
    photos = (one.pixels for one in explanations)
    for ours, theirs in zip(explanations, control.stream(photos), strict=True):
        if isinstance(theirs, Unexplained):
            yield {"randomised": None}
            continue
        [top] = nested_masks(np.zeros_like(ours.mask), theirs.ranking, [ours.mask.mean()])
        overlap = iou(ours.mask, top) if ours.mask.any() else (None, None)
        agreement = {
            "holds": theirs.certificate.holds,
            "area": theirs.certificate.area,
            "rank_correlation": rank_correlation(ours.ranking, theirs.ranking),
            "iou": overlap[0],
            "iou_chance": overlap[1],
        }
        yield {"randomised": agreement}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's ρ of two rankings of the same pixels, ties at their mean rank.

    Args:
        a: ``(H, W)``.
        b: likewise.

    Returns:
        −1 … 1; None where either is constant and ranks nothing.

    Examples:
        >>> a = np.arange(6.0).reshape(2, 3)
        >>> round(rank_correlation(a, np.exp(a)), 6), rank_correlation(a, 0 * a)
        (1.0, None)

    Reference: Spearman, "The Proof and Measurement of Association between Two Things", 1904; for this
    use Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292).
    """
    from scipy.stats import rankdata  # slow to import

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def record_of(
    method: str,
    name: str,
    found: Explanation,
    region: np.ndarray | None,
    seconds: float,
    area: float | None = None,
    rankings: int = 0,
) -> dict[str, Any]:
    """What tables and plots are made of, of one photo and method.

    Args:
        method: what the table calls it.
        name: what the photo is called.
        found: its explanation.
        region: bool ``(H, W)``, where the object is; None where that is not known.
        seconds: that it took.
        area: share of the pixels at which all methods are compared: how much of the nested mask of that
            area lies on the object; None where there is no such share.
        rankings: passes through the classifier that other methods' rankings cost.
    """
    c = found.certificate
    record = found.record(name)
    place: dict[str, float | None] = {}
    for metric in ("energy", "energy_matched", "iou", "pointing"):
        place[metric] = place[f"{metric}_chance"] = None
    if region is not None:
        measured = {
            "energy": energy_pointing_game(found.mask, region) if found.mask.any() else None,
            "iou": iou(found.mask, region),
            "pointing": pointing_game(found.ranking, region),
        }
        if area:  # of no pixels there is no share
            [matched] = nested_masks(found.mask, found.ranking, [area])
            measured["energy_matched"] = energy_pointing_game(matched, region)
        for metric, value in measured.items():
            if value is not None:
                place[metric], place[f"{metric}_chance"] = value
    return {
        "image": name,
        "method": method,
        "start": found.start,
        "target": record["target"],
        "area": c.area,
        "holds": c.holds,
        "sufficient": c.sufficient,
        "necessary": c.necessary,
        "minimal": c.minimal if found.config.prune else None,
        "components": c.components,
        "probability": record["probability"],
        "retention": record["robustness"],
        "bound": c.bound,
        **place,
        "controls": record["controls"],
        "seconds": seconds,
        "passes": rankings + _passes(found),
        "insertion": None,
        "deletion": None,
        "curve": None,
        "sensitivity": None,
        "randomised": None,
    }


def _passes(found: Explanation) -> int:
    """Through the classifier, forward 1, forward and back 2, of optimising and pruning."""
    config = found.config
    terms = 1 + (config.objective.robustness > 0) + (config.objective.necessity > 0)
    judged = config.hardening == "annealed"  # the hard masks of soft ones
    return (2 * terms + judged) * found.steps + found.calls
