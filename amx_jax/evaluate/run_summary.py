"""What a run over a data set found, in a few numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from amx_jax.errors import one_line

COLUMNS = (
    "id",
    "failure",
    "area",
    "sufficient",
    "necessary",
    "holds",
    "minimal",
    "probability_image",
    "probability_explanation",
    "flags",
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarise_run(
    columns: Mapping[str, Sequence[Any]], examples: int = 3, images: int | None = None
) -> dict[str, Any]:
    """What there is to say of a run's rows.

    Args:
        columns: :data:`COLUMNS` of all rows, as :func:`amx_jax.data.shards.read_columns` reads them.
        examples: ids for each cause of failure, at most.
        images: how many the run is of, where that is known.

    Returns:
        ``explained``, ``failed`` and ``pending``, counts; ``sufficient``, ``necessary``, ``holds``
        and ``minimal``, shares of the explained; ``area``, its quantiles by name; ``probability``,
        the medians of ``image`` and ``explanation``; ``flags``, counts; ``failures``, by cause a
        ``count`` and ``examples``. What nothing was measured of is None.

    Examples:
        >>> columns = {name: [None, None] for name in COLUMNS}
        >>> columns |= {"id": ["a", "b"], "failure": ["a: gone", "b: gone"]}
        >>> summarise_run(columns)["failures"]
        {'gone': {'count': 2, 'examples': ['a', 'b']}}
    """
    explained = [i for i, reason in enumerate(columns["failure"]) if reason is None]
    failed = [i for i, reason in enumerate(columns["failure"]) if reason is not None]

    def of_explained(name: str) -> np.ndarray:
        return np.array([columns[name][i] for i in explained], float)

    def median(name: str) -> float | None:
        return float(np.median(of_explained(name))) if explained else None

    areas = of_explained("area")
    causes: dict[str, list[str]] = {}
    for i in failed:
        causes.setdefault(_cause(columns["id"][i], columns["failure"][i]), []).append(columns["id"][i])
    return {
        "explained": len(explained),
        "failed": len(failed),
        "pending": None if images is None else max(images - len(columns["id"]), 0),
        **{
            name: float(of_explained(name).mean()) if explained else None
            for name in ("sufficient", "necessary", "holds", "minimal")
        },
        "area": {
            f"{100 * q:g} %": float(np.quantile(areas, q)) if explained else None for q in QUANTILES
        },
        "probability": {
            "image": median("probability_image"),
            "explanation": median("probability_explanation"),
        },
        "flags": dict(_flags(columns["flags"][i] for i in explained).most_common()),
        "failures": {
            cause: {"count": len(names), "examples": names[:examples]}
            for cause, names in sorted(causes.items(), key=lambda item: -len(item[1]))
        },
    }


def _flags(flags: Iterable[Sequence[str]]) -> Counter[str]:
    """How many images each kind of flag was raised on; what follows a colon is of one image.

    Examples:
        >>> _flags([["the shape leaks: to 1 of 2"], ["the shape leaks: to 2 of 2", "unstable"]])
        Counter({'the shape leaks': 2, 'unstable': 1})
    """
    return Counter(kind for each in flags for kind in {flag.split(":")[0] for flag in each})


def _cause(name: str, reason: str) -> str:
    """The reason without the image's own name, so that the same cause is counted together."""
    return reason.removeprefix(f"{name}: ").removeprefix(f"{one_line(name)}: ")
