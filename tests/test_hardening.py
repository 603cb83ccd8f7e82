"""From logits to masks: the budget keeps its share, masks are 0 or 1, gradients are the soft mask's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax.masks.composition import resize
from amx_jax.masks.hardening import (
    annealed_mask,
    annealed_temperature,
    budget_threshold,
    hard_mask,
    soft_mask,
    straight_through_mask,
)

SHAPE = (24, 18)
threshold = jax.jit(budget_threshold)
hard = jax.jit(hard_mask, static_argnums=1)
straight_through = jax.jit(straight_through_mask, static_argnums=(1, 2))


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)


# --- budget ---------------------------------------------------------------------------------------

values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
few_values = st.sampled_from([-1.0, 0.0, 0.5, 2.0])  # many ties


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(*(st.lists(v, min_size=20, max_size=20) for v in (values, few_values))),
    st.floats(0.0009765625, 1.0, width=32),
)
def test_the_largest_logits_are_kept_as_many_as_the_budget_says(values, budget):
    logits = np.float32(values).reshape(4, 5)
    kept = logits > threshold(logits, budget)
    # A share of 20 cells, rounded up; the cells equal to the last dropped one fall with it.
    share = 20 - int(np.floor((1 - np.float32(budget)) * 20))
    descending = np.sort(logits.ravel())[::-1]
    ties = share < 20 and descending[share - 1] == descending[share]
    assert kept.sum() == (np.sum(logits > descending[share]) if ties else share)
    if kept.any() and not kept.all():
        assert logits[kept].min() > logits[~kept].max()


@pytest.mark.parametrize(("budget", "kept"), [(1.0, 100), (0.5, 50), (0.25, 25), (0.01, 1), (1e-6, 1)])
def test_a_share_of_a_hundred_different_logits_is_that_many(budget, kept):
    logits = np.random.default_rng(0).permutation(100).astype(np.float32).reshape(10, 10)
    assert (logits > threshold(logits, budget)).sum() == kept


@pytest.mark.parametrize("value", [-5.0, 0.0, 3.0])
def test_equal_logits_are_all_kept_by_a_full_budget_and_all_dropped_by_a_smaller_one(value):
    logits = np.full((4, 4), value, np.float32)
    assert (logits > threshold(logits, 1.0)).all()
    assert not (logits > threshold(logits, 0.5)).any()


# --- hard and straight-through masks --------------------------------------------------------------


def test_a_pixel_is_kept_where_the_enlarged_logits_are_positive(logits):
    mask = hard(logits, SHAPE)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, np.asarray(resize(logits, SHAPE)) > 0)
    # At the centres of the cells nothing is interpolated: 6 and 5 cells on odd multiples of them.
    np.testing.assert_array_equal(hard(logits, (18, 15))[1::3, 1::3], np.asarray(logits) > 0)


def test_zero_is_not_kept():
    assert not hard(jnp.zeros((4, 4)), SHAPE).any()


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("temperature", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_mask_that_the_classifier_sees_is_exactly_the_hard_one(logits, temperature, scale, jit):
    mask = jit(lambda z: straight_through_mask(z, SHAPE, temperature))(scale * logits)
    np.testing.assert_array_equal(mask, np.asarray(hard(scale * logits, SHAPE), np.float32))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_its_gradient_is_that_of_the_soft_mask(logits, temperature):
    weight = np.random.default_rng(1).normal(size=SHAPE)
    gradient = jax.grad(lambda z: jnp.sum(weight * straight_through(z, SHAPE, temperature)))(logits)

    def soft(z):  # in float64, so that differences are exact enough
        enlarged = ROWS @ z @ COLUMNS.T
        return np.sum(weight / (1 + np.exp(-enlarged / temperature)))

    for at in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[at] = 1e-5
        z = np.asarray(logits, np.float64)
        difference = (soft(z + step) - soft(z - step)) / 2e-5
        assert gradient[at] == pytest.approx(difference, rel=1e-3, abs=1e-4)


def interpolation(size, length):
    """Bilinear, half-pixel centres, as NumPy's linear interpolation of each unit vector."""
    positions = (np.arange(size) + 0.5) * length / size - 0.5
    return np.stack([np.interp(positions, np.arange(length), e) for e in np.eye(length)], axis=1)


ROWS, COLUMNS = interpolation(SHAPE[0], 6), interpolation(SHAPE[1], 5)


def test_the_soft_mask_is_a_logistic_function_that_a_low_temperature_makes_crisp(logits):
    z = np.asarray(logits, np.float64)
    for temperature in (0.5, 2.0):
        expected = 1 / (1 + np.exp(-z / temperature))
        np.testing.assert_allclose(soft_mask(logits, temperature), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_mask(logits, 1e-6), z > 0)


# --- annealed masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 175])
def test_the_temperature_falls_to_a_twentieth_by_the_same_factor_a_step(steps):
    found = np.asarray(jax.vmap(lambda n: annealed_temperature(0.5, n, steps))(jnp.arange(steps)))
    np.testing.assert_allclose(found, np.geomspace(0.5, 0.025, steps), rtol=1e-5)


def test_a_single_step_is_hot():
    assert float(annealed_temperature(0.5, 0, 1)) == 0.5


def test_an_annealed_mask_is_the_soft_one_of_the_enlarged_logits_and_ends_nearly_hard(logits):
    for number, temperature in ((0, 0.5), (174, 0.025)):
        expected = 1 / (1 + np.exp(-np.asarray(resize(logits, SHAPE), np.float64) / temperature))
        found = annealed_mask(logits, SHAPE, 0.5, number, 175)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(found) > 0.5, hard(logits, SHAPE))
