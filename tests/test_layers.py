"""Frozen layers: PyTorch is the oracle, in float64 and padded by a search instead of a formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from amx_jax.classifiers.layers import (
    Conv,
    DepthwiseConv,
    LayerNorm,
    Linear,
    Padding,
    adaptive_mean,
    convolve,
    depthwise_convolve,
    frozen_convolve,
    gelu,
    max_pool,
    pack_bits,
    relu,
    relu6,
    same_padding,
    unpack_bits,
)

GEOMETRIES = [
    ((1, 2), 5, 1),
    ((1, 2), 5, 2),
    ((16, 6), 3, 1),
    *itertools.product([(5, 8), (9, 7)], (1, 3, 5), (1, 2)),
]
geometries = pytest.mark.parametrize(("size", "side", "stride"), GEOMETRIES)
forms = pytest.mark.parametrize("form", ["cpu", "default"])


def only(form: str, monkeypatch) -> None:
    """Take one platform's form."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *inputs, **forms: forms[form](*inputs))


def least_padding(size: int, side: int, stride: int) -> tuple[int, int]:
    """The least zeros that give ceil(size / stride) outputs; of an odd number, one more behind."""
    outputs = -(-size // stride)
    total = next(
        zeros
        for zeros in itertools.count()
        if size + zeros >= side and (size + zeros - side) // stride + 1 >= outputs
    )
    return total // 2, total - total // 2


def torch_convolution(
    x: torch.Tensor, kernel: torch.Tensor, stride: int, groups: int, padding: Padding = "same"
) -> torch.Tensor:
    """``(H, W, C)`` by ``(k, k, C / groups, D)``."""
    rows, columns = (
        least_padding(size, kernel.shape[0], stride) if padding == "same" else (padding, padding)
        for size in x.shape[:2]
    )
    padded = torch.nn.functional.pad(x.permute(2, 0, 1), (*columns, *rows))
    weight = kernel.permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(padded[None], weight, None, stride, groups=groups)[0].permute(
        1, 2, 0
    )


def torch_depthwise_relu6(x, kernel, bias, stride: int) -> torch.Tensor:
    return torch.nn.functional.relu6(
        torch_convolution(x, kernel[:, :, None], stride, groups=x.shape[-1]) + bias
    )


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


def float64(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def with_gradients(function, gradient, *inputs):
    """The value of a PyTorch function, and the given gradient pulled back to its inputs."""
    tensors = [float64(x).requires_grad_() for x in inputs]
    value = function(*tensors)
    return value.detach().numpy(), torch.autograd.grad(value, tensors, float64(gradient))


def outputs_of(size, stride):
    return tuple(-(-n // stride) for n in size)


def test_same_padding_is_the_least_that_gives_every_stride_its_output():
    for size, kernel, stride in itertools.product(range(1, 20), range(1, 8), range(1, 5)):
        assert same_padding(size, kernel, stride) == least_padding(size, kernel, stride)


@geometries
def test_convolve_and_both_its_gradients_are_pytorchs(size, side, stride):
    x, kernel = normal(*size, 3), normal(side, side, 3, 4)
    gradient = normal(*outputs_of(size, stride), 4)
    expected, (in_input, in_kernel) = with_gradients(
        lambda x, kernel: torch_convolution(x, kernel, stride, groups=1), gradient, x, kernel
    )

    @jax.jit
    def run(x, kernel, gradient):
        value, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        return value, *pull(gradient)

    value, got_in_input, got_in_kernel = run(x, kernel, gradient)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got_in_kernel, in_kernel, rtol=0, atol=5e-5)


@geometries
@forms
def test_depthwise_relu6_in_either_form_and_its_input_gradient_are_pytorchs(
    size, side, stride, form, monkeypatch
):
    only(form, monkeypatch)
    x, kernel, bias = 3 * normal(*size, 4), normal(side, side, 4), normal(4)
    gradient = normal(*outputs_of(size, stride), 4)
    expected, (in_input, *_) = with_gradients(
        lambda *inputs: torch_depthwise_relu6(*inputs, stride), gradient, x, kernel, bias
    )

    @jax.jit
    def run(x, kernel, bias, gradient):
        value, pull = jax.vjp(lambda x: depthwise_convolve(x, kernel, bias, stride), x)
        return value, *pull(gradient)

    inputs = (x, kernel, bias, gradient)
    assert ("stablehlo.convolution" in run.lower(*inputs).as_text()) == (form == "default")
    value, got_in_input = run(*inputs)
    assert (expected == 0).any() and ((expected > 0) & (expected < 6)).any()
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=2e-5)


WINDOWS = [  # size, side, stride, padding
    *((*geometry, "same") for geometry in GEOMETRIES[:3]),
    ((9, 7), 1, 1, 0),
    ((9, 8), 1, 2, 0),
    ((9, 8), 2, 2, 0),
    ((9, 8), 4, 4, 0),
    ((8, 5), 3, 1, 1),
    ((9, 8), 3, 2, 0),
    ((9, 8), 3, 2, 1),
    ((5, 8), 1, 1, 1),
    ((16, 11), 7, 2, 3),
    ((9, 8), 7, 1, 3),
    ((7, 8), 3, 2, 4),
]
windows = pytest.mark.parametrize(("size", "side", "stride", "padding"), WINDOWS)


@windows
@forms
def test_a_frozen_convolution_in_either_form_and_its_input_gradient_are_pytorchs(
    size, side, stride, padding, form, monkeypatch
):
    only(form, monkeypatch)
    x, kernel = normal(*size, 3), normal(side, side, 3, 4)

    def torchs(x):
        return torch_convolution(x, float64(kernel), stride, groups=1, padding=padding)

    gradient = normal(*torchs(float64(x)).shape)
    expected, (in_input,) = with_gradients(torchs, gradient, x)

    @jax.jit
    def run(x, kernel, gradient):
        value, pull = jax.vjp(lambda x: frozen_convolve(x, kernel, stride, padding), x)
        return value, *pull(gradient)

    inputs = (x, kernel, gradient)
    assert ("stablehlo.convolution" in run.lower(*inputs).as_text()) == (form == "default")
    value, got_in_input = run(*inputs)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=2e-5)


@windows
@forms
@pytest.mark.parametrize("capped", [False, True])
def test_a_depthwise_convolution_with_any_padding_with_and_without_relu6_is_pytorchs(
    size, side, stride, padding, form, capped, monkeypatch
):
    only(form, monkeypatch)
    x, kernel, bias = 9 * normal(*size, 4), normal(side, side, 4), normal(4)

    def torchs(x):
        weight = float64(kernel)[:, :, None]
        y = torch_convolution(x, weight, stride, groups=4, padding=padding) + float64(bias)
        return torch.nn.functional.relu6(y) if capped else y

    gradient = normal(*torchs(float64(x)).shape)
    expected, (in_input,) = with_gradients(torchs, gradient, x)
    assert capped or (expected.min() < 0 and expected.max() > 6)

    @jax.jit
    def run(x, gradient):
        value, pull = jax.vjp(lambda x: depthwise_convolve(x, kernel, bias, stride, padding, capped), x)
        return value, *pull(gradient)

    value, got_in_input = run(x, gradient)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=1e-4)


