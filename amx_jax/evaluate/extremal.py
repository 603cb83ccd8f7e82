"""Attribution by extremal perturbations: of the smooth masks of an area, the one with the best score.

A mask's parameters are a coarse grid; :func:`smooth_mask` enlarges it, :func:`perturb` removes what the
mask leaves out, :func:`area_loss` pulls the mask towards its area.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Apply, Params
from amx_jax.evaluate.gradients import score
from amx_jax.lift import in_chunks
from amx_jax.objective.decision import Decision

# As published, for inputs of 224 pixels.
LEARNING_RATE, MOMENTUM = 0.01, 0.9
AREA_WEIGHT, AREA_GROWTH = 300.0, 1.0035  # at first, and what it is multiplied by in a step
COLDNESS = 20.0  # of the maximum over neighbouring cells
LEVELS = 8  # of the pyramid

Kind = Literal["blur", "fade"]


def extremal_perturbation(
    apply: Apply,
    params: Params,
    image: Array,
    decision: Decision,
    baseline: Array,
    areas: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    steps: int = 800,
    step: int = 7,
    sigma: float = 21.0,
    kind: Kind = "blur",
    max_blur: float = 20.0,
    mirror: bool = True,
) -> Array:
    """Extremal perturbations: Σ over areas a of the mask argmax_m score(x seen through m) of area a.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: x, normalised, ``(H, W, C)``.
        decision: what is explained.
        baseline: as of :func:`pyramid`.
        areas: shares of the mask with its margin (:func:`smooth_mask`), in (0, 1).
        steps: of gradient descent for each area; each costs a forward and a backward pass.
        step: side of the grid's cells, in pixels.
        sigma: reach of a cell, in pixels.
        kind: as of :func:`pyramid`.
        max_blur: likewise.
        mirror: whether every other step sees the image mirrored: for classes that look the same so.

    Returns:
        ``(H, W)`` float32 from 0 to the number of areas: a pixel that is already in the mask of a small
        area is important.

    Examples:
        >>> def apply(params, image):  # sees the upper half alone
        ...     return 50 * image[:8].mean(keepdims=True)[0, 0], {}
        >>> heat = extremal_perturbation(
        ...     apply, None, jnp.ones((16, 16, 1)), Decision(0), jnp.zeros(1),
        ...     areas=(0.3,), steps=100, step=2, sigma=4.0, kind="fade",
        ... )
        >>> bool(heat[:8].mean() > 2 * heat[8:].mean())
        True

    Reference:
        Fong, Patrick and Vedaldi, *Understanding Deep Networks via Extremal Perturbations and Smooth
        Masks*, `arXiv 1910.08485 <https://arxiv.org/abs/1910.08485>`_
    """
    levels = pyramid(image, baseline, kind, max_blur)
    masks = extremal_masks(apply, params, levels, decision, areas, steps, step, sigma, mirror)
    return jnp.sum(masks, axis=0).astype(jnp.float32)


def extremal_masks(
    apply: Apply,
    params: Params,
    levels: Array,
    decision: Decision,
    areas: Sequence[float],
    steps: int,
    step: int,
    sigma: float,
    mirror: bool = True,
) -> Array:
    """The mask of each area after ``steps`` of :func:`ascend`, from a grid of ones.

    All pixels are tied at first, so that rounding decides which of them the area's zeros fall to: as in
    the authors' program, another machine may find another mask.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        levels: of the image, ``(L, H, W, C)``, as of :func:`pyramid`.
        decision: what is explained.
        areas: as of :func:`extremal_perturbation`; so are the rest.
        steps: of the ascent.
        step: side of the grid's cells.
        sigma: reach of a cell.
        mirror: whether steps 0, 2, … see the image mirrored.

    Returns:
        ``(areas, H, W)`` in [0, 1].
    """
    _, height, width, _ = levels.shape
    shape = height, width
    grid = jnp.ones([-(-side // step) for side in shape], levels.dtype)
    whole = jax.eval_shape(lambda grid: smooth_mask(grid, shape, step, sigma), grid).size
    zeros = jnp.array([int(whole * (1 - area)) for area in areas])
    start = Ascent(grid, jnp.zeros_like(grid), jnp.zeros(shape, levels.dtype))

    def search(zeros: Array) -> Array:
        def advance(state: Ascent, time: Array) -> tuple[Ascent, None]:
            return ascend(
                apply, params, levels, decision, zeros, state, time, step, sigma, mirror
            ), None

        return jax.lax.scan(advance, start, jnp.arange(steps))[0].mask

    return in_chunks(search, zeros, len(areas))


class Ascent(NamedTuple):
    """Where the search for a mask is.

    Attributes:
        grid: the mask's parameters, ``(⌈H / step⌉, ⌈W / step⌉)`` in [0, 1].
        velocity: the mean of their gradients so far.
        mask: of the grid before this one, ``(H, W)``.
    """

    grid: Array
    velocity: Array
    mask: Array


def ascend(
    apply: Apply,
    params: Params,
    levels: Array,
    decision: Decision,
    zeros: Array | int,
    state: Ascent,
    time: Array,
    step: int,
    sigma: float,
    mirror: bool = True,
) -> Ascent:
    """A step up score − 300 · 1.0035ᵗ · :func:`area_loss`, with momentum, within [0, 1].

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        levels: of the image, ``(L, H, W, C)``, as of :func:`pyramid`.
        decision: what is explained.
        zeros: as of :func:`area_loss`.
        state: where the search is; its mask is not looked at.
        time: t = 0, 1, …
        step: as of :func:`smooth_mask`.
        sigma: likewise.
        mirror: whether steps 0, 2, … see the image mirrored.

    Returns:
        Where the search is then.
    """
    _, height, width, _ = levels.shape
    margin = round(sigma)

    def loss(grid: Array) -> tuple[Array, Array]:
        whole = smooth_mask(grid, (height, width), step, sigma)
        mask = whole[margin : margin + height, margin : margin + width]
        seen = perturb(levels, mask)
        if mirror:
            seen = jnp.where(time % 2 == 0, seen[:, ::-1], seen)
        weight = AREA_WEIGHT * AREA_GROWTH ** jnp.asarray(time, grid.dtype)
        return weight * area_loss(whole, zeros) - score(apply(params, seen)[0], decision), mask

    gradient, mask = jax.grad(loss, has_aux=True)(state.grid)
    damped = MOMENTUM * state.velocity + (1 - MOMENTUM) * gradient
    velocity = jnp.where(time == 0, gradient, damped)  # the first gradient counts in full
    return Ascent(jnp.clip(state.grid - LEARNING_RATE * velocity, 0, 1), velocity, mask)


def smooth_mask(grid: Array, shape: tuple[int, int], step: int, sigma: float) -> Array:
    """A coarse grid g enlarged by a smooth maximum over cells c near a pixel u.

    m_u = Σ_c s_uc exp(20 s_uc) / Σ_c exp(20 s_uc), s_uc = g_c k(‖u − c‖ / sigma), and the kernel is
    k(z) = exp(−2 max(z − ½, 0)²). Cells beyond the grid are 0.

    Args:
        grid: g, ``(⌈H / step⌉, ⌈W / step⌉)`` in [0, 1].
        shape: ``(H, W)``.
        step: side of a cell, in pixels.
        sigma: reach of a cell, in pixels.

    Returns:
        m in [0, 1], with a margin of about ``sigma`` on all sides: the image begins at
        ``round(sigma)`` on both axes.

    Examples:
        >>> grid = jnp.zeros((4, 4)).at[1, 1].set(1.0)
        >>> mask = smooth_mask(grid, (8, 8), step=2, sigma=4.0)[4:12, 4:12]
        >>> [round(float(mask[2, column]), 2) for column in range(8)]  # the cell is at column 2
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.88, 0.61, 0.3]
    """
    radius = 1 + math.ceil(sigma / step)
    padding = 1 + math.ceil(2 * sigma / step)
    rows, columns = (n + 2 * (padding - radius) for n in grid.shape)
    # Pixels and cells on one axis: within a cell, the distances repeat from cell to cell.
    offset = np.arange(step)[:, None] - sigma - step * (np.arange(2 * radius + 1) - padding)
    square = (offset**2).astype(np.float32)
    top, left = np.indices((2 * radius + 1, 2 * radius + 1)).reshape(2, -1)
    distance = np.sqrt(square[:, None, top] + square[:, left]) / sigma
    kernels = np.exp(-2 * np.maximum(distance - 0.5, 0) ** 2).reshape(step * step, -1)
    padded = jnp.pad(grid, padding)
    near = [padded[i : i + rows, j : j + columns].ravel() for i, j in zip(top, left, strict=True)]
    cells = jnp.stack(near)

    def at(kernel: Array) -> Array:
        """The mask at one place in every cell, from the cells near it."""
        share = cells * kernel[:, None]
        weight = jnp.exp(COLDNESS * share)
        return jnp.sum(share * weight, axis=0) / jnp.sum(weight, axis=0)

    # Computed again in the backward pass: all neighbours together are 80 times the mask.
    places = jax.lax.map(jax.checkpoint(at), jnp.asarray(kernels, grid.dtype))
    mask = places.reshape(step, step, rows, columns).transpose(2, 0, 3, 1)
    mask = mask.reshape(rows * step, columns * step)
    return mask[: (rows - 1) * step + 1, : (columns - 1) * step + 1]


def area_loss(mask: Array, zeros: Array | int) -> Array:
    """Mean of (m sorted − r)², r = 0 for the smallest ``zeros`` pixels, 1 for the rest.

    Args:
        mask: m, ``(H, W)`` in [0, 1].
        zeros: how many pixels are wanted to be 0.

    Returns:
        A scalar, 0 for a mask of that many zeros and ones besides.

    Examples:
        >>> mask = jnp.array([[0.0, 1.0], [0.0, 0.0]])
        >>> float(area_loss(mask, 3)), float(area_loss(mask, 2))
        (0.0, 0.25)
    """
    reference = 1 - _smallest(jax.lax.stop_gradient(mask).ravel(), zeros)
    return jnp.mean((mask.ravel() - reference) ** 2)


def _smallest(values: Array, count: Array | int) -> Array:
    """1 where one of the ``count`` smallest values is, of equal ones the first, else 0.

    By bisection: a loss needs no order, and XLA's sort is slow on a CPU.

    Args:
        values: ``(n,)``, not negative.
        count: 0 … n.
    """
    bits = 8 * values.dtype.itemsize
    # Read as whole numbers, floats that are not negative keep their order.
    order = jax.lax.bitcast_convert_type(values, f"int{bits}")

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        few, enough = ends  # as bounds: so many values are at most this
        middle = few + (enough - few) // 2
        holds = jnp.sum(order <= middle) >= count
        return jnp.where(holds, few, middle), jnp.where(holds, middle, enough)

    few, last = jax.lax.fori_loop(0, bits, halve, (-jnp.ones_like(order[0]), order.max()))
    below, tied = order <= few, order == last
    chosen = below | (tied & (jnp.cumsum(tied) <= count - jnp.sum(below)))
    return chosen.astype(values.dtype)


def pyramid(image: Array, baseline: Array, kind: Kind = "blur", max_blur: float = 20.0) -> Array:
    """An image more and more itself, in ``LEVELS`` = 8 levels.

    Level l is the image blurred by a Gaussian of max_blur · (1 − l / 7) pixels, the baseline beyond its
    border; or, to ``fade``, b + l / 7 · (x − b).

    Args:
        image: x, ``(H, W, C)``.
        baseline: b, anything that broadcasts to x, in the same space.
        kind: ``blur`` or ``fade``.
        max_blur: of the first level, in pixels.

    Returns:
        ``(8, H, W, C)``; the last is the image.

    Examples:
        >>> pyramid(jnp.full((1, 1, 1), 7.0), jnp.zeros(1), "fade").ravel().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    shares = [level / (LEVELS - 1) for level in range(LEVELS)]
    difference = image - baseline

    def blurred(share: float) -> Array:
        rows, columns = (_blur_matrix(size, (1 - share) * max_blur) for size in image.shape[:2])
        return jnp.einsum("ij,jkc,lk->ilc", rows, difference, columns, precision="highest")

    level = blurred if kind == "blur" else lambda share: difference * share
    return jnp.stack([baseline + level(share) for share in shares])


