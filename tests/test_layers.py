"""Frozen layers: PyTorch is the oracle, in float64 and padded by a search instead of a formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from amx_jax.classifiers.layers import (
    Conv,
    DepthwiseConv,
    Linear,
    _grouped_depthwise,
    _shift_and_add_depthwise,
    _shift_and_add_input_gradient,
    convolve,
    depthwise_convolve,
    relu6,
    same_padding,
)

GEOMETRIES = [
    ((1, 2), 5, 1),
    ((1, 2), 5, 2),
    *itertools.product([(5, 8), (9, 7)], (1, 3, 5), (1, 2)),
]
geometries = pytest.mark.parametrize(("size", "side", "stride"), GEOMETRIES)


def least_padding(size: int, side: int, stride: int) -> tuple[int, int]:
    """The least zeros that give ceil(size / stride) outputs; of an odd number, one more behind."""
    outputs = -(-size // stride)
    total = next(
        zeros
        for zeros in itertools.count()
        if size + zeros >= side and (size + zeros - side) // stride + 1 >= outputs
    )
    return total // 2, total - total // 2


def torch_convolution(x: torch.Tensor, kernel: torch.Tensor, stride: int, groups: int) -> torch.Tensor:
    """``(H, W, C)`` by ``(k, k, C / groups, D)``."""
    rows, columns = (least_padding(size, kernel.shape[0], stride) for size in x.shape[:2])
    padded = torch.nn.functional.pad(x.permute(2, 0, 1), (*columns, *rows))
    weight = kernel.permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(padded[None], weight, None, stride, groups=groups)[0].permute(
        1, 2, 0
    )


def torch_depthwise(x: torch.Tensor, kernel: torch.Tensor, stride: int) -> torch.Tensor:
    return torch_convolution(x, kernel[:, :, None], stride, groups=x.shape[-1])


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
def test_depthwise_convolve_in_either_form_and_its_input_gradient_are_pytorchs(size, side, stride):
    x, kernel = normal(*size, 4), normal(side, side, 4)
    gradient = normal(*outputs_of(size, stride), 4)
    expected, (in_input, _) = with_gradients(
        lambda x, kernel: torch_depthwise(x, kernel, stride), gradient, x, kernel
    )

    @jax.jit
    def run(x, kernel, gradient):
        value, pull = jax.vjp(lambda x: depthwise_convolve(x, kernel, stride), x)
        grouped, pull_grouped = jax.vjp(lambda x: _grouped_depthwise(x, kernel, stride), x)
        shifted = _shift_and_add_depthwise(x, kernel, stride)
        shifted_in_input = _shift_and_add_input_gradient(gradient, kernel, stride, x.shape)
        values = [value, grouped, shifted]
        return values, [*pull(gradient), *pull_grouped(gradient), shifted_in_input]

    values, gradients = run(x, kernel, gradient)
    for value, got_in_input in zip(values, gradients, strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)
        np.testing.assert_allclose(got_in_input, in_input, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_each_platform_gets_its_form_forward_and_backward_alone_and_in_batches(platform, grouped):
    def forward(x):
        return depthwise_convolve(x, normal(3, 3, 4), 2)

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
        lambda x: depthwise_convolve(x, depthwise, stride),
    ):

        def both(x, function=function):
            value, pull = jax.vjp(function, x)
            return value, *pull(jnp.cos(value))

        batched = jax.jit(jax.vmap(both))(images)
        single = jax.jit(both)
        for batch, *one_by_one in zip(batched, *map(single, images), strict=True):
            np.testing.assert_allclose(batch, np.stack(one_by_one), rtol=0, atol=1e-5)


def test_vmap_over_kernels_is_a_loop():
    images, kernels = normal(3, 5, 6, 4), normal(3, 3, 3, 4, 2)

    def in_kernel(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.cos(convolve(x, kernel, 2))))(kernel)

    batched = jax.jit(jax.vmap(in_kernel))(images, kernels)
    for batch, x, kernel in zip(batched, images, kernels, strict=True):
        np.testing.assert_allclose(batch, in_kernel(x, kernel), rtol=0, atol=1e-5)


def test_a_depthwise_kernel_is_constant_its_gradient_is_zero():
    x, kernel = normal(5, 5, 4), normal(3, 3, 4)
    gradient = jax.grad(lambda kernel: jnp.sum(depthwise_convolve(x, kernel, 2)))(kernel)
    assert gradient.shape == kernel.shape and not gradient.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_element_type_of_the_input_is_kept_forward_and_backward(dtype, stride):
    x, kernel, depthwise = (
        jnp.asarray(normal(*s), dtype) for s in [(5, 5, 4), (3, 3, 4, 2), (3, 3, 4)]
    )
    for function in (
        lambda x: convolve(x, kernel, stride),
        lambda x: depthwise_convolve(x, depthwise, stride),
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
    expected = torch_depthwise(float64(x), float64(depthwise.kernel[...]), 2) + float64(bias[:4])
    np.testing.assert_allclose(depthwise(x), expected, rtol=0, atol=2e-5)
    expected = torch.einsum("io,i->o", float64(linear.kernel[...]), float64(x[0, 0])) + float64(bias)
    np.testing.assert_allclose(linear(x[0, 0]), expected, rtol=0, atol=2e-5)


def test_relu6_is_pytorchs_also_in_its_gradient():
    x = jnp.linspace(-3, 9, 25) + 0.01  # off the kinks
    gradient = normal(25)
    expected, (in_input,) = with_gradients(torch.nn.functional.relu6, gradient, x)
    value, pull = jax.vjp(relu6, x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(pull(gradient)[0], in_input, rtol=1e-6)