def test_a_frozen_kernel_is_constant_its_gradient_is_zero():
    x, kernel = normal(5, 5, 3), normal(3, 3, 3, 4)
    gradient = jax.grad(lambda kernel: jnp.sum(frozen_convolve(x, kernel, 2, 1)))(kernel)
    assert gradient.shape == kernel.shape and not gradient.any()


@pytest.mark.parametrize(("platform", "stock"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_each_platform_gets_its_form_of_a_frozen_convolution(platform, stock):
    def forward(x):
        return frozen_convolve(x, normal(3, 3, 3, 4), 2, 1)

    def backward(gradient):
        return jax.vjp(forward, jnp.zeros((6, 6, 3)))[1](gradient)

    for function, example in ((forward, normal(6, 6, 3)), (backward, normal(3, 3, 4))):
        for lifted, inputs in ((function, example), (jax.vmap(function), example[None])):
            lowered = jax.jit(lifted).trace(inputs).lower(lowering_platforms=(platform,))
            assert ("stablehlo.convolution" in lowered.as_text()) == stock


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_each_platform_gets_its_form_forward_and_backward_alone_and_in_batches(platform, grouped):
    def forward(x):
        return depthwise_convolve(x, normal(3, 3, 4), normal(4), 2)

    def backward(gradient):
        return jax.vjp(forward, jnp.zeros((6, 6, 4)))[1](gradient)

    for function, example in ((forward, normal(6, 6, 4)), (backward, normal(3, 3, 4))):
        for lifted, inputs in ((function, example), (jax.vmap(function), example[None])):
            lowered = jax.jit(lifted).trace(inputs).lower(lowering_platforms=(platform,))
            assert ("stablehlo.convolution" in lowered.as_text()) == grouped


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_is_a_loop_forward_and_backward(stride):
    images, kernel, depthwise = normal(3, 7, 6, 4), normal(3, 3, 4, 5), normal(3, 3, 4)
    for function in (
        lambda x: convolve(x, kernel, stride),
        lambda x: depthwise_convolve(x, depthwise, normal(4), stride),
        lambda x: depthwise_convolve(x, depthwise, normal(4), stride, 1, False),
        lambda x: frozen_convolve(x, kernel, stride, 1),
        lambda x: max_pool(x, 3, stride, 1),
        lambda x: adaptive_mean(x, 3),
        relu,
        relu6,
    ):

        def both(x, function=function):
            value, pull = jax.vjp(function, x)
            return value, *pull(jnp.cos(value))

        batched = jax.jit(jax.vmap(both))(images)
        single = jax.jit(both)
        for batch, *one_by_one in zip(batched, *map(single, images), strict=True):
            np.testing.assert_allclose(batch, np.stack(one_by_one), rtol=1e-5, atol=1e-5)


def test_vmap_over_kernels_is_a_loop():
    images, kernels = normal(3, 5, 6, 4), normal(3, 3, 3, 4, 2)

    def in_kernel(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.cos(convolve(x, kernel, 2))))(kernel)

    batched = jax.jit(jax.vmap(in_kernel))(images, kernels)
    for batch, x, kernel in zip(batched, images, kernels, strict=True):
        np.testing.assert_allclose(batch, in_kernel(x, kernel), rtol=0, atol=1e-5)


def test_a_depthwise_kernel_and_its_bias_are_constant_their_gradients_are_zero():
    x, kernel, bias = normal(5, 5, 4), normal(3, 3, 4), normal(4)
    gradients = jax.grad(lambda *constants: jnp.sum(depthwise_convolve(x, *constants, 2)), (0, 1))
    for constant, gradient in zip((kernel, bias), gradients(kernel, bias), strict=True):
        assert gradient.shape == constant.shape and not gradient.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_element_type_of_the_input_is_kept_forward_and_backward(dtype, stride):
    x, kernel, depthwise, bias = (
        jnp.asarray(normal(*s), dtype) for s in [(5, 5, 4), (3, 3, 4, 2), (3, 3, 4), (4,)]
    )
    for function in (
        lambda x: convolve(x, kernel, stride),
        lambda x: depthwise_convolve(x, depthwise, bias, stride),
        lambda x: depthwise_convolve(x, depthwise, bias, stride, 1, False),
        lambda x: frozen_convolve(x, kernel, stride, 1),
        lambda x: max_pool(x, 3, stride, 1),
        lambda x: adaptive_mean(x, 3),
        gelu,
        relu,
        relu6,
    ):

        def both(x, function=function):
            value, pull = jax.vjp(function, x)
            return value, *pull(value)

        assert [result.dtype for result in jax.eval_shape(both, x)] == [dtype, dtype]


def test_modules_add_their_bias_to_their_kernels_product():
    x, bias = normal(7, 6, 4), normal(5)
    conv, depthwise, linear = Conv(4, 5, 3, 2), DepthwiseConv(4, 5, 2), Linear(4, 5)
    for module in (conv, depthwise, linear):
        module.kernel[...] = normal(*module.kernel.shape)
        module.bias[...] = bias[: module.bias.shape[0]]
    expected = torch_convolution(float64(x), float64(conv.kernel[...]), 2, groups=1) + float64(bias)
    np.testing.assert_allclose(conv(x), expected, rtol=0, atol=2e-5)
    expected = torch_depthwise_relu6(float64(x), float64(depthwise.kernel[...]), float64(bias[:4]), 2)
    np.testing.assert_allclose(depthwise(x), expected, rtol=0, atol=2e-5)
    expected = torch.einsum("io,i->o", float64(linear.kernel[...]), float64(x[0, 0])) + float64(bias)
    np.testing.assert_allclose(linear(x[0, 0]), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 7, 8, 16])
