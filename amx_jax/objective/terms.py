"""The terms of the objective: each a pure function of one image's outputs or of its mask.

Symbols: x the image, e = m⊙x + (1 − m)⊙b the explanation on background b, f the classifier with
logits ``(classes,)``, f_l its activation at stage l, t the target class, m the mask ``(h, w)`` in
[0, 1]. The paper is Suhail, Anand and Sethi, "Activation Matching for Explanation Generation"
(arXiv 2509.23051); it names the terms and leaves norms and weights open, so each docstring states ours.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from amx_jax.objective.decision import Decision, Head, log_odds


def activation_matching(reference: Mapping[str, Array], activations: Mapping[str, Array]) -> Array:
    """Mean over stages of ‖f_l(e) − f_l(x)‖² / ‖f_l(x)‖².

    The division makes stages weigh alike whatever their size and scale: 0 is a perfect match, 1 is
    what an all-zero activation would cost. A stage that is all zero on x has no scale and counts
    ‖f_l(e)‖².

    Args:
        reference: ``{stage: f_l(x)}``, any shapes.
        activations: ``{stage: f_l(e)}``; stages absent from ``reference`` are ignored.

    Returns:
        A scalar ≥ 0; 0 when ``reference`` is empty.

    Raises:
        KeyError: a stage of ``reference`` is missing from ``activations``.

    Examples:
        >>> x = {"stage1": jnp.array([3.0, 4.0])}
        >>> float(activation_matching(x, {"stage1": jnp.zeros(2)}))
        1.0

    Reference: arXiv 2509.23051, activation-matching term; the normalisation is ours.
    """
    distances = []
    for stage, value in reference.items():
        scale = jnp.sum(value**2)
        distance = jnp.sum((activations[stage] - value) ** 2)
        distances.append(distance / jnp.where(scale > 0, scale, 1.0))
    return sum(distances, start=jnp.zeros(())) / max(len(distances), 1)


def kl_divergence(reference: Array, logits: Array, head: Head = "softmax") -> Array:
    """KL(f(x) ‖ f(e)) = Σ_c p_c(x) (log p_c(x) − log p_c(e)), in nats.

    For a sigmoid head, whose classes are independent, the sum over them of the divergence of
    *present* and *absent*.

    Args:
        reference: logits of x, ``(classes,)``.
        logits: logits of e, ``(classes,)``.
        head: how logits become probabilities.

    Returns:
        A scalar ≥ 0.

    Examples:
        >>> float(kl_divergence(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
        0.0

    Reference: arXiv 2509.23051, output-distribution term.
    """
    if head == "sigmoid":
        # Each class as two: its logit, and 0 for its absence.
        p, q = (jnp.stack([z, jnp.zeros_like(z)], axis=-1) for z in (reference, logits))
        return jnp.sum(jax.vmap(kl_divergence)(p, q))
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def cross_entropy(logits: Array, decision: Decision | Array | int) -> Array:
    """−log p(the decision holds), in nats: where *t is the top class* is asked, −log p_t(e).

    Args:
        logits: logits of e, ``(classes,)``.
        decision: what must hold; a number t stands for *t is the top class*.

    Returns:
        A scalar ≥ 0.

    Examples:
        >>> round(float(cross_entropy(jnp.zeros(4), 2)), 4)  # log 4
        1.3863

    Reference: arXiv 2509.23051, label term.
    """
    return jax.nn.softplus(-log_odds(logits, decision))


def area(mask: Array) -> Array:
    """Mean of m: the L1 norm as a share of the mask's elements, in [0, 1].

    Examples:
        >>> float(area(jnp.array([[1.0, 0.0], [0.5, 0.5]])))
        0.5

    Reference: arXiv 2509.23051, minimality prior.
    """
    return jnp.mean(mask)


def binarization(mask: Array) -> Array:
    """Mean of m (1 − m), in [0, ¼]: 0 exactly when every element is 0 or 1.

    Examples:
        >>> float(binarization(jnp.array([[1.0, 0.0], [0.5, 0.5]])))
        0.125

    Reference: arXiv 2509.23051, crispness prior.
    """
    return jnp.mean(mask * (1.0 - mask))


def total_variation(mask: Array) -> Array:
    """Anisotropic total variation ``Σ |∂m|`` divided by √(h·w).

    For a binary mask this is the kept region's perimeter over the mask's side, so its value does not
    depend on the resolution at which the mask is held.

    Args:
        mask: ``(h, w)``.

    Returns:
        A scalar ≥ 0.

    Examples:
        >>> float(total_variation(jnp.array([[1.0, 1.0], [0.0, 0.0]])))
        1.0

    Reference: Rudin, Osher and Fatemi (1992); arXiv 2509.23051, compactness prior.
    """
    # |d| as d·sign(d): JAX's abs has slope 1 at 0, which would drag flat regions towards one corner.
    rows, columns = (jnp.diff(1.0 * mask, axis=axis) for axis in (0, 1))
    total = jnp.sum(rows * jnp.sign(rows)) + jnp.sum(columns * jnp.sign(columns))
    return total / (mask.size**0.5)


def robustness(logits: Array, decision: Decision | Array | int) -> Array:
    """Mean over sampled backgrounds b of :func:`cross_entropy` of m⊙x + (1 − m)⊙b, in nats.

    Args:
        logits: one row a background, ``(backgrounds, classes)``.
        decision: what must hold; a number t stands for *t is the top class*.

    Returns:
        A scalar ≥ 0.

    Examples:
        >>> round(float(robustness(jnp.zeros((3, 4)), 0)), 4)
        1.3863

    Reference: arXiv 2509.23051, abductive robustness constraint.
    """
    return jnp.mean(jax.vmap(lambda row: cross_entropy(row, decision))(logits))


def necessity(logits: Array, decision: Decision | Array | int) -> Array:
    """−log(1 − p(the decision holds)), in nats, for the complement c = (1 − m)⊙x + m⊙b.

    Exact also where p rounds to 0 or to 1.

    Args:
        logits: logits of the complement, ``(classes,)``.
        decision: what must not hold; a number t stands for *t is the top class*.

    Returns:
        A scalar ≥ 0: near 0 when the complement alone has lost the class.

    Examples:
        >>> round(float(necessity(jnp.zeros(2), 0)), 4)  # log 2
        0.6931

    Reference: arXiv 2509.23051, abductive necessity constraint.
    """
    return jax.nn.softplus(log_odds(logits, decision))
