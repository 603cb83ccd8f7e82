"""Putting an image and a mask together: what is kept, and what fills the rest."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def compose(image: Array, mask: Array, background: Array) -> Array:
    """E = m⊙x + (1 − m)⊙b.

    Args:
        image: x, ``(H, W, C)`` in the classifier's input space.
        mask: m, ``(H, W)`` in [0, 1].
        background: b, anything that broadcasts to x, in the same space.

    Returns:
        ``(H, W, C)``; exactly x where m is 1 and exactly b where m is 0.

    Examples:
        >>> x, m = jnp.ones((1, 2, 3)), jnp.array([[1.0, 0.0]])
        >>> compose(x, m, jnp.full(3, -1.0))[..., 0]
        Array([[ 1., -1.]], dtype=float32)
    """
    mask = _to_channels(mask, image.shape[-1])
    return mask * image + (1.0 - mask) * background


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _to_channels(mask: Array, channels: int) -> Array:
    """The mask for every channel, ``(H, W)`` to ``(H, W, channels)``.

    Its own gradient adds slices: XLA:CPU is slow at sums over an axis as short as three.
    """
    return jnp.broadcast_to(mask[..., None], (*mask.shape, channels))


_to_channels.defvjp(
    lambda mask, channels: (_to_channels(mask, channels), None),
    lambda channels, _, gradient: (sum(gradient[..., c] for c in range(channels)),),
)


def bilinear_matrix(size: int, length: int) -> np.ndarray:
    """The ``(size, length)`` matrix of bilinear interpolation with half-pixel centres.

    Rows sum to 1 and the ends are clamped. Resizing a grid is then two small matrix products, which
    XLA runs many times faster than its gather-based resize.

    Examples:
        >>> bilinear_matrix(4, 2)[:, 0].tolist()
        [1.0, 0.75, 0.25, 0.0]
    """
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    distance = np.abs(position[:, None] - np.arange(length))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def resize(grid: Array, shape: tuple[int, int]) -> Array:
    """Bilinear enlargement of a grid ``(h, w)`` to ``shape``.

    Examples:
        >>> resize(jnp.array([[0.0, 1.0]]), (1, 4)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    rows = bilinear_matrix(shape[0], grid.shape[0])
    columns = bilinear_matrix(shape[1], grid.shape[1])
    # Full precision: a TPU would round the weights to bfloat16, and a kept region would miss 1.
    return jnp.einsum("ij,jk,lk->il", rows, grid, columns, precision="highest")