def test_relu6_is_pytorchs_also_in_its_gradient(rows):
    least = np.finfo(np.float32).tiny
    kinks = [-least, 0, least, *(np.nextafter(np.float32(6), np.float32(end)) for end in (0, 9)), 6]
    x = np.concatenate([np.linspace(-3, 9, 122), kinks]).astype(np.float32)
    x = jnp.asarray(np.resize(x, (rows, 128)))
    gradient = normal(rows, 128)
    expected, (in_input,) = with_gradients(torch.nn.functional.relu6, gradient, x)
    value, pull = jax.vjp(relu6, x)
    np.testing.assert_array_equal(value, expected.astype(np.float32))
    np.testing.assert_array_equal(pull(gradient)[0], np.where((x > 0) & (x < 6), gradient, 0))
    np.testing.assert_array_equal(pull(gradient)[0], in_input)


def test_relu_is_pytorchs_also_in_its_gradient():
    least = np.finfo(np.float32).tiny
    x = jnp.asarray(np.resize([-2, -least, 0, least, 3, 7], (7, 12)).astype(np.float32))
    gradient = normal(7, 12)
    expected, (in_input,) = with_gradients(torch.relu, gradient, x)
    value, pull = jax.vjp(relu, x)
    np.testing.assert_array_equal(value, expected.astype(np.float32))
    np.testing.assert_array_equal(pull(gradient)[0], np.where(x > 0, gradient, 0))
    np.testing.assert_array_equal(pull(gradient)[0], in_input)