def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """A Gaussian blur of one axis, zeros beyond the border; cut off at 4 sigma."""
    reach = math.ceil(4 * sigma)
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    spread = 2 * max(sigma, 1e-9) ** 2
    total = np.exp(-(np.arange(-reach, reach + 1) ** 2) / spread).sum()
    return np.where(distance <= reach, np.exp(-(distance**2) / spread) / total, 0).astype(np.float32)


def perturb(levels: Array, mask: Array) -> Array:
    """Each pixel from the level that the mask says, linearly between levels.

    Args:
        levels: ``(L, H, W, C)``, as of :func:`pyramid`.
        mask: ``(H, W)`` in [0, 1]: 0 takes the first level, 1 the last.

    Returns:
        ``(H, W, C)``.

    Examples:
        >>> levels = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 1, 2, 1))
        >>> perturb(levels, jnp.array([[0.25, 1.0]])).ravel().tolist()
        [0.5, 2.0]
    """
    place = mask * (levels.shape[0] - 1)
    below = jnp.floor(place)
    index = jnp.broadcast_to(below.astype(jnp.int32)[..., None], levels.shape[1:])
    low = jax.lax.select_n(index, *levels)
    high = jax.lax.select_n(index, *levels[1:], levels[-1])
    return low + (place - below)[..., None] * (high - low)
