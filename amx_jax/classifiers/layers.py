"""Frozen layers for inference: convolutions whose batch norm is already folded in.

Every layer maps one image ``(H, W, C)``; batches come from ``jax.vmap``. Weights are constants here:
the custom gradient of the depthwise convolution has no weight term, so asking for one gives zeros.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata


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


@jax.custom_vjp
def relu6(x: Array) -> Array:
    """min(max(x, 0), 6) of an array ``(H, …)``; its slope is 1 strictly between 0 and 6, else 0.

    The backward pass keeps a bit an element. With ``jnp.clip``'s own gradient XLA keeps x itself:
    39 MB an image and step of EfficientNet-Lite0 instead of 15, more than a CPU's caches hold.
    """
    return jnp.clip(x, 0.0, 6.0)


def _slopes(x: Array) -> Array:
    """Where ReLU6 has slope 1, packed; the same of its argument and of its result."""
    return pack_bits((x > 0) & (x < 6))


def _through_relu6(slopes: Array, gradient: Array) -> Array:
    return jnp.where(unpack_bits(slopes, gradient.shape), gradient, 0)


relu6.defvjp(
    lambda x: (relu6(x), _slopes(x)),
    lambda slopes, gradient: (_through_relu6(slopes, gradient),),
)


def _bits(rows: int) -> Array:
    """1, 2, 4, … for each of the rows that share a byte, as many as divide ``rows`` evenly."""
    together = max(n for n in range(1, 9) if rows % n == 0)
    return jnp.asarray(2 ** np.arange(together), jnp.uint8)


def pack_bits(mask: Array) -> Array:
    """Up to 8 rows of a bool array ``(H, …)`` in each row of a uint8 array.

    Rows, not neighbours in memory, so that the loop vectorises over what is contiguous; and a sum,
    since XLA would keep the operand of anything cheaper and compute it anew where it is used.

    Examples:
        >>> packed = pack_bits(jnp.array([[True, False], [False, False], [True, True]]))
        >>> packed.tolist()
        [[5, 4]]
        >>> unpack_bits(packed, (3, 2)).tolist()
        [[True, False], [False, False], [True, True]]
    """
    bits = _bits(mask.shape[0])
    groups = mask.reshape(-1, bits.size, *mask.shape[1:])
    return jnp.sum(groups * jnp.expand_dims(bits, range(1, mask.ndim)), axis=1, dtype=jnp.uint8)


def unpack_bits(packed: Array, shape: tuple[int, ...]) -> Array:
    """The bool array of ``shape`` that :func:`pack_bits` packed."""
    bits = jnp.expand_dims(_bits(shape[0]), range(1, len(shape)))
    return ((packed[:, None] & bits) > 0).reshape(shape)


def _output_shape(x: Array, stride: int) -> tuple[int, int]:
    return -(-x.shape[0] // stride), -(-x.shape[1] // stride)


def _pad_same(x: Array, kernel: int, stride: int) -> Array:
    padding = [(*same_padding(size, kernel, stride), 0) for size in x.shape[:2]]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), (*padding, (0, 0, 0)))


def _views(padded: Array, kernel: int, stride: int, shape: tuple[int, int]) -> list[Array]:
    rows, columns = shape
    return [
        padded[i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]


def shifted_views(x: Array, kernel: int, stride: int) -> list[Array]:
    """The ``kernel * kernel`` strided views of the SAME-padded ``x`` that a convolution reads.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: side of the square kernel.
        stride: step between outputs.

    Returns:
        Arrays ``(ceil(H / stride), ceil(W / stride), C)`` in row-major order of the kernel's taps.
    """
    return _views(_pad_same(x, kernel, stride), kernel, stride, _output_shape(x, stride))


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


def _shift_and_add(padded: Array, kernel: Array, stride: int, shape: tuple[int, int]) -> Array:
    """Σ over the kernel's taps of tap · the view of ``padded`` it sees, ``(*shape, C)``."""
    side, _, channels = kernel.shape
    taps = kernel.reshape(side * side, channels)
    views = _views(padded, side, stride, shape)
    total = views[0] * taps[0]
    for view, tap in zip(views[1:], taps[1:], strict=True):
        total += view * tap
    return total


