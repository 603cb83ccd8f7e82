"""Mask generators: from one image and their own parameters to the logits of a mask.

A generator is a pair of pure functions. Logits lie on a square grid coarser than the image; a
pixel is kept where the enlarged logits exceed a threshold (:mod:`amx_jax.masks.hardening`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from amx_jax.classifiers.layers import convolve
from amx_jax.masks.composition import resize

Params = Any
PATCH = 4  # pixels of the autoencoder's input to one cell of the grid, along each axis
FEATURES = 16


class Generator(NamedTuple):
    """A mask generator.

    Attributes:
        init: ``key -> params``; vmapped over keys it gives every image parameters of its own.
        see: ``image -> seen``: what it wants to know of an image ``(H, W, C)``, once for all steps.
        apply: ``(params, seen) -> logits``, ``(grid, grid)``.
    """

    init: Callable[[Array], Params]
    see: Callable[[Array], Array]
    apply: Callable[[Params, Array], Array]


def _draw(key: Array, shape: tuple[int, ...], gain: float) -> Array:
    """Truncated normal of variance ``gain`` over the fan-in, as in He's (2) and LeCun's (1) rules."""
    # Drawn flat: XLA:CPU compiles a draw of four axes ten times longer (3.1 against 0.3 s).
    values = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),))
    deviation = 0.87962566103423978  # of what is left of a unit normal between -2 and 2
    return values.reshape(shape) * (gain / math.prod(shape[:-1])) ** 0.5 / deviation


class _Block(nnx.Module):
    """SAME convolution, instance norm, ReLU."""

    def __init__(self, features_in: int, features: int, rngs: nnx.Rngs, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(_draw(rngs.params(), (3, 3, features_in, features), gain=2))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        x = convolve(x, self.kernel[...], self.stride)
        x = x - jnp.mean(x, (0, 1))
        x = x * jax.lax.rsqrt(jnp.mean(x**2, (0, 1)) + 1e-5)
        return jax.nn.relu(x + self.bias[...])


class _Autoencoder(nnx.Module):
    def __init__(self, channels: int, grid: int, free_gain: float, rngs: nnx.Rngs):
        self.free_gain = free_gain
        width = FEATURES
        self.encode = nnx.List(
            [
                _Block(PATCH**2 * channels, width, rngs),
                _Block(width, 2 * width, rngs, stride=2),
                _Block(2 * width, 4 * width, rngs, stride=2),
            ]
        )
        self.decode = nnx.List(
            [_Block(6 * width, 2 * width, rngs), _Block(3 * width, width, rngs)],
        )
        self.head = nnx.Param(_draw(rngs.params(), (width, 1), gain=1))
        self.free = nnx.Param(jnp.zeros((grid, grid)))

    def __call__(self, patches: Array) -> Array:
        skips, x = [], patches
        for block in self.encode:
            x = block(x)
            skips.append(x)
        skips.pop()
        for block in self.decode:
            skip = skips.pop()
            height, width, _ = skip.shape
            doubled = jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)[:height, :width]
            x = block(jnp.concatenate([doubled, skip], axis=-1))
        return (x @ self.head[...])[..., 0] + self.free_gain * self.free[...]


def autoencoder(channels: int, grid: int, free_gain: float = 60.0) -> Generator:
    """The paper's generator: a small convolutional autoencoder, trained anew for each image.

    The image is resized to ``4·grid`` and cut into 4 × 4 patches, one a cell. Three convolutions
    (16, 32, 64 features; 3 × 3; strides 1, 2, 2) encode, two decode with U-Net skips, each with
    instance norm and ReLU; a linear head gives one logit a cell. The head's bias is untied: a free
    logit for every cell. The paper names no layout. Convolutions alone share their weights among all
    cells, so in the few hundred steps of one image they cannot part a cell that matters from a
    neighbour that looks alike (benchmarks/README.md); with the free logits they start the search.

    Args:
        channels: of the image.
        grid: side of the logits.
        free_gain: how many times faster the free logits learn than the kernels; 0 for none.

    Returns:
        The generator.

    Examples:
        >>> generator = autoencoder(channels=3, grid=28)
        >>> params = generator.init(jax.random.key(0))
        >>> generator.apply(params, generator.see(jnp.zeros((224, 224, 3)))).shape
        (28, 28)

    Reference: arXiv 2509.23051; the skips: Ronneberger et al., arXiv 1505.04597.
    """

    def build(rngs: nnx.Rngs) -> _Autoencoder:
        return _Autoencoder(channels, grid, free_gain, rngs)

    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: Array) -> Params:
        return nnx.state(build(nnx.Rngs(params=key)), nnx.Param)

    def see(image: Array) -> Array:
        side = PATCH * grid
        small = jnp.stack([resize(image[..., c], (side, side)) for c in range(channels)], axis=-1)
        patches = small.reshape(grid, PATCH, grid, PATCH, channels).transpose(0, 2, 1, 3, 4)
        return patches.reshape(grid, grid, PATCH**2 * channels)

    def apply(params: Params, seen: Array) -> Array:
        return nnx.merge(graph, params)(seen)

    return Generator(init, see, apply)


def free_grid(grid: int, free_gain: float = 60.0) -> Generator:
    """A logit for every cell, whatever the image: the autoencoder's ablation.

    Examples:
        >>> generator = free_grid(28)
        >>> generator.apply(generator.init(jax.random.key(0)), jnp.zeros(0)).shape
        (28, 28)

    Reference: Fong and Vedaldi (2017), arXiv 1704.03296.
    """

    def init(key: Array) -> Params:
        # Not zeros: equal logits have no order.
        return {"free": jax.random.normal(key, (grid, grid)) * 0.01 / free_gain}

    def see(image: Array) -> Array:
        return jnp.zeros(0)

    def apply(params: Params, seen: Array) -> Array:
        return free_gain * params["free"]

    return Generator(init, see, apply)
