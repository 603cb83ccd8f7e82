"""Explanations put together: kept pixels are exact, and removed ones filled as announced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from amx_jax.masks.composition import (
    BACKGROUND_KINDS,
    bilinear_matrix,
    blur,
    compose,
    constant_colour,
    resize,
    sample_background,
    white_noise,
)

LOW, HIGH = jnp.array([-2.0, 0.0, 10.0]), jnp.array([3.0, 1.0, 20.0])
SHAPE = (24, 17, 3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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


# --- blur -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 2.6, 10.0])
def test_blur_is_scipys_channel_by_channel(image, sigma):
    blurred = blur(image, sigma)
    assert blurred.shape == SHAPE and blurred.dtype == jnp.float32
    for c in range(3):
        channel = np.asarray(image[..., c], float)
        expected = ndimage.gaussian_filter(channel, sigma, mode="nearest", truncate=4)
        assert_close(blurred[..., c], expected)


def test_blur_by_nothing_is_the_image(image):
    assert np.array_equal(blur(image, 0.0), image)


def test_blur_leaves_a_constant_and_the_range(image):
    assert_close(blur(jnp.full(SHAPE, 7.0), 3.0), 7.0)
    blurred = blur(image, 3.0)
    assert (blurred >= image.min((0, 1))).all() and (blurred <= image.max((0, 1))).all()
    assert (blurred.std((0, 1)) < image.std((0, 1)) / 3).all()


# --- backgrounds ----------------------------------------------------------------------------------


def kind_of(background, blurred):
    """Which kind a background is, by looking at it."""
    if np.array_equal(background, blurred):
        return "blur"
    return "colour" if (background == background[0, 0]).all() else "noise"


KEYS = jax.random.split(jax.random.key(0), 300)
sample_each = jax.jit(jax.vmap(sample_background, in_axes=(0, None, None, None, None)))


def test_backgrounds_stay_in_the_input_range(image):
    backgrounds = sample_each(KEYS, image, blur(image, 3.0), LOW, HIGH)
    assert backgrounds.shape == (300, *SHAPE)
    assert (backgrounds >= LOW).all() and (backgrounds <= HIGH).all()


def test_all_kinds_of_background_are_drawn_equally_often(image):
    blurred = blur(image, 3.0)
    backgrounds = np.asarray(sample_each(KEYS, image, blurred, LOW, HIGH))
    kinds = [kind_of(background, np.asarray(blurred)) for background in backgrounds]
    for kind in BACKGROUND_KINDS:
        assert 70 <= kinds.count(kind) <= 130  # 100 ± 3.7 standard deviations


def test_the_same_key_gives_the_same_background_and_another_key_another(image):
    blurred = blur(image, 3.0)
    sampled, again = np.asarray([sample_each(KEYS, image, blurred, LOW, HIGH) for _ in range(2)])
    assert np.array_equal(sampled, again)
    drawn = [b.tobytes() for b in sampled if kind_of(b, np.asarray(blurred)) != "blur"]
    assert len(drawn) > 100 and len(set(drawn)) == len(drawn)


def test_backgrounds_in_a_batch_are_those_drawn_one_by_one(image):
    blurred = blur(image, 3.0)
    batch = sample_each(KEYS, image, blurred, LOW, HIGH)
    alone = jax.jit(sample_background)
    singly = np.stack([alone(key, image, blurred, LOW, HIGH) for key in KEYS[:12]])
    assert_close(batch[:12], singly)
    assert {kind_of(background, np.asarray(blurred)) for background in singly} == set(BACKGROUND_KINDS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_background_has_the_images_type(image, dtype):
    image = image.astype(dtype)
    for blurred in (blur(image, 3.0), image):
        background = sample_background(jax.random.key(0), image, blurred, LOW, HIGH)
        assert background.dtype == dtype and background.shape == SHAPE


def test_colours_are_uniform_over_the_range_and_independent_between_channels():
    keys = jax.random.split(jax.random.key(0), 4000)
    colours = jax.vmap(lambda key: constant_colour(key, SHAPE, LOW, HIGH))(keys)
    assert colours.shape == (4000, *SHAPE)
    assert (colours == colours[:, :1, :1]).all()
    assert_uniform((colours[:, 0, 0] - LOW) / (HIGH - LOW))


def test_noise_is_uniform_over_the_range_and_independent_between_pixels_and_channels():
    noise = white_noise(jax.random.key(0), (64, 64, 3), LOW, HIGH)
    share = (noise - LOW) / (HIGH - LOW)
    assert_uniform(share.reshape(-1, 3))
    right = share[:, :-1].ravel(), share[:, 1:].ravel()
    below = share[:-1].ravel(), share[1:].ravel()
    for one, other in (right, below):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(one.size)


def assert_uniform(shares):
    """Columns of at least 4,000 draws: each uniform in [0, 1), and no two correlated."""
    for column in np.asarray(shares).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlations = np.corrcoef(shares.T) - np.eye(shares.shape[1])
    assert (abs(correlations) < 4 / np.sqrt(len(shares))).all()  # four standard deviations


# --- one image or many ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (compose, [SHAPE, SHAPE[:2], SHAPE]),
        (lambda grid: resize(grid, (30, 33)), [(7, 5)]),
        (lambda image: blur(image, 2.0), [SHAPE]),
    ],
    ids=["compose", "resize", "blur"],
)
def test_a_batch_is_its_images_one_by_one(rng, function, shapes):
    batch = [jnp.asarray(rng.uniform(size=(4, *shape)), jnp.float32) for shape in shapes]
    together = jax.jit(jax.vmap(function))(*batch)
    assert_close(together, [function(*(array[i] for array in batch)) for i in range(4)])
