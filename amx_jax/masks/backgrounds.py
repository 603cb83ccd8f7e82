"""What fills the removed pixels: kinds of backgrounds by name, each a distribution to draw from.

A kind is a pure function of a key and a :class:`Scene`: the image and what else it may be made of.
Who draws for the search and who draws for the certificate take different keys and different photos.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from amx_jax.masks.composition import resize

WIDEST_BLUR = 64  # pixels
MILDEST, STRONGEST = 1 / 50, 1 / 8  # sigma of blurred backgrounds, of the input's side
PATCHES = 7  # along each axis, of shuffled patches
COARSE = 8  # values along each axis of low-frequency noise


class Scene(NamedTuple):
    """What backgrounds are made of; all in the classifier's input space.

    Attributes:
        image: x, ``(H, W, C)``.
        low: the input space's smallest values (pixel 0), ``(C,)``.
        high: its largest (pixel 255), ``(C,)``.
        others: other photos, ``(n, H, W, C)``; needed by the kinds that show them, n may be 0 for the
            rest.
    """

    image: Array
    low: Array
    high: Array
    others: Array


def constant_colour(key: Array, shape: tuple[int, ...], low: Array, high: Array) -> Array:
    """One colour, uniform in the input range, over the whole ``(H, W, C)``."""
    return jnp.broadcast_to(jax.random.uniform(key, shape[-1:], minval=low, maxval=high), shape)


def white_noise(key: Array, shape: tuple[int, ...], low: Array, high: Array) -> Array:
    """Independent uniform values over the input range, ``(H, W, C)``."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def smooth_noise(key: Array, shape: tuple[int, ...], low: Array, high: Array) -> Array:
    """Low-frequency noise: 8 × 8 uniform values a channel, enlarged bilinearly to ``(H, W, C)``."""
    grid = white_noise(key, (COARSE, COARSE, shape[-1]), low, high)
    return jnp.stack([resize(grid[..., c], (shape[0], shape[1])) for c in range(shape[-1])], axis=-1)


def shuffled_patches(key: Array, image: Array) -> Array:
    """The image ``(H, W, C)`` cut into 7 × 7 patches in random order; what is left over stays."""
    height, width, channels = image.shape
    rows, columns = height // PATCHES, width // PATCHES
    core = image[: rows * PATCHES, : columns * PATCHES]
    patches = core.reshape(PATCHES, rows, PATCHES, columns, channels).swapaxes(1, 2)
    patches = jax.random.permutation(key, patches.reshape(PATCHES**2, rows, columns, channels))
    core = patches.reshape(PATCHES, PATCHES, rows, columns, channels).swapaxes(1, 2)
    return image.at[: rows * PATCHES, : columns * PATCHES].set(
        core.reshape(rows * PATCHES, columns * PATCHES, channels)
    )


def blur(image: Array, sigma: Array | float) -> Array:
    """Gaussian blur of an image ``(H, W, C)`` with edges clamped, cut off at 4 sigma.

    Args:
        image: ``(H, W, C)``.
        sigma: of the Gaussian, in pixels, from 0 (the image itself) to ``WIDEST_BLUR``; may be traced.

    Returns:
        ``(H, W, C)``.

    Examples:
        >>> blur(jnp.array([[[0.0], [0.0], [3.0]]]), 0.0)[0, :, 0].tolist()
        [0.0, 0.0, 3.0]
    """
    height, width, _ = image.shape
    rows, columns = _blur_matrix(height, sigma), _blur_matrix(width, sigma)
    return jnp.einsum("ij,jkc,lk->ilc", rows, image, columns, precision="highest")


def _blur_matrix(size: int, sigma: Array | float) -> Array:
    """The blur of one axis as a matrix ``(size, size)``, edge values repeated beyond the border."""
    offsets = jnp.arange(4 * WIDEST_BLUR + size + 1)
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-9)) ** 2)
    weights = jnp.where(offsets <= jnp.floor(4 * sigma + 0.5), weights, 0.0)
    beyond = jnp.cumsum(weights[::-1])[::-1]  # of all offsets at least this large
    index = jnp.arange(size)
    matrix = weights[jnp.abs(index[:, None] - index)]
    matrix = matrix.at[:, 0].add(beyond[index + 1]).at[:, -1].add(beyond[size - index])
    return matrix / (2 * beyond[0] - weights[0])


def _blurred(key: Array, image: Array) -> Array:
    sigma = jax.random.uniform(key, (), minval=MILDEST, maxval=STRONGEST)
    return blur(image, image.shape[0] * sigma)


def _other(key: Array, scene: Scene) -> Array:
    """Another photo, mirrored half of the time."""
    which, turn = jax.random.split(key)
    photo = scene.others[jax.random.randint(which, (), 0, max(len(scene.others), 1))]
    return jnp.where(jax.random.bernoulli(turn), photo[:, ::-1], photo)


def _other_blurred(key: Array, scene: Scene) -> Array:
    photo_key, blur_key = jax.random.split(key)
    return _blurred(blur_key, _other(photo_key, scene))


KINDS: dict[str, Callable[[Array, Scene], Array]] = {
    "colour": lambda key, scene: constant_colour(key, scene.image.shape, scene.low, scene.high),
    "noise": lambda key, scene: white_noise(key, scene.image.shape, scene.low, scene.high),
    "blur": lambda key, scene: _blurred(key, scene.image),
    "smooth": lambda key, scene: smooth_noise(key, scene.image.shape, scene.low, scene.high),
    "shuffle": lambda key, scene: shuffled_patches(key, scene.image),
    "mean": lambda key, scene: jnp.zeros_like(scene.image),
    "black": lambda key, scene: jnp.broadcast_to(scene.low, scene.image.shape),
    "photo": _other,
    "photo-blur": _other_blurred,
}
"""The kinds by name: one *colour*; white *noise*; the photo under a *blur* of sigma 1/50 to 1/8 of its
side; *smooth* noise of low frequency; the photo's patches in another order, *shuffle*; the *mean* of
the classifier's training data, the zero of its input space; *black*; another *photo*, *photo-blur*."""
SHOW_PHOTOS = ("photo", "photo-blur")  # kinds that need other photos


def draw(kinds: Sequence[str], kind: Array | int, key: Array, scene: Scene) -> Array:
    """One background.

    Args:
        kinds: names of ``KINDS``; static.
        kind: which of them, an index; may be traced.
        key: a PRNG key.
        scene: what it is made of.

    Returns:
        ``(H, W, C)`` in the input space.

    Examples:
        >>> image = jnp.ones((2, 2, 3))
        >>> scene = Scene(image, -jnp.ones(3), jnp.ones(3), image[None])
        >>> draw(["black", "mean"], 0, jax.random.key(0), scene)[0, 0].tolist()
        [-1.0, -1.0, -1.0]
    """
    branches = [
        lambda key, scene, make=KINDS[name]: make(key, scene).astype(scene.image.dtype)
        for name in kinds
    ]
    return jax.lax.switch(kind, branches, key, scene)
