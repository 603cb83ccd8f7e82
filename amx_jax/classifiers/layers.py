"""Frozen layers for inference: convolutions whose batch norm is already folded in.

Every layer maps one image ``(H, W, C)``; batches come from ``jax.vmap``. Weights are constants here:
the custom gradients of the convolutions have no weight term, so asking for one gives zeros.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

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


Padding = int | Literal["same"]  # zeros on every side, or TensorFlow's SAME rule


def zeros_around(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """The zeros before and behind one axis.

    Examples:
        >>> zeros_around(224, kernel=3, stride=2, padding=1)
        (1, 1)
    """
    return same_padding(size, kernel, stride) if padding == "same" else (padding, padding)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0); its slope is 1 above 0, else 0.

    The backward pass keeps a byte an element. A bit, as :func:`relu6` does, costs ResNet-101 a quarter
    of its time on a CPU and gains the others nothing.
    """
    return jnp.maximum(x, 0)


relu.defvjp(
    lambda x: (relu(x), x > 0),
    lambda slopes, gradient: (jnp.where(slopes, gradient, 0),),
)


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


class _Window(NamedTuple):
    """Where a square kernel lies on an image."""

    shape: tuple[int, int]  # of the image
    side: int
    stride: int
    padding: Padding

    @property
    def zeros(self) -> list[tuple[int, int]]:
        """Before and behind each axis."""
        return [zeros_around(size, self.side, self.stride, self.padding) for size in self.shape]

    @property
    def outputs(self) -> tuple[int, int]:
        rows, columns = (
            (size + sum(zeros) - self.side) // self.stride + 1
            for size, zeros in zip(self.shape, self.zeros, strict=True)
        )
        return rows, columns

    @property
    def back(self) -> list[tuple[int, int, int]]:
        """Zeros before, behind and between that put outputs back on the image's grid.

        The kernel turned around, with a stride of 1 over them, is then the gradient in the image.
        """
        return [
            (self.side - 1 - before, size + before - (length - 1) * self.stride - 1, self.stride - 1)
            for size, (before, _), length in zip(self.shape, self.zeros, self.outputs, strict=True)
        ]


def _window(x: Array, side: int, stride: int, padding: Padding) -> _Window:
    return _Window((x.shape[0], x.shape[1]), side, stride, padding)


def _pad(x: Array, widths: Sequence[tuple[int, ...]], value: float = 0.0) -> Array:
    """Of rows and columns: ``(before, behind)`` or ``(before, behind, between)`` each."""
    full = [(width[0], width[1], sum(width[2:])) for width in widths]
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [*full, (0, 0, 0)])


def _views(padded: Array, kernel: int, stride: int, shape: tuple[int, int]) -> list[Array]:
    rows, columns = shape
    return [
        padded[i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]


def shifted_views(x: Array, kernel: int, stride: int, padding: Padding = "same") -> list[Array]:
    """The ``kernel * kernel`` strided views of the zero-padded ``x`` that a convolution reads.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: side of the square kernel.
        stride: step between outputs.
        padding: zeros around x.

    Returns:
        Arrays ``(H', W', C)`` in row-major order of the kernel's taps; with ``same`` padding H' is
        ceil(H / stride).
    """
    window = _window(x, kernel, stride, padding)
    return _views(_pad(x, window.zeros), kernel, stride, window.outputs)


def convolve(x: Array, kernel: Array, stride: int = 1, padding: Padding = "same") -> Array:
    """Convolution of one image, as slices, a concatenation and one matrix product.

    XLA:CPU turns the batched weight gradient of a stock convolution into a ``batch_group_count``
    convolution that is tens of times slower; this form is a matrix product in both directions.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C, D)``.
        stride: step between outputs.
        padding: zeros around x.

    Returns:
        ``(H', W', D)``; with ``same`` padding H' is ceil(H / stride).
    """
    side, _, channels, features = kernel.shape
    columns = jnp.concatenate(shifted_views(x, side, stride, padding), axis=-1)
    return columns @ kernel.reshape(side * side * channels, features)


def _stock_convolution(x: Array, kernel: Array, window: _Window, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x[None],
        kernel,
        window_strides=(window.stride, window.stride),
        padding=window.zeros,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )[0]


def _stock_input_gradient(gradient: Array, kernel: Array, window: _Window, groups: int = 1) -> Array:
    channels = kernel.shape[2] * groups
    like = jax.ShapeDtypeStruct((*window.shape, channels), gradient.dtype)
    transpose = jax.linear_transpose(lambda x: _stock_convolution(x, kernel, window, groups), like)
    return transpose(gradient)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def frozen_convolve(x: Array, kernel: Array, stride: int = 1, padding: Padding = "same") -> Array:
    """:func:`convolve` with a constant kernel, as its platform runs it fastest.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C, D)``, constant: its gradient is zero.
        stride: step between outputs.
        padding: zeros around x.

    Returns:
        ``(H', W', D)``.
    """
    window = _window(x, kernel.shape[0], stride, padding)
    stock = partial(_stock_convolution, window=window)
    as_product = partial(convolve, stride=stride, padding=padding)
    on_cpu = stock if _rather_stock(window, kernel) else as_product
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=stock)


