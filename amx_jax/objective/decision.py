"""The decision that an explanation must keep: one small object for objective, pruning and certificate.

Three kinds, one form: the target's logit exceeds every logit that competes with it, and a bound.

- *The target is the top class*: all other classes compete, no bound.
- *The target rather than a rival*: the rival alone competes.
- *The target is present*, for heads with a sigmoid a class: no class competes, and the bound is the
  logit of a threshold on the probability.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# A margin this small could change sign in another framework's rounding (measured: logits of JAX and
# PyTorch differ by about 1e-5), and then a certificate would not survive re-computation.
MARGIN = 1e-4
ALL, NONE = -1, -2  # instead of a rival's index

Head = Literal["softmax", "sigmoid"]


class Decision(NamedTuple):
    """What must stay true of the logits; scalars, so that a batch has one for each image.

    Attributes:
        target: the class t.
        rival: the class that competes with it; ``ALL`` others, or ``NONE``.
        bound: what t's logit must exceed besides; −∞ for nothing.
    """

    target: Any  # a number or an array: Array | int
    rival: Any = ALL
    bound: Any = -jnp.inf


def ask(
    head: Head, threshold: float, logits: Array, target: Array | int, rival: Array | int
) -> Decision:
    """The decision that is asked about.

    Args:
        head: whether classes exclude each other (softmax) or each is present or not (sigmoid).
        threshold: probability from which a class is present; of a sigmoid head.
        logits: of the photo, ``(classes,)``.
        target: the class, or −1 for the one with the highest logit.
        rival: the class it is compared with, or −1 for what the head says.

    Returns:
        The decision.

    Examples:
        >>> decision = ask("sigmoid", 0.5, jnp.array([1.0, 3.0]), -1, -1)
        >>> int(decision.target), int(decision.rival), float(decision.bound)
        (1, -2, 0.0)
    """
    target = jnp.where(target < 0, jnp.argmax(logits), target).astype(jnp.int32)
    alone, bound = (NONE, jnp.log(threshold) - jnp.log1p(-threshold)) if head == "sigmoid" else (ALL, 0)
    bound = jnp.where((rival < 0) & (head == "sigmoid"), bound, -jnp.inf)
    return Decision(target, jnp.where(rival < 0, alone, rival).astype(jnp.int32), bound)


def rest(logits: Array, decision: Decision | Array | int) -> tuple[Array, Array]:
    """What the target is up against.

    Args:
        logits: ``(classes,)``.
        decision: what must hold; a number t stands for *t is the top class*.

    Returns:
        z_t, and the competing logits and the bound, ``(classes + 1,)``, −∞ where a class does not
        compete.
    """
    target, rival, bound = decision if isinstance(decision, Decision) else Decision(decision)
    classes = jnp.arange(logits.shape[0])
    competes = jnp.where(jnp.equal(rival, ALL), classes != target, classes == rival)
    others = jnp.where(competes, logits, -jnp.inf)
    return logits[target], jnp.append(others, jnp.asarray(bound, logits.dtype))


def margin(logits: Array, decision: Decision | Array | int) -> Array:
    """z_t − the highest of what it is up against: positive where the decision holds.

    A mask is *sufficient* where this exceeds ``MARGIN``.

    Args:
        logits: ``(classes,)``.
        decision: what must hold; a number t stands for *t is the top class*.

    Returns:
        A scalar.

    Examples:
        >>> float(margin(jnp.array([1.0, 3.0, 2.0]), 1))
        1.0
        >>> float(margin(jnp.array([1.0, 3.0, 2.0]), Decision(1, rival=0)))
        2.0
    """
    own, others = rest(logits, decision)
    return own - jnp.max(others)


def log_odds(logits: Array, decision: Decision | Array | int) -> Array:
    """z_t − log Σ exp of what it is up against: the decision's log-odds, a smooth :func:`margin`.

    For *t is the top class* they are those of the softmax probability p_t, for *t is present* at a
    threshold of ½ those of the sigmoid.

    Examples:
        >>> float(log_odds(jnp.zeros(2), 0))
        0.0
    """
    own, others = rest(logits, decision)
    return own - jax.nn.logsumexp(others)


def probability(head: Head, logits: Array, target: Array | int) -> Array:
    """p_t, by the head's own measure.

    Examples:
        >>> [float(probability(head, jnp.zeros(4), 0)) for head in ("softmax", "sigmoid")]
        [0.25, 0.5]
    """
    probabilities = jax.nn.sigmoid(logits) if head == "sigmoid" else jax.nn.softmax(logits)
    return probabilities[target]
