"""Weights in: every parameter is what the table says, or one message names all that is wrong."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from amx_jax.classifiers.layers import Conv, DepthwiseConv, Linear, convolve, depthwise_convolve
from amx_jax.classifiers.weights import (
    Rule,
    fill,
    fold_conv,
    fold_depthwise,
    linear_kernel,
    unchanged,
)
from amx_jax.errors import WeightsError

EPSILON = 1e-3


class Small(nnx.Module):
    def __init__(self):
        self.conv = Conv(3, 4, 3)
        self.blocks = nnx.List([DepthwiseConv(4, 3)])
        self.classify = Linear(4, 5)

    def __call__(self, x):
        return self.classify(self.blocks[0](self.conv(x)).mean((0, 1)))


def rules() -> list[Rule]:
    return [
        *fold_conv(("conv",), "stem", "norm0", EPSILON),
        *fold_depthwise(("blocks", 0), "features.0", "norm1", EPSILON),
        Rule(("classify", "kernel"), ("fc.weight",), linear_kernel),
        Rule(("classify", "bias"), ("fc.bias",), unchanged),
    ]


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A PyTorch state dict for ``Small`` whose batch norms are far from the identity."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    found = {
        "stem.weight": normal(4, 3, 3, 3),
        "features.0.weight": normal(4, 1, 3, 3),
        "fc.weight": normal(5, 4),
        "fc.bias": normal(5),
    }
    for norm in ("norm0", "norm1"):
        found[f"{norm}.weight"] = normal(4)
        found[f"{norm}.bias"] = normal(4)
        found[f"{norm}.running_mean"] = normal(4)
        found[f"{norm}.running_var"] = random.gamma(1, 2, 4).astype(np.float32)
        found[f"{norm}.num_batches_tracked"] = np.array(7)
    return found


def problems_of(arrays, table=None) -> list[str]:
    module = nnx.eval_shape(Small)
    with pytest.raises(WeightsError) as caught:
        fill(module, arrays, rules() if table is None else table, origin="some.pth")
    message = str(caught.value)
    assert "\n" not in message
    found = re.fullmatch(
        r"some\.pth: the weights do not fit the model \((\d+) (problems?)\): (.*)", message
    )
    assert found is not None, message
    problems = found[3].split("; ")
    assert len(problems) == int(found[1]) and (len(problems) > 1) == (found[2] == "problems")
    return problems


def slow_convolution(x, weight, depthwise: bool) -> np.ndarray:
    """Pixel by pixel in float64, weights in PyTorch's layout, one ring of zeros around ``x``."""
    padded = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:2], len(weight)))
    for i, j, d in np.ndindex(out.shape):
        window = padded[i : i + 3, j : j + 3]
        window = window[..., d : d + 1] if depthwise else window
        out[i, j, d] = np.sum(window.transpose(2, 0, 1) * weight[d])
    return out


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_folded_batch_norm_is_the_batch_norm_after_the_convolution(arrays, depthwise):
    x = np.random.default_rng(1).normal(size=(5, 6, 4 if depthwise else 3)).astype(np.float32)
    conv, norm = ("features.0", "norm1") if depthwise else ("stem", "norm0")
    convolved = slow_convolution(x, arrays[f"{conv}.weight"], depthwise)
    mean, variance = arrays[f"{norm}.running_mean"], arrays[f"{norm}.running_var"]
    normalised = (convolved - mean) / np.sqrt(variance + EPSILON)
    expected = normalised * arrays[f"{norm}.weight"] + arrays[f"{norm}.bias"]

    fold = fold_depthwise if depthwise else fold_conv
    kernel, bias = (
        jnp.asarray(rule.transform(*(arrays[name] for name in rule.sources)), jnp.float32)
        for rule in fold(("layer",), conv, norm, EPSILON)
    )
    assert kernel.shape == ((3, 3, 4) if depthwise else (3, 3, 3, 4))
    if depthwise:  # moved by 3, into the middle of what its ReLU6 lets through
        found, expected = (
            depthwise_convolve(jnp.asarray(x), kernel, bias + 3),
            (expected + 3).clip(0, 6),
        )
        assert ((expected > 0) & (expected < 6)).mean() > 0.8
    else:
        found = convolve(jnp.asarray(x), kernel) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_every_parameter_is_filled_in_float32(arrays):
    params = fill(nnx.eval_shape(Small), arrays, rules(), origin="some.pth")
    flat = dict(iter(nnx.to_flat_state(params)))
    assert set(flat) == {
        *(
            (*layer, kind)
            for layer in [("conv",), ("blocks", 0), ("classify",)]
            for kind in ("kernel", "bias")
        )
    }
    assert {variable[...].dtype for variable in flat.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(flat["classify", "kernel"][...], arrays["fc.weight"].T)
    np.testing.assert_array_equal(flat["classify", "bias"][...], arrays["fc.bias"])


def test_an_abstract_module_and_a_real_one_are_filled_alike_and_run(arrays):
    x = np.random.default_rng(1).normal(size=(5, 6, 3)).astype(np.float32)
    results = []
    for module in (nnx.eval_shape(Small), Small()):
        params = fill(module, arrays, rules(), origin="some.pth")
        results.append(nnx.merge(nnx.split(module)[0], params)(x))
    np.testing.assert_array_equal(*results)
    assert np.ptp(results[0]) > 0.1


def test_the_files_arrays_are_not_written_to(arrays):
    before = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)
    fill(nnx.eval_shape(Small), arrays, rules(), origin="some.pth")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_half_and_double_precision_files_are_read(arrays):
    for dtype in (np.float16, np.float64):
        converted = {name: array.astype(dtype) for name, array in arrays.items()}
        params = fill(nnx.eval_shape(Small), converted, rules(), origin="some.pth")
        kernel = dict(iter(nnx.to_flat_state(params)))["classify", "kernel"][...]
        np.testing.assert_array_equal(kernel, converted["fc.weight"].T.astype(np.float32))