POOLS = [  # size, side, stride, padding, ceil
    ((8, 9), 2, 2, 0, False),
    ((8, 9), 2, 2, 0, True),
    ((9, 7), 3, 2, 1, False),
    ((9, 8), 3, 2, 1, True),
    ((8, 9), 3, 2, 0, False),
    ((8, 10), 3, 2, 0, True),
    ((3, 5), 3, 3, 1, True),
    ((5, 4), 3, 1, 1, False),
    ((7, 11), 2, 3, 0, True),
    ((6, 7), 2, 3, 1, True),
]


def torch_max_pool(x, side, stride, padding, ceil):
    pooled = torch.nn.functional.max_pool2d(
        x.movedim(-1, 0)[None], side, stride, padding, ceil_mode=ceil
    )
    return pooled[0].movedim(0, -1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("size", "side", "stride", "padding", "ceil"), POOLS)
def test_max_pool_is_pytorchs_and_so_is_its_gradient_also_at_ties(
    size, side, stride, padding, ceil, ties
):
    x = normal(*size, 4) - 3  # below zero, which the padding must not be
    if ties:
        x = jnp.round(x)

    def torchs(x):
        return torch_max_pool(x, side, stride, padding, ceil)

    gradient = normal(*torchs(float64(x)).shape)
    expected, (in_input,) = with_gradients(torchs, gradient, x)

    @jax.jit
    def run(x, gradient):
        value, pull = jax.vjp(lambda x: max_pool(x, side, stride, padding, ceil), x)
        return value, *pull(gradient)

    value, got_in_input = run(x, gradient)
    np.testing.assert_array_equal(value, expected.astype(np.float32))
    np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=1e-6)


