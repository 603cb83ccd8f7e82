"""Mask generators: pure functions of one image and its own parameters, whatever the sizes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from amx_jax.masks.generators import PATCH, autoencoder, free_grid

GRID = 7
BATCH = 3
WEIGHT = np.random.default_rng(0).normal(size=(GRID, GRID)).astype(np.float32)
IMAGES = (
    np.random.default_rng(1).uniform(-1, 1, (BATCH, PATCH * GRID, PATCH * GRID, 3)).astype(np.float32)
)
MAKERS = {"autoencoder": lambda grid: autoencoder(3, grid), "grid": free_grid}
both = pytest.mark.parametrize("name", MAKERS)


class Compiled:
    """A generator's functions, compiled once for all tests; the loss is any that needs all logits."""

    def __init__(self, generator):
        def apply(params, image):
            return generator.apply(params, generator.see(image))

        def loss(params, image):
            logits = apply(params, image)
            return jnp.sum(WEIGHT * logits**2), logits

        def second_of_batch(params, images):
            losses, _ = jax.vmap(loss)(params, images)
            return losses[1]

        self.init = jax.jit(jax.vmap(generator.init))
        self.logits = jax.jit(jax.vmap(apply))
        self.gradient = jax.jit(jax.grad(loss, has_aux=True))
        self.gradients = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))
        self.gradient_of_second = jax.jit(jax.grad(second_of_batch))


@cache
def compiled(name):
    return Compiled(MAKERS[name](GRID))


def parameters(name, *seeds):
    """Of one image for each seed."""
    return compiled(name).init(jnp.stack([jax.random.key(seed) for seed in seeds]))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@both
def test_the_same_key_image_and_parameters_give_the_same_bits(name):
    runs = [compiled(name).gradients(parameters(name, 0, 1, 2), IMAGES) for _ in range(2)]
    for first, second in zip(*map(leaves, runs), strict=True):
        np.testing.assert_array_equal(first, second)


@both
def test_another_key_gives_other_parameters(name):
    drawn = [leaf for leaf in leaves(parameters(name, 0, 1)) if leaf.any()]  # the others start at zero
    assert drawn
    assert not any(np.array_equal(first, second) for first, second in drawn)


@both
def test_logits_and_gradients_of_a_batch_are_those_of_its_images_alone(name):
    params = parameters(name, 0, 1, 2)
    together = leaves(compiled(name).gradients(params, IMAGES))
    for i, image in enumerate(IMAGES):
        alone = leaves(compiled(name).gradient(jax.tree.map(lambda leaf, i=i: leaf[i], params), image))
        for batched, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(batched[i], single, rtol=1e-3, atol=1e-4 * np.abs(single).max())


@both
def test_another_neighbour_changes_no_bit_of_an_images_logits_and_gradients(name):
    others = IMAGES.copy()
    others[1] = -IMAGES[1]
    before = leaves(compiled(name).gradients(parameters(name, 0, 1, 2), IMAGES))
    after = leaves(compiled(name).gradients(parameters(name, 0, 9, 2), others))
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first[[0, 2]], second[[0, 2]])
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True))


@both
def test_an_images_loss_moves_its_own_parameters_only(name):
    params = parameters(name, 0, 1, 2)
    gradients = compiled(name).gradient_of_second(params, IMAGES)
    own, _ = compiled(name).gradients(params, IMAGES)
    for leaf, expected in zip(leaves(gradients), leaves(own), strict=True):
        assert not leaf[[0, 2]].any()
        scale = np.abs(expected[1]).max()
        np.testing.assert_allclose(leaf[1], expected[1], rtol=1e-3, atol=1e-4 * scale)


@both
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_logits_and_gradients_are_finite_for_a_constant_image(name, value):
    constant = np.full_like(IMAGES, value)
    assert all(
        np.isfinite(x).all()
        for x in leaves(compiled(name).gradients(parameters(name, 0, 1, 2), constant))
    )


# --- the autoencoder's layout, written out in float64 ---------------------------------------------