def _rather_stock(window: _Window, kernel: Array) -> bool:
    """Whether XLA:CPU's own convolution is faster than :func:`convolve`.

    It takes the views piece by piece. Side by side they are more than the caches hold where the image
    is large (3 × 3 taps of 64 channels on 224 × 224 pixels: 23 instead of 47 ms), and short copies
    where channels are few. Elsewhere one large matrix product is faster.
    """
    side, _, channels, _ = kernel.shape
    rows, columns = window.outputs
    large = rows * columns >= 48**2
    return side > 1 and ((channels >= 16 and (large or channels <= 64)) or (side >= 7 and large))


def _frozen_forward(x: Array, kernel: Array, stride: int, padding: Padding):
    return frozen_convolve(x, kernel, stride, padding), (_shape_of(x), kernel)


def _frozen_backward(stride: int, padding: Padding, residuals: tuple[Array, Array], gradient: Array):
    empty, kernel = residuals
    window = _window(empty, kernel.shape[0], stride, padding)

    def on_cpu(gradient: Array, kernel: Array) -> Array:
        if stride == 1 and _rather_stock(window, kernel):
            turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
            spread = _pad(gradient, window.back)
            return _stock_convolution(spread, turned, _window(spread, window.side, 1, 0))
        like = jax.ShapeDtypeStruct(empty.shape[:-1], gradient.dtype)
        return jax.linear_transpose(lambda x: convolve(x, kernel, stride, padding), like)(gradient)[0]

    in_input = jax.lax.platform_dependent(
        gradient, kernel, cpu=on_cpu, default=partial(_stock_input_gradient, window=window)
    )
    return in_input, jnp.zeros_like(kernel)


frozen_convolve.defvjp(_frozen_forward, _frozen_backward)


def _shape_of(x: Array) -> Array:
    """An array without data that carries the shape of x to a backward pass."""
    return jnp.zeros_like(x, shape=(*x.shape, 0))


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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def depthwise_convolve(
    x: Array,
    kernel: Array,
    bias: Array,
    stride: int = 1,
    padding: Padding = "same",
    capped: bool = True,
) -> Array:
    """A depthwise convolution of one image with its bias and ReLU6, as its platform runs it fastest.

    XLA:CPU runs grouped convolutions (and above all their gradients) many times slower than
    shifting and adding; on accelerators the grouped form moves half the bytes. The choice is made
    here, when the program is lowered for its platform, and nowhere else.

    Args:
        x: one image, ``(H, W, C)``.
        kernel: ``(k, k, C)``, constant: its gradient is zero.
        bias: ``(C,)``, constant as well.
        stride: step between outputs.
        padding: zeros around x.
        capped: whether :func:`relu6` follows.

    Returns:
        ``(H', W', C)``; with ``same`` padding H' is ceil(H / stride).
    """
    window = _window(x, kernel.shape[0], stride, padding)

    def grouped(x: Array, kernel: Array, bias: Array) -> Array:
        y = _stock_convolution(x, kernel[:, :, None], window, x.shape[-1]) + bias
        return jnp.clip(y, 0.0, 6.0) if capped else y

    def on_cpu(x: Array, kernel: Array, bias: Array) -> Array:
        def convolve_padded(padded: Array, kernel: Array, bias: Array) -> Array:
            total = _shift_and_add(padded, kernel, stride, window.outputs) + bias
            # Not jnp.clip: a call of its own, it would be fenced off from the sum.
            zero, six = total.dtype.type(0), total.dtype.type(6)
            return jax.lax.clamp(zero, total, six) if capped else total

        return _fenced(convolve_padded, _pad(x, window.zeros), kernel, bias)

    return jax.lax.platform_dependent(x, kernel, bias, cpu=on_cpu, default=grouped)


def _depthwise_forward(
    x: Array, kernel: Array, bias: Array, stride: int, padding: Padding, capped: bool
):
    y = depthwise_convolve(x, kernel, bias, stride, padding, capped)
    return y, (_shape_of(x), _slopes(y) if capped else None, kernel, bias)


def _depthwise_backward(stride: int, padding: Padding, capped: bool, residuals: tuple, gradient: Array):
    empty, slopes, kernel, bias = residuals
    window = _window(empty, kernel.shape[0], stride, padding)
    if capped:
        gradient = _through_relu6(slopes, gradient)

    def grouped(gradient: Array, kernel: Array) -> Array:
        return _stock_input_gradient(gradient, kernel[:, :, None], window, kernel.shape[-1])

    def shift_and_add(gradient: Array, kernel: Array) -> Array:
        return _shift_and_add(_pad(gradient, window.back), kernel[::-1, ::-1], 1, window.shape)

    in_input = jax.lax.platform_dependent(gradient, kernel, cpu=shift_and_add, default=grouped)
    return in_input, jnp.zeros_like(kernel), jnp.zeros_like(bias)


