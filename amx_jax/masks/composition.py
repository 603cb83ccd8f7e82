"""Putting an image and a mask together: what is kept, and what fills the rest."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BACKGROUND_KINDS = ("colour", "noise", "blur")


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
    mask = mask[..., None]
    return mask * image + (1.0 - mask) * background


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
    return rows @ grid @ columns.T


def sample_background(key: Array, image: Array, blurred: Array, low: Array, high: Array) -> Array:
    """One background of a kind drawn at random: a constant colour, noise or the blurred image.

    Args:
        key: a PRNG key.
        image: x, ``(H, W, C)``; gives shape and type.
        blurred: :func:`blur` of x, computed once.
        low: the input space's smallest value (pixel 0).
        high: its largest (pixel 255).

    Returns:
        ``(H, W, C)`` in the classifier's input space.
    """
    kind_key, value_key = jax.random.split(key)
    kind = jax.random.randint(kind_key, (), 0, len(BACKGROUND_KINDS))
    return jax.lax.switch(
        kind,
        [
            lambda: constant_colour(value_key, image.shape, low, high).astype(image.dtype),
            lambda: white_noise(value_key, image.shape, low, high).astype(image.dtype),
            lambda: blurred.astype(image.dtype),
        ],
    )


def constant_colour(key: Array, shape: tuple[int, ...], low: Array, high: Array) -> Array:
    """One colour, uniform in the input range, over the whole ``(H, W, C)``."""
    return jnp.broadcast_to(jax.random.uniform(key, shape[-1:], minval=low, maxval=high), shape)


def white_noise(key: Array, shape: tuple[int, ...], low: Array, high: Array) -> Array:
    """Independent uniform values over the input range, ``(H, W, C)``."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of an image ``(H, W, C)`` with edges clamped; sigma ≥ 0 in pixels."""

    def matrix(size: int) -> np.ndarray:
        # The blur of each axis as one matrix, edge values repeated beyond the border.
        radius = int(4 * sigma + 0.5)
        offsets = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
        blurring = np.zeros((size, size))
        for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
            index = np.arange(size)
            np.add.at(blurring, (index, np.clip(index + offset, 0, size - 1)), weight)
        return blurring.astype(np.float32)

    height, width, _ = image.shape
    return jnp.einsum("ij,jkc,lk->ilc", matrix(height), image, matrix(width))
