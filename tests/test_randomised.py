"""The randomised classifier: nothing learned is left, and it still is a classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from amx_jax import Classifier, Preprocess, load_classifier
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.evaluate.randomised import randomised

KEY = jax.random.key(0)


def with_params(params):
    """A classifier that ignores them."""
    return Classifier(
        apply=lambda params, image: image.mean(axis=(0, 1)),
        params=params,
        preprocess=Preprocess(size=4, resize=4, mean=0.0, scale=255.0),
    )


@pytest.fixture(scope="module")
def kernel():
    """Far from normal: two peaks, and a place for each."""
    rng = np.random.default_rng(0)
    return jnp.asarray(np.sort(rng.exponential(0.3, (8, 3, 50)) + 2 * rng.integers(2, size=(8, 3, 50))))


def test_kernels_are_normal_with_the_leafs_own_moments_and_forget_their_places(kernel):
    drawn = np.asarray(randomised(with_params({"kernel": kernel}), KEY).params["kernel"]).ravel()
    mean, std = np.mean(kernel, dtype=float), np.std(kernel, dtype=float)
    assert stats.kstest(drawn, "norm", (mean, std)).pvalue > 0.01
    assert stats.kstest(np.ravel(kernel), "norm", (mean, std)).pvalue < 1e-6
    assert abs(np.corrcoef(drawn, np.ravel(kernel))[0, 1]) < 0.1


def test_vectors_keep_their_entries_and_lose_their_order():
    vector = jnp.arange(200.0) ** 2
    drawn = np.asarray(randomised(with_params({"bias": vector}), KEY).params["bias"])
    np.testing.assert_array_equal(np.sort(drawn), vector)
    assert abs(stats.spearmanr(drawn, vector).statistic) < 0.2


def test_numbers_integers_and_keys_stay():
    params = {
        "scale": jnp.float32(3),
        "python": 2.5,
        "table": jnp.arange(12).reshape(3, 4),
        "rng": jax.random.key(5),
        "flag": jnp.array([True, False]),
    }
    drawn = randomised(with_params(params), KEY).params
    assert jax.tree.all(jax.tree.map(lambda a, b: np.all(a == b), drawn, params))


def test_shapes_types_and_structure_stay(tiny):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params)
    params = {"full": tiny.params, "half": half, "list": [jnp.ones((2, 2)), None]}
    before, after = (jax.tree.map(jnp.asarray, some) for some in (params, drawn_of(params)))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def drawn_of(params):
    return randomised(with_params(params), KEY).params


def test_arrays_of_numpy_are_drawn_like_those_of_jax(tiny):
    np_params = jax.tree.map(np.asarray, tiny.params)
    jax.tree.map(np.testing.assert_array_equal, drawn_of(np_params), drawn_of(tiny.params))


def test_moments_of_half_precision_do_not_overflow():
    """The square of 300 is beyond float16."""
    kernel = jnp.full((100, 100), 300, jnp.float16).at[::2].set(-300)
    drawn = np.asarray(drawn_of([kernel])[0], float)
    assert drawn.mean() == pytest.approx(0, abs=10) and drawn.std() == pytest.approx(300, abs=10)


def test_leaves_are_drawn_independently_and_the_key_decides(tiny):
    same = {"a": tiny.params["head"], "b": tiny.params["head"]}
    drawn, again = drawn_of(same), drawn_of(same)
    other = randomised(with_params(same), jax.random.key(1)).params
    np.testing.assert_array_equal(drawn["a"], again["a"])
    for one in (drawn["b"], other["a"]):
        assert abs(np.corrcoef(np.ravel(drawn["a"]), np.ravel(one))[0, 1]) < 0.1


def test_only_parameters_and_name_change(tiny):
    before = jax.tree.map(np.array, tiny.params)
    other = randomised(tiny, KEY, name_suffix="control")
    assert other.name == "tiny_control"
    kept = {field.name for field in dataclasses.fields(Classifier)} - {"params", "name"}
    assert all(getattr(other, name) == getattr(tiny, name) for name in kept)
    jax.tree.map(np.testing.assert_array_equal, tiny.params, before)


def test_the_tiny_classifier_decides_otherwise(tiny, photos):
    other = randomised(tiny, KEY)
    images = tiny.preprocess.normalize(photos.astype(np.float32))
    before, after = (np.stack([c.apply(c.params, image)[0] for image in images]) for c in (tiny, other))
    assert np.isfinite(after).all()
    assert (before.argmax(1) != after.argmax(1)).any()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_efficientnet_lite0_stays_finite_and_takes_every_bundled_photo_for_something_else(seed):
    learned = load_classifier("efficientnet_lite0")
    other = randomised(learned, jax.random.key(seed))
    crops = np.stack([learned.preprocess.crop(read_photo(photo)) for photo in bundled_photos()])
    images = learned.preprocess.normalize(crops.astype(np.float32))
    classify = jax.jit(lambda params: jax.lax.map(lambda x: learned.apply(params, x)[0], images))
    before, after = np.asarray(classify(learned.params)), np.asarray(classify(other.params))
    assert np.isfinite(after).all()
    assert 1 < abs(after).max() < 100  # in range: neither vanished nor exploded
    assert (before.argmax(1) != after.argmax(1)).all()
    assert abs(after - after[0]).max() < 5  # and it hardly depends on the photo any more