# --- what does not fit ----------------------------------------------------------------------------


def test_a_missing_array_is_named(arrays):
    del arrays["fc.bias"]
    assert problems_of(arrays) == ["no array 'fc.bias' in the file"]


def test_a_missing_array_that_several_parameters_need_is_named_once(arrays):
    del arrays["norm0.running_var"]
    assert problems_of(arrays) == ["no array 'norm0.running_var' in the file"]


@pytest.mark.parametrize("name", ["fc.scale", "num_batches_tracked_too", "xnum_batches_tracked"])
def test_an_array_nobody_uses_is_named(arrays, name):
    arrays[name] = np.ones(3, np.float32)
    assert problems_of(arrays) == [f"array '{name}' in the file is not used"]


def test_a_parameter_without_a_rule_is_named(arrays):
    del arrays["fc.bias"]
    assert problems_of(arrays, rules()[:-1]) == ["parameter classify.bias is not filled"]


def test_a_rule_for_no_parameter_is_named_and_so_is_what_it_misses(arrays):
    extra = Rule(("classify", "scale"), ("fc.scale",), unchanged)
    assert problems_of(arrays, [*rules(), extra]) == [
        "no array 'fc.scale' in the file",
        "the model has no parameter classify.scale",
    ]


def test_two_rules_for_one_parameter_are_named(arrays):
    assert problems_of(arrays, [*rules(), rules()[-1]]) == [
        "parameter classify.bias has more than one rule"
    ]


