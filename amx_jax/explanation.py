"""What an explanation holds, and its JSON record."""

import dataclasses
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from amx_jax.config import Config
from amx_jax.objective.decision import NONE, Decision
from amx_jax.verify.certificate import Certificate
from amx_jax.verify.controls import Controls
from amx_jax.verify.top import Ranked
from amx_jax.verify.words import in_words

SCHEMA = 1
PACKAGES = ("amx-jax", "jax", "flax", "optax", "numpy")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which pixels decide, and what was verified of them.

    Attributes:
        pixels: what the classifier saw, uint8 ``(H, W, C)``.
        mask: bool ``(H, W)``, true where kept; hard, pruned and certified.
        ranking: ``(H, W)``, the optimiser's logits or the method's: larger is more important.
        start: which ranking that was, ``amx`` for the optimiser's.
        optimized_mask: bool ``(H, W)``, before pruning: the optimiser's own hard mask, or the smallest
            top share of the ranking that holds.
        optimized_sufficient: whether that one held.
        target: the explained class.
        label: its name.
        decision: what had to hold of it.
        rival: name of the class that it was compared with, or None.
        certificate: what was measured on ``mask``.
        controls: what must not have given the decision, and did or did not.
        top: the most probable classes of the photo and of the explanation.
        steps: steps that the optimiser took.
        calls: forward passes that it took to find and prune the mask.
        seconds: this photo's share of the time.
        classifier: its name.
        weights: SHA-256 of its parameters.
        config: the whole configuration.
        cell: side of the squares it is minimal in, in pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray
    ranking: np.ndarray
    start: str
    optimized_mask: np.ndarray
    optimized_sufficient: bool
    target: int
    label: str
    decision: Decision
    rival: str | None
    certificate: Certificate
    controls: Controls
    top: Ranked
    steps: int
    calls: int
    seconds: float
    classifier: str
    weights: str
    config: Config
    cell: int

    def record(self, image: str) -> dict[str, Any]:
        """The explanation as the JSON object of the output contract, without its arrays.

        Args:
            image: what the photo is called.
        """
        c = self.certificate
        rgb = tuple(self.config.background)
        record = {
            "schema": SCHEMA,
            "image": image,
            "classifier": self.classifier,
            "weights": self.weights,
            "target": {"index": self.target, "name": self.label},
            "decision": self._decision(),
            "probability": {
                "image": c.probability_image,
                "explanation": c.probability_explanation,
                "complement": c.probability_complement,
            },
            "top": self.top,
            "area": c.area,
            "sufficient": c.sufficient,
            "necessary": c.necessary,
            "minimal": {"holds": c.minimal, "cell": self.cell, "calls": self.calls},
            "notion": {
                "name": self.config.notion,
                "goal": self.config.goal,
                "confidence": self.config.confidence,
                "holds": c.holds,
            },
            "method": {"name": self.config.method, "start": self.start, "pruned": self.config.prune},
            "before_pruning": {
                "area": float(self.optimized_mask.mean()),
                "sufficient": self.optimized_sufficient,
            },
            "robustness": {k: {"kept": kept, "trials": n} for k, (kept, n) in c.robustness.items()},
            "robustness_bound": {"share": c.bound, "certainty": c.certainty},
            "controls": self._controls(),
            "components": c.components,
            "background": {"name": "#{:02x}{:02x}{:02x}".format(*rgb), "rgb": rgb},
            "seed": self.config.seed,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }
        return {**record, "words": in_words(record)}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from amx_jax.report.notebook import explanation_html  # only there is it needed

        words = self.record("")["words"]
        return explanation_html(self.pixels, self.mask, self.config.background, self.label, words)

    def _controls(self) -> dict[str, Any]:
        """What was controlled, as JSON; null where it was not."""
        found: dict[str, Any] = {"specificity": None, "leakage": None, "stability": None}
        if self.controls.specificity is not None:
            own, *wrong, holds = self.controls.specificity
            kept = {
                kind: {"kept": hits, "trials": n}
                for kind, (hits, n) in zip(("displaced", "scattered"), wrong, strict=True)
            }
            found["specificity"] = {"own": own, **kept, "holds": holds}
        if self.controls.leakage is not None:
            *kinds, flagged = self.controls.leakage
            leaked = {
                kind: {"leaked": hits, "trials": n}
                for kind, (hits, n) in zip(("constants", "photos"), kinds, strict=True)
            }
            found["leakage"] = {**leaked, "flagged": flagged}
        if self.controls.stability is not None:
            found["stability"] = {"seeds": self.config.seeds, "iou": self.controls.stability}
        return {**found, "flags": list(self.controls.flags)}

    def _decision(self) -> dict[str, Any]:
        """What had to hold, as JSON."""
        if self.rival is not None:
            return {"kind": "rather", "rival": {"index": self.decision.rival, "name": self.rival}}
        if self.decision.rival == NONE:
            return {"kind": "above", "threshold": self.config.threshold}
        return {"kind": "top"}


@dataclass(frozen=True)
class Unexplained:
    """An image without an explanation.

    Attributes:
        reason: the step and the term where a value was not finite; or what could not be asked of it.
    """

    reason: str


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