def _fenced(function: Callable[..., Array], *arguments: Array) -> Array:
    """``function(*arguments)``, computed once and kept.

    XLA:CPU would fuse it into each of its consumers and so compute it anew in each, and keep its
    operands for that. It has no stronger barrier than a call that must not be inlined.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def _depthwise_relu6_on_cpu(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    def convolve_padded(padded: Array, kernel: Array, bias: Array) -> Array:
        total = _shift_and_add(padded, kernel, stride, shape) + bias
        # Not jnp.clip: a call of its own, it would be fenced off from the sum.
        return jax.lax.clamp(total.dtype.type(0), total, total.dtype.type(6))

    shape = _output_shape(x, stride)
    return _fenced(convolve_padded, _pad_same(x, kernel.shape[0], stride), kernel, bias)


def _shift_and_add_input_gradient(
    gradient: Array, kernel: Array, stride: int, shape: tuple[int, int]
) -> Array:
    """Gradient of the depthwise convolution in its input ``(*shape, C)``, itself a shift-and-add."""
    side, _, _ = kernel.shape
    padding = []
    for size, length in zip(shape, gradient.shape[:2], strict=True):
        before = same_padding(size, side, stride)[0]
        spread = (length - 1) * stride + 1  # zeros in between put it back on the input's grid
        padding.append((side - 1 - before, size + before - spread, stride - 1))
    padded = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), (*padding, (0, 0, 0)))
    return _shift_and_add(padded, kernel[::-1, ::-1], 1, shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def depthwise_relu6(x: Array, kernel: Array, bias: Array, stride: int = 1) -> Array:
    """:func:`relu6` of a SAME depthwise convolution of one image, as its platform runs it fastest.

    XLA:CPU runs grouped convolutions (and above all their gradients) many times slower than
    shifting and adding; on accelerators the grouped form moves half the bytes. The choice is made
    here, when the program is lowered for its platform, and nowhere else.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C)``, constant: its gradient is zero.
        bias: ``(C,)``, constant as well.
        stride: step between outputs.

    Returns:
        ``(ceil(H / stride), ceil(W / stride), C)``.
    """

    def grouped(x: Array, kernel: Array, bias: Array) -> Array:
        return jnp.clip(_grouped_depthwise(x, kernel, stride) + bias, 0.0, 6.0)

    on_cpu = partial(_depthwise_relu6_on_cpu, stride=stride)
    return jax.lax.platform_dependent(x, kernel, bias, cpu=on_cpu, default=grouped)


def _depthwise_forward(x: Array, kernel: Array, bias: Array, stride: int):
    y = depthwise_relu6(x, kernel, bias, stride)
    empty = jnp.zeros_like(x, shape=(*x.shape, 0))  # carries the input's shape and no data
    return y, (empty, _slopes(y), kernel, bias)


def _depthwise_backward(stride: int, residuals: tuple[Array, ...], gradient: Array):
    empty, slopes, kernel, bias = residuals
    gradient = _through_relu6(slopes, gradient)

    def grouped(gradient: Array, kernel: Array) -> Array:
        like = jax.ShapeDtypeStruct(empty.shape[:-1], gradient.dtype)
        transpose = jax.linear_transpose(lambda x: _grouped_depthwise(x, kernel, stride), like)
        return transpose(gradient)[0]

    def shift_and_add(gradient: Array, kernel: Array) -> Array:
        return _shift_and_add_input_gradient(gradient, kernel, stride, (empty.shape[0], empty.shape[1]))

    in_input = jax.lax.platform_dependent(gradient, kernel, cpu=shift_and_add, default=grouped)
    return in_input, jnp.zeros_like(kernel), jnp.zeros_like(bias)


depthwise_relu6.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(nnx.Module):
    """SAME convolution with bias, ``(H, W, in_features) -> (H', W', features)``."""

    def __init__(self, in_features: int, features: int, side: int, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(jnp.zeros((side, side, in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return convolve(x, self.kernel[...], self.stride) + self.bias[...]


class DepthwiseConv(nnx.Module):
    """SAME depthwise convolution with bias and ReLU6, ``(H, W, C) -> (H', W', C)``."""

    def __init__(self, features: int, side: int, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(jnp.zeros((side, side, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return depthwise_relu6(x, self.kernel[...], self.bias[...], self.stride)


class Linear(nnx.Module):
    """``(in_features,) -> (features,)``."""

    def __init__(self, in_features: int, features: int):
        self.kernel = nnx.Param(jnp.zeros((in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]