def test_the_backward_pass_of_max_pool_keeps_a_byte_an_output():
    _, pull = jax.vjp(lambda x: max_pool(x, 2, 2), normal(8, 6, 4))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == 4 * 3 * 4


@pytest.mark.parametrize(
    ("size", "outputs"), [((7, 7), 7), ((14, 21), 7), ((9, 10), 7), ((2, 3), 7), ((6, 5), 1)]
)
def test_adaptive_mean_is_pytorchs_adaptive_pooling_also_in_its_gradient(size, outputs):
    x, gradient = normal(*size, 3), normal(outputs, outputs, 3)

    def torchs(x):
        pooled = torch.nn.functional.adaptive_avg_pool2d(x.movedim(-1, 0), outputs)
        return pooled.movedim(0, -1)

    expected, (in_input,) = with_gradients(torchs, gradient, x)
    value, pull = jax.vjp(lambda x: adaptive_mean(x, outputs), x)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(pull(gradient)[0], in_input, rtol=0, atol=2e-6)


@pytest.mark.parametrize("offset", [0, 100])
def test_layer_norm_is_pytorchs_also_where_the_mean_is_far_from_zero(offset):
    norm = LayerNorm(6, epsilon=1e-3)
    norm.scale[...], norm.bias[...] = normal(6), normal(6, 1)[:, 0]
    x, gradient = offset + 0.1 * normal(4, 5, 6), normal(4, 5, 6)

    def torchs(x):
        scale, bias = float64(norm.scale[...]), float64(norm.bias[...])
        return torch.nn.functional.layer_norm(x, (6,), scale, bias, 1e-3)

    expected, (in_input,) = with_gradients(torchs, gradient, x)
    value, pull = jax.vjp(norm, x)
    atol = 1e-5 if offset == 0 else 1e-3  # 0.1 is 13,000 steps of float32 around 100
    np.testing.assert_allclose(value, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(pull(gradient)[0], in_input, rtol=0, atol=10 * atol)


def test_gelu_is_pytorchs_the_exact_one():
    x = jnp.linspace(-6, 6, 97)
    gradient = normal(97)
    expected, (in_input,) = with_gradients(torch.nn.functional.gelu, gradient, x)
    value, pull = jax.vjp(gelu, x)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(pull(gradient)[0], in_input, rtol=0, atol=5e-6)


def test_what_is_not_a_number_stays_so_and_nothing_else_becomes_it():
    x = jnp.zeros((4, 4, 2)).at[0, 0, 0].set(jnp.nan)
    for function, reached in (
        (relu6, 1),
        (relu, 1),
        (lambda x: depthwise_convolve(x, jnp.ones((3, 3, 2)), jnp.zeros(2)), 2),
        (lambda x: max_pool(x, 3, 1, 1), 2),
    ):
        found = np.isnan(jax.jit(function)(x))
        assert found[:reached, :reached, 0].all() and found.sum() == reached**2


# --- the slopes of ReLU6, a bit each --------------------------------------------------------------


@settings(max_examples=15, deadline=None)  # each shape compiles anew
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=1, max_dims=3, max_side=40)))
def test_packed_bits_unpack_to_what_they_were_at_any_height(mask):
    packed = pack_bits(jnp.asarray(mask))
    assert packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack_bits(packed, mask.shape), mask)


def test_as_many_rows_share_a_byte_as_divide_the_height():
    for height in range(1, 65):
        packed = jax.eval_shape(pack_bits, jax.ShapeDtypeStruct((height, 2), bool))
        rows, rest = divmod(height, packed.shape[0])
        assert rest == 0 and rows == max(n for n in range(1, 9) if height % n == 0)


def test_the_backward_pass_of_relu6_keeps_a_bit_an_element():
    """Of an (8, 6, 4) array 24 bytes, where the derivative of a clip would keep 768."""
    _, pull = jax.vjp(relu6, normal(8, 6, 4))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == 24
