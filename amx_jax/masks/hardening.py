"""From the logits of a mask to a hard mask, and gradients through that step."""

import jax
import jax.numpy as jnp
from jax import Array

from amx_jax.masks.composition import resize

# An annealed mask's first and last temperature, over that of the soft mask. One that ends warm leaves
# hard masks several times as large: what the classifier was shown were blends to the end.
HOT, COLD = 1.0, 0.05


def budget_threshold(logits: Array, budget: Array | float) -> Array:
    """The logit above which a share ``budget`` of the grid lies.

    Args:
        logits: ``(h, w)``.
        budget: in (0, 1].

    Returns:
        A scalar; below every logit where the budget is 1.

    Examples:
        >>> float(budget_threshold(jnp.array([[1.0, 2.0], [3.0, 4.0]]), 0.5))
        2.0
    """
    ordered = jnp.sort(logits.ravel())
    dropped = jnp.floor((1.0 - budget) * logits.size).astype(int)
    return jnp.where(dropped > 0, ordered[jnp.clip(dropped - 1, 0)], ordered[0] - 1.0)


def soft_mask(logits: Array, temperature: Array | float) -> Array:
    """σ(logits / temperature), in (0, 1)."""
    return jax.nn.sigmoid(logits / temperature)


def hard_mask(logits: Array, shape: tuple[int, int]) -> Array:
    """Bool ``shape``: where the bilinearly enlarged logits ``(h, w)`` are positive.

    Examples:
        >>> hard_mask(jnp.array([[-1.0, 1.0]]), (1, 4)).tolist()
        [[False, False, True, True]]
    """
    return resize(logits, shape) > 0


def straight_through_mask(logits: Array, shape: tuple[int, int], temperature: float) -> Array:
    """The hard mask as 0.0 and 1.0, with the gradient of the soft one.

    So the classifier is asked about the very mask that will be reported, never about a blend.

    Args:
        logits: ``(h, w)``; the mask is where they are positive.
        shape: of the mask, ``(H, W)``.
        temperature: of the soft mask whose gradient is taken; large ones reach farther from the edge.

    Returns:
        ``shape``, of 0.0 and 1.0.

    Examples:
        >>> jax.grad(lambda s: straight_through_mask(s, (1, 1), 1.0).sum())(jnp.zeros((1, 1))).item()
        0.25

    Reference: Bengio, Léonard and Courville (2013), arXiv 1308.3432.
    """
    enlarged = resize(logits, shape)
    soft = soft_mask(enlarged, temperature)
    hard = (enlarged > 0).astype(soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))  # in this order exactly 0 or 1


def annealed_temperature(temperature: float, number: Array | int, steps: int) -> Array:
    """A temperature that falls geometrically from 1 to 0.05 times ``temperature``.

    Args:
        temperature: of the soft mask.
        number: of the step, from 0.
        steps: how many there are; the last has the number ``steps`` − 1.

    Returns:
        A scalar.

    Examples:
        >>> [round(annealed_temperature(0.5, n, 175).item(), 3) for n in (0, 87, 174)]
        [0.5, 0.112, 0.025]

    Reference: Savarese, Silva and Maire (2020), arXiv 1912.04427, who anneal masks of weights so.
    """
    done = jnp.asarray(number) / max(steps - 1, 1)
    return temperature * HOT * (COLD / HOT) ** done


def annealed_mask(
    logits: Array, shape: tuple[int, int], temperature: float, number: Array | int, steps: int
) -> Array:
    """The soft mask of a step, which becomes nearly hard by the last.

    The classifier sees a blend: what it says of it says nothing of the hard mask.

    Args:
        logits: ``(h, w)``.
        shape: of the mask, ``(H, W)``.
        temperature: as of :func:`annealed_temperature`, like the other two.
        number: of the step.
        steps: how many there are.

    Returns:
        ``shape``, in [0, 1].

    Examples:
        >>> [round(annealed_mask(jnp.ones((1, 1)), (1, 1), 0.5, n, 2).item(), 2) for n in (0, 1)]
        [0.88, 1.0]
    """
    return soft_mask(resize(logits, shape), annealed_temperature(temperature, number, steps))
