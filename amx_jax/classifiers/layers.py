"""Frozen layers for inference: convolutions whose batch norm is already folded in.

Every layer maps one image ``(H, W, C)``; batches come from ``jax.vmap``. Weights are constants here:
the custom gradient of the depthwise convolution has no weight term, so asking for one gives zeros.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zero padding ``(before, after)`` of TensorFlow's SAME rule along one axis.

    Examples:
        >>> same_padding(224, kernel=3, stride=2)
        (0, 1)
        >>> same_padding(7, kernel=3, stride=1)
        (1, 1)
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6), elementwise."""
    return jnp.clip(x, 0.0, 6.0)


def shifted_views(x: Array, kernel: int, stride: int) -> list[Array]:
    """The ``kernel * kernel`` strided views of the SAME-padded ``x`` that a convolution reads.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: side of the square kernel.
        stride: step between outputs.

    Returns:
        Arrays ``(ceil(H / stride), ceil(W / stride), C)`` in row-major order of the kernel's taps.
    """
    height, width, _ = x.shape
    padded = jnp.pad(
        x, (same_padding(height, kernel, stride), same_padding(width, kernel, stride), (0, 0))
    )
    rows, columns = -(-height // stride), -(-width // stride)
    return [
        padded[i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """SAME convolution of one image, as slices, a concatenation and one matrix product.

    XLA:CPU turns the batched weight gradient of a stock convolution into a ``batch_group_count``
    convolution that is tens of times slower; this form is a matrix product in both directions.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C, D)``.
        stride: step between outputs.

    Returns:
        ``(ceil(H / stride), ceil(W / stride), D)``.
    """
    side, _, channels, features = kernel.shape
    columns = x if side == stride == 1 else jnp.concatenate(shifted_views(x, side, stride), axis=-1)
    return columns @ kernel.reshape(side * side * channels, features)


def _grouped_depthwise(x: Array, kernel: Array, stride: int) -> Array:
    side, _, channels = kernel.shape
    padding = [same_padding(size, side, stride) for size in x.shape[:2]]
    return jax.lax.conv_general_dilated(
        x[None],
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )[0]


def _shift_and_add_depthwise(x: Array, kernel: Array, stride: int) -> Array:
    side, _, channels = kernel.shape
    taps = kernel.reshape(side * side, channels)
    views = shifted_views(x, side, stride)
    total = views[0] * taps[0]
    for view, tap in zip(views[1:], taps[1:], strict=True):
        total += view * tap
    return total


def _shift_and_add_input_gradient(
    gradient: Array, kernel: Array, stride: int, shape: tuple[int, ...]
) -> Array:
    """Gradient of the depthwise convolution in its input, itself a shift-and-add."""
    side, _, _ = kernel.shape
    if stride > 1:  # put the gradient back on the input's grid, zeros in between
        zero = jnp.zeros((), gradient.dtype)
        gradient = jax.lax.pad(gradient, zero, ((0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)))
    padding = []
    for size, length in zip(shape[:2], gradient.shape[:2], strict=True):
        before = same_padding(size, side, stride)[0]
        padding.append((side - 1 - before, size + before - length))
    padded = jnp.pad(gradient, (*padding, (0, 0)))
    total = jnp.zeros(shape, gradient.dtype)
    for i in range(side):
        for j in range(side):
            view = padded[i : i + shape[0], j : j + shape[1]]
            total += view * kernel[side - 1 - i, side - 1 - j]
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """SAME depthwise convolution of one image, in the form its platform runs fastest.

    XLA:CPU runs grouped convolutions (and above all their gradients) many times slower than
    shifting and adding; on accelerators the grouped form moves half the bytes. The choice is made
    here, when the program is lowered for its platform, and nowhere else.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C)``, constant: its gradient is zero.
        stride: step between outputs.

    Returns:
        ``(ceil(H / stride), ceil(W / stride), C)``.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shift_and_add_depthwise, stride=stride),
        default=partial(_grouped_depthwise, stride=stride),
    )


def _depthwise_forward(x: Array, kernel: Array, stride: int):
    return depthwise_convolve(x, kernel, stride), (jnp.zeros_like(x, shape=(*x.shape, 0)), kernel)


def _depthwise_backward(stride: int, residuals: tuple[Array, Array], gradient: Array):
    empty, kernel = residuals  # the empty array carries the input's shape and no data
    shape = empty.shape[:-1]

    def grouped(gradient: Array, kernel: Array) -> Array:
        like = jax.ShapeDtypeStruct(shape, gradient.dtype)
        transpose = jax.linear_transpose(lambda x: _grouped_depthwise(x, kernel, stride), like)
        return transpose(gradient)[0]

    def shift_and_add(gradient: Array, kernel: Array) -> Array:
        return _shift_and_add_input_gradient(gradient, kernel, stride, shape)

    in_input = jax.lax.platform_dependent(gradient, kernel, cpu=shift_and_add, default=grouped)
    return in_input, jnp.zeros_like(kernel)


depthwise_convolve.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(nnx.Module):
    """SAME convolution with bias, ``(H, W, in_features) -> (H', W', features)``."""

    def __init__(self, in_features: int, features: int, side: int, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(jnp.zeros((side, side, in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return convolve(x, self.kernel[...], self.stride) + self.bias[...]


class DepthwiseConv(nnx.Module):
    """SAME depthwise convolution with bias, ``(H, W, C) -> (H', W', C)``."""

    def __init__(self, features: int, side: int, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(jnp.zeros((side, side, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return depthwise_convolve(x, self.kernel[...], self.stride) + self.bias[...]


class Linear(nnx.Module):
    """``(in_features,) -> (features,)``."""

    def __init__(self, in_features: int, features: int):
        self.kernel = nnx.Param(jnp.zeros((in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]
