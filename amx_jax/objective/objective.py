"""The objective: the weighted sum of the terms, for one image and one mask."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from amx_jax.config import Weights
from amx_jax.masks.composition import compose
from amx_jax.objective import terms
from amx_jax.objective.decision import Decision, Head


class Reference(NamedTuple):
    """What the explanation of one image is measured against.

    Attributes:
        image: x, normalised, ``(H, W, C)``.
        decision: what must hold.
        logits: f(x), ``(classes,)``.
        activations: ``{stage: f_l(x)}`` of the matched stages.
    """

    image: Array
    decision: Decision
    logits: Array
    activations: Mapping[str, Array]


def evaluate_terms(
    weights: Weights,
    classify: Callable[[Array], tuple[Array, Any]],
    reference: Reference,
    mask: Array,
    soft: Array,
    background: Array,
    sampled: Array,
    head: Head = "softmax",
) -> tuple[dict[str, Array], Array]:
    """Every term whose weight is not zero.

    Args:
        weights: which terms.
        classify: f, ``(H, W, C) -> (logits, {stage: activation})``.
        reference: of the image.
        mask: the mask the classifier sees, ``(H, W)``.
        soft: the mask the priors see, ``(h, w)``.
        background: what fills the removed pixels of the explanation, broadcasts to x.
        sampled: what fills them in the robustness term.
        head: how logits become probabilities.

    Returns:
        ``{field of weights: scalar}`` and f(e), ``(classes,)``.
    """
    x, decision = reference.image, reference.decision
    logits, activations = classify(compose(x, mask, background))

    def on_sampled() -> Array:
        return terms.robustness(classify(compose(x, mask, sampled))[0][None], decision)

    def on_complement() -> Array:
        return terms.necessity(classify(compose(x, 1.0 - mask, background))[0], decision)

    compute: dict[str, Callable[[], Array]] = {
        "activation": lambda: terms.activation_matching(reference.activations, activations),
        "kl": lambda: terms.kl_divergence(reference.logits, logits, head),
        "cross_entropy": lambda: terms.cross_entropy(logits, decision),
        "area": lambda: terms.area(soft),
        "binarization": lambda: terms.binarization(soft),
        "total_variation": lambda: terms.total_variation(soft),
        "robustness": on_sampled,
        "necessity": on_complement,
    }
    return {name: term() for name, term in compute.items() if getattr(weights, name) != 0}, logits


def weighted_sum(weights: Weights, values: Mapping[str, Array]) -> Array:
    """Σ weight · term over the terms that were evaluated.

    Examples:
        >>> float(weighted_sum(Weights(kl=1.0, area=2.0), {"kl": 1.0, "area": 0.25}))
        1.5
    """
    return sum((getattr(weights, n) * v for n, v in values.items()), start=jnp.zeros(()))