depthwise_convolve.defvjp(_depthwise_forward, _depthwise_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(x: Array, side: int, stride: int, padding: int = 0, ceil: bool = False) -> Array:
    """The largest value in each window, channel by channel.

    The gradient goes to the first of the largest in row-major order, as in PyTorch. The backward pass
    keeps a byte an output: which one that was.

    Args:
        x: one image, ``(H, W, C)``.
        side: of the window.
        stride: step between windows.
        padding: rows and columns around x that are never the largest.
        ceil: whether a last window may reach beyond x.

    Returns:
        ``(H', W', C)``.

    Examples:
        >>> max_pool(jnp.arange(9.0).reshape(3, 3, 1), side=2, stride=2, ceil=True)[..., 0].tolist()
        [[4.0, 5.0], [7.0, 8.0]]
    """
    return _max_pool_forward(x, side, stride, padding, ceil)[0]


def _pool_zeros(shape: Sequence[int], side: int, stride: int, padding: int, ceil: bool):
    """Padding before and behind each axis, and how many windows there are."""
    widths, outputs = [], []
    for size in shape:
        over = size + 2 * padding - side
        count = (-(-over // stride) if ceil else over // stride) + 1
        if ceil and (count - 1) * stride >= size + padding:  # a window has to begin on the image
            count -= 1
        widths.append((padding, max((count - 1) * stride + side - size - padding, 0)))
        outputs.append(count)
    return widths, (outputs[0], outputs[1])


def _max_pool_forward(x: Array, side: int, stride: int, padding: int, ceil: bool):
    widths, outputs = _pool_zeros(x.shape[:2], side, stride, padding, ceil)
    views = _views(_pad(x, widths, -jnp.inf), side, stride, outputs)
    largest, where = views[0], jnp.zeros(views[0].shape, jnp.uint8)
    for tap, view in enumerate(views[1:], start=1):
        where = jnp.where(view > largest, jnp.uint8(tap), where)
        largest = jnp.maximum(largest, view)
    return largest, (_shape_of(x), where)


def _max_pool_backward(
    side: int, stride: int, padding: int, ceil: bool, residuals: tuple[Array, Array], gradient: Array
):
    empty, where = residuals
    shape = empty.shape[:2]
    widths, outputs = _pool_zeros(shape, side, stride, padding, ceil)
    total = jnp.zeros(empty.shape[:-1], gradient.dtype)
    for tap in range(side * side):
        widths_back = [
            (offset - before, size + before - offset - (count - 1) * stride - 1, stride - 1)
            for offset, (before, _), size, count in zip(
                divmod(tap, side), widths, shape, outputs, strict=True
            )
        ]
        # A negative width cuts off what lies in the padding.
        total += _pad(jnp.where(where == tap, gradient, 0), widths_back)
    return (total,)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def adaptive_mean_matrix(size: int, outputs: int) -> np.ndarray:
    """The ``(outputs, size)`` matrix of means over the windows of PyTorch's adaptive pooling.

    Examples:
        >>> adaptive_mean_matrix(3, 2).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    matrix = np.zeros((outputs, size), np.float32)
    for row in range(outputs):
        first, last = row * size // outputs, -(-(row + 1) * size // outputs)
        matrix[row, first:last] = 1 / (last - first)
    return matrix


def adaptive_mean(x: Array, outputs: int) -> Array:
    """Means over ``outputs`` × ``outputs`` windows that cover the image, ``(H, W, C)`` in."""
    if x.shape[:2] == (outputs, outputs):
        return x
    rows, columns = (jnp.asarray(adaptive_mean_matrix(n, outputs), x.dtype) for n in x.shape[:2])
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, x)


class Conv(nnx.Module):
    """Convolution with bias, ``(H, W, in_features) -> (H', W', features)``."""

    def __init__(
        self, in_features: int, features: int, side: int, stride: int = 1, padding: Padding = "same"
    ):
        self.stride, self.padding = stride, padding
        self.kernel = nnx.Param(jnp.zeros((side, side, in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return frozen_convolve(x, self.kernel[...], self.stride, self.padding) + self.bias[...]


class DepthwiseConv(nnx.Module):
    """Depthwise convolution with bias and, where capped, ReLU6, ``(H, W, C) -> (H', W', C)``."""

    def __init__(
        self,
        features: int,
        side: int,
        stride: int = 1,
        padding: Padding = "same",
        capped: bool = True,
    ):
        self.stride, self.padding, self.capped = stride, padding, capped
        self.kernel = nnx.Param(jnp.zeros((side, side, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return depthwise_convolve(
            x, self.kernel[...], self.bias[...], self.stride, self.padding, self.capped
        )


class Linear(nnx.Module):
    """``(in_features,) -> (features,)``."""

    def __init__(self, in_features: int, features: int):
        self.kernel = nnx.Param(jnp.zeros((in_features, features)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]


class LayerNorm(nnx.Module):
    """(x − mean) / √(variance + ε) · scale + bias over the last axis, ``(…, C)``."""

    def __init__(self, features: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.zeros((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: Array) -> Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


def gelu(x: Array) -> Array:
    """X · Φ(x) with the exact normal distribution, as PyTorch's default."""
    return jax.nn.gelu(x, approximate=False)
