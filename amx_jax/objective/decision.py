"""The decision that an explanation must keep: the classifier's highest logit is the target's."""

import jax.numpy as jnp
from jax import Array

# A margin this small could change sign in another framework's rounding (measured: logits of JAX and
# PyTorch differ by about 1e-5), and then a certificate would not survive re-computation.
MARGIN = 1e-4


def margin(logits: Array, target: Array | int) -> Array:
    """z_t − max over the other classes of z_c: positive where the target is the top class.

    A mask is *sufficient* where this exceeds ``MARGIN``.

    Args:
        logits: ``(classes,)``.
        target: the class t.

    Returns:
        A scalar.

    Examples:
        >>> float(margin(jnp.array([1.0, 3.0, 2.0]), 1))
        1.0
    """
    others = jnp.where(jnp.arange(logits.shape[0]) == target, -jnp.inf, logits)
    return logits[target] - jnp.max(others)
