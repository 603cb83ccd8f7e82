"""Attribution by replacing parts of an image and watching the classifier: occlusion and RISE.

Perturbed images are classified a few at a time, so that memory does not grow with their number; several
photos at once are a ``jax.vmap`` of these functions.
"""

import jax
import jax.numpy as jnp
from jax import Array

from amx_jax.classifiers.classifier import Apply, Params
from amx_jax.errors import ConfigError
from amx_jax.evaluate.gradients import score
from amx_jax.lift import in_chunks
from amx_jax.masks.composition import compose, resize
from amx_jax.objective.decision import Decision, log_odds

CHUNK = 16  # perturbed images that an accelerator classifies at a time


def occlusion(
    apply: Apply,
    params: Params,
    image: Array,
    decision: Decision,
    baseline: Array,
    window: int,
    stride: int,
) -> Array:
    """Occlusion: the mean of score(x) − score(x without a window), over the windows on a pixel.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: x, normalised, ``(H, W, C)``.
        decision: what is explained.
        baseline: what a window is filled with; anything that broadcasts to x, in the same space.
        window: side of the square windows, in pixels, 1 … min(H, W).
        stride: from one window to the next, 1 … window; the last ones may reach beyond the image.

    Returns:
        ``(H, W)`` float32; larger is more important.

    Raises:
        ConfigError: a window or stride outside its range.

    Examples:
        >>> def apply(params, image):
        ...     return image.sum(axis=(0, 1)), {}
        >>> image = jnp.array([[[1.0], [2.0], [4.0]], [[0.0], [0.0], [0.0]]])
        >>> occlusion(apply, None, image, Decision(0), jnp.zeros(1), window=2, stride=1)[0].tolist()
        [3.0, 4.5, 6.0]

    Reference:
        Zeiler and Fergus, *Visualizing and Understanding Convolutional Networks*,
        `arXiv 1311.2901 <https://arxiv.org/abs/1311.2901>`_
    """
    shape = image.shape[:2]
    if not 1 <= window <= min(shape):
        raise ConfigError(f"window: found {window}, expected 1 to {min(shape)}, the image's side")
    if not 1 <= stride <= window:
        raise ConfigError(f"stride: found {stride}, expected 1 to {window}, the window")
    whole = score(apply(params, image)[0], decision)
    row, column = jnp.indices(shape)

    def inside(corner: Array) -> Array:
        top, left = corner
        covered = (row >= top) & (row < top + window) & (column >= left) & (column < left + window)
        return covered.astype(image.dtype)

    def drop(corner: Array) -> Array:
        seen = compose(image, 1 - inside(corner), baseline)
        return whole - score(apply(params, seen)[0], decision)

    def add(total: tuple[Array, Array], of: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        corner, lost = of
        drops, windows = total
        return (drops + lost * inside(corner), windows + inside(corner)), None

    counts = [-(-(side - window) // stride) + 1 for side in shape]
    corners = stride * jnp.indices(counts).reshape(2, -1).T
    nothing = jnp.zeros(shape, image.dtype)
    each = in_chunks(drop, corners, CHUNK)
    (drops, windows), _ = jax.lax.scan(add, (nothing, nothing), (corners, each))
    return (drops / windows).astype(jnp.float32)


def rise(
    apply: Apply,
    params: Params,
    image: Array,
    decision: Decision,
    key: Array,
    baseline: Array,
    masks: int = 512,
    cells: int = 7,
    keep: float = 0.5,
) -> Array:
    """RISE: 1 / (keep · n) Σ_i p(x seen through m_i) m_i over n random masks.

    p is the sigmoid of the decision's :func:`log_odds`: the target's softmax probability where all
    classes compete, its probability among the two where it is compared with a rival.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: x, normalised, ``(H, W, C)``.
        decision: what is explained.
        key: a PRNG key.
        baseline: what fills the rest; anything that broadcasts to x, in the same space.
        masks: n; each costs a forward pass.
        cells: as of :func:`rise_masks`.
        keep: likewise.

    Returns:
        ``(H, W)`` float32, at least 0; larger is more important.

    Examples:
        >>> def apply(params, image):  # sees the left half alone
        ...     return jnp.append(image[:, :4].sum(), 0.0), {}
        >>> image, key = jnp.ones((8, 8, 1)), jax.random.key(0)
        >>> heat = rise(apply, None, image, Decision(0), key, jnp.zeros(1), cells=4)
        >>> bool(heat[:, :4].mean() > heat[:, 4:].mean())
        True

    Reference:
        Petsiuk, Das and Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box Models*,
        `arXiv 1806.07421 <https://arxiv.org/abs/1806.07421>`_
    """
    height, width, _ = image.shape

    def mask(index: Array) -> Array:
        drawn = _rise_mask(jax.random.fold_in(key, index), cells, keep, (height, width))
        return drawn.astype(image.dtype)

    def probability(index: Array) -> Array:
        logits, _ = apply(params, compose(image, mask(index), baseline))
        return jax.nn.sigmoid(log_odds(logits, decision))

    def add(total: Array, of: tuple[Array, Array]) -> tuple[Array, None]:
        index, weight = of
        return total + weight * mask(index), None

    indices = jnp.arange(masks)
    each = in_chunks(probability, indices, CHUNK)
    # The masks again: drawing one costs next to nothing, keeping all does.
    total, _ = jax.lax.scan(add, jnp.zeros((height, width), image.dtype), (indices, each))
    return (total / (keep * masks)).astype(jnp.float32)


def rise_masks(key: Array, count: int, cells: int, keep: float, shape: tuple[int, int]) -> Array:
    """The masks of :func:`rise`: coarse grids of 0 and 1, enlarged and shifted.

    A grid is enlarged bilinearly to one cell more than the image on each axis, and the image lies in it
    at random, at up to a cell from its corner.

    Args:
        key: a PRNG key.
        count: how many.
        cells: on each side of a grid.
        keep: probability of a 1, in (0, 1].
        shape: ``(H, W)``.

    Returns:
        ``(count, H, W)`` float32 in [0, 1].

    Examples:
        >>> masks = rise_masks(jax.random.key(0), 100, cells=7, keep=0.5, shape=(28, 28))
        >>> masks.shape, round(float(masks.mean()), 1)
        ((100, 28, 28), 0.5)
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda key: _rise_mask(key, cells, keep, shape))(keys)


def _rise_mask(key: Array, cells: int, keep: float, shape: tuple[int, int]) -> Array:
    grid_key, shift_key = jax.random.split(key)
    height, width = (-(-side // cells) for side in shape)  # of a cell
    grid = jax.random.bernoulli(grid_key, keep, (cells, cells)).astype(jnp.float32)
    large = resize(grid, ((cells + 1) * height, (cells + 1) * width))
    shift = jax.random.randint(shift_key, (2,), 0, jnp.array([height, width]))
    return jax.lax.dynamic_slice(large, shift, shape)