@pytest.mark.parametrize(
    ("name", "shape", "targets"),
    [
        ("fc.bias", (4,), ["classify.bias"]),
        ("fc.bias", (5, 1), ["classify.bias"]),
        ("fc.weight", (4, 5), ["classify.kernel"]),
        ("fc.weight", (20,), ["classify.kernel"]),
        ("stem.weight", (4, 3, 5, 5), ["conv.kernel"]),
        ("stem.weight", (3, 3, 3, 4), ["conv.kernel"]),
        ("stem.weight", (1, 3, 3, 3), ["conv.kernel"]),
        ("stem.weight", (4, 27), ["conv.kernel"]),
        ("stem.weight", (4, 3, 3, 3, 1), ["conv.kernel"]),
        ("stem.weight", (), ["conv.kernel"]),
        ("features.0.weight", (4, 3, 3), ["blocks.0.kernel"]),
        ("features.0.weight", (4, 3, 3, 3), ["blocks.0.kernel"]),
        ("features.0.weight", (4, 0, 3, 3), ["blocks.0.kernel"]),
        ("features.0.weight", (36,), ["blocks.0.kernel"]),
        ("norm0.weight", (3,), ["conv.kernel", "conv.bias"]),
        ("norm0.weight", (1,), ["conv.kernel", "conv.bias"]),
        ("norm0.weight", (), ["conv.kernel", "conv.bias"]),
        ("norm0.weight", (4, 1), ["conv.kernel", "conv.bias"]),
        ("norm1.running_var", (1,), ["blocks.0.kernel", "blocks.0.bias"]),
        ("norm1.running_mean", (1,), ["blocks.0.bias"]),
        ("norm1.bias", (), ["blocks.0.bias"]),
    ],
)
def test_a_wrong_shape_or_rank_is_named_also_where_numpy_would_broadcast(arrays, name, shape, targets):
    arrays[name] = np.ones(shape, np.float32)
    problems = problems_of(arrays)
    assert [problem.rpartition(" for ")[2] for problem in problems] == targets
    for problem in problems:
        sources, _, rest = problem.partition(": found shape ")
        assert name in sources.split(" + ")
        found, _, expected = rest.partition(", expected ")
        assert found and expected.startswith("(")


def test_the_shape_that_was_found_is_told(arrays):
    arrays["fc.weight"] = np.ones((7, 4), np.float32)
    arrays["norm1.bias"] = np.ones((2,), np.float32)
    assert problems_of(arrays) == [
        "norm1.weight + norm1.bias + norm1.running_mean + norm1.running_var: "
        "found shape (4,) and (2,) and (4,) and (4,), expected (4,) for blocks.0.bias",
        "fc.weight: found shape (4, 7), expected (4, 5) for classify.kernel",
    ]


@pytest.mark.parametrize(
    ("name", "value", "targets"),
    [
        ("fc.bias", np.nan, ["classify.bias"]),
        ("fc.weight", -np.inf, ["classify.kernel"]),
        ("fc.weight", 1e300, ["classify.kernel"]),
        ("norm0.running_var", -1.0, ["conv.kernel", "conv.bias"]),
        ("norm0.running_var", -EPSILON, ["conv.kernel", "conv.bias"]),
        ("norm1.running_mean", np.inf, ["blocks.0.bias"]),
    ],
)
def test_values_that_are_not_finite_are_named(arrays, name, value, targets):
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name].flat[-1] = value
    assert problems_of(arrays) == [
        f"parameter {target} has values that are not finite" for target in targets
    ]


def test_all_problems_come_in_one_message(arrays):
    del arrays["stem.weight"], arrays["norm0.bias"]
    arrays["features.0.weight"] = np.ones((4, 2, 3, 3), np.float32)
    arrays["norm1.running_mean"][0] = np.nan
    arrays["fc.weight"] = np.ones((5, 4, 1), np.float32)
    arrays["extra.one"] = arrays["extra.two"] = np.ones(2, np.float32)
    table = [*rules()[:-1], Rule(("head", 0), ("fc.bias",), unchanged)]
    assert sorted(problems_of(arrays, table)) == sorted(
        [
            "no array 'stem.weight' in the file",
            "no array 'norm0.bias' in the file",
            "features.0.weight + norm1.weight + norm1.running_var: found shape (4, 2, 3, 3) and (4,) "
            "and (4,), expected (3, 3, 4) for blocks.0.kernel",
            "parameter blocks.0.bias has values that are not finite",
            "fc.weight: found shape (1, 4, 5), expected (4, 5) for classify.kernel",
            "parameter classify.bias is not filled",
            "the model has no parameter head.0",
            "array 'extra.one' in the file is not used",
            "array 'extra.two' in the file is not used",
        ]
    )
