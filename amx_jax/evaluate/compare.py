"""Many photos, several methods, one judge: the records that tables and plots are made of.

Every method ranks the pixels of the same crop for the same classifier, and the same search, notion and
certificate make a mask of its ranking.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from amx_jax.classifiers.classifier import Classifier
from amx_jax.config import METHODS as NAMES
from amx_jax.config import Config
from amx_jax.errors import UnknownNameError, nearest
from amx_jax.evaluate.metrics import energy_pointing_game, iou, pointing_game
from amx_jax.evaluate.peers import METHODS
from amx_jax.explainer import STARTS, Explainer, Explanation, Photo, Unexplained

PRUNED = "+prune"  # the end of a method's name that asks for pruning; the optimiser's masks always are


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
) -> Iterator[dict[str, Any] | Unexplained]:
    """Explain photos in several ways.

    Args:
        classifier: f.
        photos: as :class:`Explainer` takes them.
        names: what each is called.
        regions: for each a function from the target's index to a bool ``(H, W)`` of the classifier's
            input, where the object is, or to None where that is not known.
        configs: by the name that a table shows, as :func:`configured` makes them.
        others: as of :class:`Explainer`.

    Yields:
        Method by method, photo by photo, the record that :mod:`amx_jax.evaluate.summary` takes, or why
        there is none.
    """
    explainer = None
    for method, own in configs.items():
        if explainer is not None and own == _ranked_as(explainer.config, own):
            explainer = explainer.ranked_by(own.method, own.prune)  # what verifies is compiled once
        else:
            explainer = Explainer(classifier, own, others=others)
        before = time.perf_counter()
        for name, region, found in zip(names, regions, explainer.stream(photos), strict=True):
            if isinstance(found, Unexplained):
                yield found
                continue
            now = time.perf_counter()
            yield _record(method, name, found, region(found.target), now - before)
            before = now


def _ranked_as(config: Config, other: Config) -> Config:
    """The configuration with another's method."""
    return replace(config, method=other.method, prune=other.prune)


def _record(
    method: str, name: str, found: Explanation, region: np.ndarray | None, seconds: float
) -> dict[str, Any]:
    c = found.certificate
    record = found.record(name)
    place: dict[str, float | None] = {}
    for metric in ("energy", "iou", "pointing"):
        place[metric] = place[f"{metric}_chance"] = None
    if region is not None:
        measured = {
            "energy": energy_pointing_game(found.mask, region) if found.mask.any() else None,
            "iou": iou(found.mask, region),
            "pointing": pointing_game(found.ranking, region),
        }
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
        "insertion": None,
        "deletion": None,
        "seconds": seconds,
        "passes": _passes(found),
        "curve": None,
    }


def _passes(found: Explanation) -> int:
    """Through the classifier, forward 1, forward and back 2; without the certificate's."""
    config = found.config
    if config.method != "amx":
        return METHODS[config.method].passes + found.calls
    seen = config.notion != "plain" or config.objective.robustness > 0
    terms = 1 + seen + (config.objective.necessity > 0)
    starts = sum(METHODS[name].passes for name in STARTS) if config.notion != "plain" else 0
    return 2 * terms * found.steps + starts + found.calls