def slow_block(x, kernel, bias, stride=1):
    """SAME convolution, instance norm, ReLU."""
    sizes = [-(-n // stride) for n in x.shape[:2]]
    totals = [max((m - 1) * stride + 3 - n, 0) for m, n in zip(sizes, x.shape[:2], strict=True)]
    padded = np.pad(x, [*((t // 2, t - t // 2) for t in totals), (0, 0)])
    out = np.zeros((*sizes, kernel.shape[-1]))
    for i, j in np.ndindex(*sizes):
        window = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
        out[i, j] = np.einsum("ijc,ijcd->d", window, kernel)
    out = (out - out.mean((0, 1))) / np.sqrt(out.var((0, 1)) + 1e-5)
    return np.maximum(out + bias, 0)


def slow_autoencoder(params, image):
    """Of an image that already has four pixels a cell."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(params))

    def block(part, number, x, stride=1):
        return slow_block(x, params[part][number]["kernel"], params[part][number]["bias"], stride)

    def doubled(x, like):
        return np.kron(x, np.ones((2, 2, 1)))[: like.shape[0], : like.shape[1]]

    cells = np.stack(np.split(np.stack(np.split(image, GRID)), GRID, axis=2))  # column, row, 4, 4, c
    first = block("encode", 0, np.swapaxes(cells, 0, 1).reshape(GRID, GRID, -1))
    second = block("encode", 1, first, stride=2)
    x = block("encode", 2, second, stride=2)
    x = block("decode", 0, np.concatenate([doubled(x, second), second], axis=-1))
    x = block("decode", 1, np.concatenate([doubled(x, first), first], axis=-1))
    return x @ params["head"][:, 0] + 60 * params["free"]


def test_the_autoencoder_is_laid_out_as_documented():
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32),  # no zero biases
        parameters("autoencoder", 0, 1, 2),
    )
    logits = compiled("autoencoder").logits(params, IMAGES)
    for i, image in enumerate(IMAGES):
        expected = slow_autoencoder(jax.tree.map(lambda leaf, i=i: leaf[i], params), image)
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-3)


# --- images ---------------------------------------------------------------------------------------


def test_the_autoencoder_looks_at_the_image_and_the_grid_does_not():
    for name in MAKERS:
        first, second, _ = compiled(name).logits(parameters(name, 0, 0, 0), IMAGES)
        assert np.array_equal(first, second) == (name == "grid")


@both
def test_every_cell_has_a_logit_that_can_be_moved_alone(name):
    params = parameters(name, 0, 0, 0)

    def move(leaf):  # the free logits' cell (2, 5), of the second image
        return leaf.at[1, 2, 5].add(1.0) if leaf.shape[1:] == (GRID, GRID) else leaf

    same = np.broadcast_to(IMAGES[0], IMAGES.shape)
    logits = compiled(name).logits(jax.tree.map(move, params), same)
    moved = np.zeros((GRID, GRID), bool)
    moved[2, 5] = True
    difference = np.asarray(logits[1] - logits[0])
    assert difference[moved] > 1
    np.testing.assert_allclose(difference[~moved], 0, atol=1e-5)


@both
@pytest.mark.parametrize("grid", [4, 7, 28, 33])
def test_images_of_any_size_give_logits_of_the_grids_size(name, grid):
    generator = MAKERS[name](grid)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    views = set()
    for shape in ((32, 32, 3), (224, 224, 3), (260, 260, 3), (48, 20, 3)):
        seen = jax.eval_shape(generator.see, jax.ShapeDtypeStruct(shape, jnp.float32))
        logits = jax.eval_shape(generator.apply, params, seen)
        assert (logits.shape, logits.dtype) == ((grid, grid), jnp.float32)
        views.add(seen.shape)
    assert len(views) == 1  # the image's size ends here: a step depends on the grid's alone


def test_an_enlarged_image_has_the_logits_of_the_image():
    """The autoencoder sees four pixels a cell: tiles of one colour look alike at any size."""
    position = ((np.arange(260) + 0.5) * PATCH * GRID / 260).astype(int)
    params = parameters("autoencoder", 0, 1, 2)
    logits = compiled("autoencoder").logits
    enlarged = logits(params, IMAGES[:, position][:, :, position])
    np.testing.assert_allclose(enlarged, logits(params, IMAGES), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "gain"), [((3, 3, 48, 16), 2), ((3, 3, 32, 64), 2), ((3, 3, 96, 32), 2), ((16, 1), 1)]
)
def test_kernels_start_with_the_variance_of_hes_rule_and_the_head_of_lecuns(shape, gain):
    drawn = parameters("autoencoder", *range(200 if shape == (16, 1) else 3))
    kernels = np.concatenate([leaf.ravel() for leaf in leaves(drawn) if leaf.shape[1:] == shape])
    deviation = np.sqrt(gain / np.prod(shape[:-1]))
    assert np.std(kernels) == pytest.approx(deviation, rel=0.05)
    assert abs(np.mean(kernels)) < 4 * deviation / np.sqrt(kernels.size)
