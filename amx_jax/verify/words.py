"""A certificate in words, for people: sentences made of the record and of nothing else."""

from collections.abc import Mapping
from typing import Any


def in_words(record: Mapping[str, Any]) -> list[str]:
    """What was found and what was verified of it.

    Args:
        record: as :meth:`amx_jax.Explanation.record` makes it.

    Returns:
        Sentences, the most important first. What speaks against the mask comes last.
    """
    return [
        _claim(record),
        _complement(record),
        *_minimality(record),
        *_backgrounds(record),
        *_controls(record["controls"]),
    ]


def per_cent(share: float) -> str:
    """Two digits where it is small: 0.0 % and 100 % are said of none and all alone.

    Examples:
        >>> per_cent(0.0123), per_cent(0.5), per_cent(0.9996), per_cent(1)
        ('1.2 %', '50.0 %', '99.9 %', '100 %')
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def _asked(record: Mapping[str, Any]) -> str:
    name, decision = record["target"]["name"], record["decision"]
    if decision["kind"] == "rather":
        return f"{name} above {decision['rival']['name']}"
    if decision["kind"] == "above":
        return f"{name} at {decision['threshold']:g} or more"
    return f"{name} the top class"


def _claim(record: Mapping[str, Any]) -> str:
    p = record["probability"]
    verb = "keep" if record["sufficient"] else "do not keep"
    return (
        f"{per_cent(record['area'])} of the pixels, on {record['background']['name']}, {verb} "
        f"{_asked(record)}: p {p['explanation']:.2f}, of the photo {p['image']:.2f}."
    )


def _complement(record: Mapping[str, Any]) -> str:
    p = record["probability"]["complement"]
    lost = "is not" if record["necessary"] else "still is"
    return f"Without them it {lost}: p {p:.2f}."


def _minimality(record: Mapping[str, Any]) -> list[str]:
    cell = record["minimal"]["cell"]
    if not record["method"]["pruned"]:
        return [
            f"They are the smallest top share that holds of the ranking by {record['method']['start']}."
        ]
    if record["minimal"]["holds"]:
        return [f"No square of {cell} × {cell} pixels can be taken from them."]
    return ["They are not minimal."]


def _backgrounds(record: Mapping[str, Any]) -> list[str]:
    kinds = record["robustness"]
    if not kinds:
        return []
    met = {
        "sufficient": "keep it",
        "necessary": "are needed for it",
        "complete": "keep it and are needed",
    }
    counts = ", ".join(f"{kind} {one['kept']} of {one['trials']}" for kind, one in kinds.items())
    bound = record["robustness_bound"]
    share, certainty = (per_cent(bound[name]) for name in ("share", "certainty"))
    said = [
        f"On backgrounds that no search has seen they {met[record['notion']['goal']]}: {counts}; "
        f"of all such at least {share} ({certainty} confidence)."
    ]
    name = record["notion"]["name"]
    if name != "plain":
        said.append(f"So the mask {'is' if record['notion']['holds'] else 'is not'} {name}.")
    return said


def _controls(controls: Mapping[str, Any]) -> list[str]:
    said = []
    specific, leakage = controls["specificity"], controls["leakage"]
    if specific is not None:
        first, second = specific["displaced"], specific["scattered"]
        said.append(
            f"Of wrong masks {first['kept']} of {first['trials']} of the same shape elsewhere and "
            f"{second['kept']} of {second['trials']} of random squares keep it."
        )
    if leakage is not None:
        first, second = leakage["constants"], leakage["photos"]
        said.append(
            f"Its shape gives it to {first['leaked']} of {first['trials']} images of two colours and "
            f"{second['leaked']} of {second['trials']} other photos."
        )
    if controls["stability"] is not None:
        seeds, iou = controls["stability"]["seeds"], controls["stability"]["iou"]
        said.append(f"Masks of {seeds} seeds overlap by an IoU of {iou:.2f}.")
    return [*said, *(f"Flag: {flag}." for flag in controls["flags"])]
