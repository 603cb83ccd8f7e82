"""Backgrounds: each kind is what its name says, and a draw depends on its key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from amx_jax import config
from amx_jax.masks.backgrounds import (
    KINDS,
    SHOW_PHOTOS,
    Scene,
    blur,
    constant_colour,
    draw,
    shuffled_patches,
    smooth_noise,
    white_noise,
)

LOW, HIGH = jnp.array([-2.0, 0.0, 10.0]), jnp.array([3.0, 1.0, 20.0])
SHAPE = (24, 17, 3)
KEYS = jax.random.split(jax.random.key(0), 40)
ALL = tuple(KINDS)


@pytest.fixture
def image(rng):
    return jnp.asarray(rng.uniform(LOW, HIGH, SHAPE), jnp.float32)


@pytest.fixture
def scene(rng, image):
    others = jnp.asarray(rng.uniform(LOW, HIGH, (3, *SHAPE)), jnp.float32)
    return Scene(image, LOW, HIGH, others)


def assert_close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def drawn(kind, scene, keys=KEYS):
    one = jax.jit(lambda key: draw(ALL, ALL.index(kind), key, scene))
    return np.stack([one(key) for key in keys])


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


# --- kinds ----------------------------------------------------------------------------------------


def test_the_command_knows_the_kinds_that_there_are():
    """It names them before anything of JAX is imported."""
    assert config.KINDS == ALL


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_stays_in_the_input_range_and_follows_its_key(scene, kind):
    first, again = drawn(kind, scene), drawn(kind, scene)
    assert np.array_equal(first, again)
    if kind != "mean":  # zero need not lie in a range
        assert (first >= LOW - 1e-5).all() and (first <= HIGH + 1e-5).all()
    distinct = len({background.tobytes() for background in first})
    if kind in ("mean", "black"):
        assert distinct == 1
    elif kind == "photo":
        assert distinct == 6  # three photos, each also mirrored
    else:
        assert distinct == len(KEYS)


@pytest.mark.parametrize("kind", ALL)
def test_backgrounds_in_a_batch_are_those_drawn_one_by_one(scene, kind):
    index = ALL.index(kind)
    batch = jax.jit(jax.vmap(lambda key: draw(ALL, index, key, scene)))(KEYS[:6])
    assert_close(batch, drawn(kind, scene, KEYS[:6]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ALL)
def test_a_background_has_the_images_type(scene, kind, dtype):
    scene = scene._replace(image=scene.image.astype(dtype))
    background = draw([kind], 0, KEYS[0], scene)
    assert background.dtype == dtype and background.shape == SHAPE


def test_only_kinds_that_show_photos_need_any(scene):
    alone = scene._replace(others=jnp.zeros((0, *SHAPE)))
    for kind in set(ALL) - set(SHOW_PHOTOS):
        found, expected = (draw([kind], 0, KEYS[0], given) for given in (alone, scene))
        assert np.array_equal(found, expected)


def test_other_photos_are_shown_whole_and_mirrored(scene):
    others = np.asarray(scene.others)
    known = {photo.tobytes() for other in others for photo in (other, other[:, ::-1])}
    assert {background.tobytes() for background in drawn("photo", scene)} == known


def test_patches_are_those_of_the_image_each_once(rng):
    image = jnp.asarray(rng.normal(size=(30, 29, 3)), jnp.float32)
    shuffled = np.asarray(shuffled_patches(KEYS[0], image))

    def patches(x):
        return sorted(
            x[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].tobytes() for i in range(7) for j in range(7)
        )

    assert patches(shuffled) == patches(np.asarray(image))
    assert not np.array_equal(shuffled, image)
    assert np.array_equal(shuffled[28:], image[28:]) and np.array_equal(shuffled[:, 28:], image[:, 28:])


def test_smooth_noise_has_less_high_frequency_than_white():
    rough, smooth = (f(KEYS[0], (64, 64, 3), LOW, HIGH) for f in (white_noise, smooth_noise))
    step = [float(np.abs(np.diff(x, axis=0)).mean() / np.std(x)) for x in (rough, smooth)]
    assert step[1] < step[0] / 5


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


def test_a_batch_is_its_images_one_by_one(rng):
    batch = jnp.asarray(rng.uniform(size=(4, *SHAPE)), jnp.float32)
    together = jax.jit(jax.vmap(lambda image: blur(image, 2.0)))(batch)
    assert_close(together, [blur(image, 2.0) for image in batch])
