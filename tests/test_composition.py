"""Explanations put together: kept pixels are exact, and removed ones filled as announced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from amx_jax.masks.composition import bilinear_matrix, compose, resize

LOW, HIGH = jnp.array([-2.0, 0.0, 10.0]), jnp.array([3.0, 1.0, 20.0])
SHAPE = (24, 17, 3)


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.uniform(LOW, HIGH, SHAPE), jnp.float32)


@pytest.fixture
def mask(rng):
    """Soft and hard pixels."""
    return jnp.asarray(np.clip(rng.uniform(-0.5, 1.5, SHAPE[:2]), 0, 1), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


# --- compose --------------------------------------------------------------------------------------


def test_composition_is_pixel_by_pixel_a_weighted_mean(rng, image, mask):
    background = rng.normal(size=SHAPE).astype(np.float32)
    explanation = np.asarray(compose(image, mask, background))
    assert explanation.shape == SHAPE
    for i, j, c in np.ndindex(SHAPE):
        m = float(mask[i, j])
        expected = m * float(image[i, j, c]) + (1 - m) * float(background[i, j, c])
        assert explanation[i, j, c] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(("inside", "outside"), [(1, 1), (1e30, 1), (1, 1e30), (3e38, 3e38)])
def test_hard_masks_keep_exactly_and_replace_exactly(rng, jit, inside, outside):
    image, background = rng.uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    image, background = image * np.float32(inside), background * np.float32(outside)
    hard = rng.integers(0, 2, SHAPE[:2]).astype(bool)
    for kept in (hard, hard.astype(np.float32)):
        explanation = jit(compose)(jnp.asarray(image), jnp.asarray(kept), jnp.asarray(background))
        assert np.array_equal(explanation, np.where(hard[..., None], image, background))


def test_soft_masks_of_large_values_do_not_overflow(mask):
    explanation = compose(jnp.full(SHAPE, 3e38), mask, jnp.full(SHAPE, -3e38))
    assert jnp.isfinite(explanation).all()


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 3), (24, 17, 1)])
def test_a_background_broadcasts(rng, image, mask, shape):
    background = jnp.asarray(rng.normal(size=shape), jnp.float32)
    whole = jnp.broadcast_to(background, SHAPE)
    assert np.array_equal(compose(image, mask, background), compose(image, mask, whole))


def test_an_explanation_and_its_complement_add_up(rng, image, mask):
    background = rng.normal(size=SHAPE).astype(np.float32)
    both = compose(image, mask, background) + compose(image, 1.0 - mask, background)
    assert_close(both, image + background)


def test_the_masks_gradient_is_the_contrast_to_the_background(rng, image, mask):
    background = rng.normal(size=SHAPE).astype(np.float32)
    gradient = jax.grad(lambda m: compose(image, m, background).sum())(mask)
    assert_close(gradient, (image - background).sum(-1))


# --- resize ---------------------------------------------------------------------------------------

SIZES = [(1, 1), (7, 1), (7, 7), (8, 4), (10, 7), (224, 28), (300, 7), (5, 9)]


@pytest.mark.parametrize(("size", "length"), SIZES)
def test_interpolation_is_a_mean_of_the_two_nearest_cells(size, length):
    matrix = bilinear_matrix(size, length)
    assert matrix.shape == (size, length) and matrix.dtype == np.float32
    for i, row in enumerate(matrix):
        # cell centres lie at 0.5, 1.5, …; before the first and after the last there is nothing to mix
        centre = (i + 0.5) * length / size - 0.5
        expected = [0.0] * length
        left = int(np.floor(centre))
        for cell, weight in ((left, left + 1 - centre), (left + 1, centre - left)):
            expected[min(max(cell, 0), length - 1)] += weight
        assert_close(row, expected, atol=1e-6)


@pytest.mark.parametrize(("size", "length"), SIZES)
def test_rows_are_weights_that_sum_to_one(size, length):
    matrix = bilinear_matrix(size, length)
    assert (matrix >= 0).all() and (np.count_nonzero(matrix, axis=1) <= 2).all()
    assert_close(matrix.sum(axis=1, dtype=np.float64), 1.0, atol=0)


@pytest.mark.parametrize("shape", [(7, 5), (14, 10), (30, 33), (56, 224), (7, 64)])
def test_enlargement_is_scipys(rng, shape):
    grid = rng.normal(size=(7, 5)).astype(np.float32)
    zoom = (shape[0] / 7, shape[1] / 5)
    expected = ndimage.zoom(grid.astype(float), zoom, order=1, mode="nearest", grid_mode=True)
    assert_close(resize(jnp.asarray(grid), shape), expected)


def test_enlargement_is_pytorchs(rng):
    functional = pytest.importorskip("torch.nn.functional")
    from torch import from_numpy

    grid = rng.normal(size=(7, 5)).astype(np.float32)
    expected = functional.interpolate(
        from_numpy(grid)[None, None], (33, 224), mode="bilinear", align_corners=False
    )
    assert_close(resize(jnp.asarray(grid), (33, 224)), expected[0, 0].numpy())


def test_a_grid_keeps_itself_its_mean_and_its_range(rng):
    grid = jnp.asarray(rng.integers(0, 2, (7, 5)), jnp.float32)
    assert np.array_equal(resize(grid, (7, 5)), grid)
    large = resize(grid, (21, 40))
    assert_close(large.mean(), grid.mean())
    assert large.min() >= 0.0 and large.max() <= 1.0 + 1e-6
    assert_close(resize(jnp.ones((7, 5)), (224, 224)), 1.0)


# --- one image or many ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (compose, [SHAPE, SHAPE[:2], SHAPE]),
        (lambda grid: resize(grid, (30, 33)), [(7, 5)]),
    ],
    ids=["compose", "resize"],
)
def test_a_batch_is_its_images_one_by_one(rng, function, shapes):
    batch = [jnp.asarray(rng.uniform(size=(4, *shape)), jnp.float32) for shape in shapes]
    together = jax.jit(jax.vmap(function))(*batch)
    assert_close(together, [function(*(array[i] for array in batch)) for i in range(4)])
