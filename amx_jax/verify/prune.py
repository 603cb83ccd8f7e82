"""Pruning: remove cells from a sufficient mask until no single one can go.

The search is a coroutine for one image (:mod:`amx_jax.verify.pool`): it yields candidate masks and
receives each one's margin, and knows nothing of classifiers or batches.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Search

# Candidates of one image tested against the same mask before the next is chosen. More would fill
# batches with fewer images, but with 8 they cost a quarter more calls than with 4 for the same area.
WAVE = 2
# Squares of this many cells are removed first, until no single one can go: what is left is then a
# few coarse pieces, trimmed, and not many crumbs (median of 5 regions instead of 7).
SCALES = (4, 2, 1)

WIDER = 1.25  # the factor of the area from one candidate of `widen` to the next


class Pruned(NamedTuple):
    """The outcome of one search.

    Attributes:
        mask: the pruned mask, ``(H, W)`` bool.
        calls: classifier forward passes spent on it.
        minimal: no cell of the mask can be removed alone without losing sufficiency.
    """

    mask: np.ndarray
    calls: int
    minimal: bool


def cell_map(shape: tuple[int, int], cell: int) -> np.ndarray:
    """The number of the ``cell × cell`` square that each pixel lies in, ``(H, W)``.

    Examples:
        >>> cell_map((2, 4), 2).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    rows, columns = (np.arange(length) // cell for length in shape)
    return rows[:, None] * (columns[-1] + 1) + columns[None, :]


def components(mask: np.ndarray) -> int:
    """The number of 4-connected regions of a mask.

    Examples:
        >>> components(np.array([[True, False], [False, True]]))
        2
    """
    return int(ndimage.label(mask)[1])


def widen(mask: np.ndarray, ranking: np.ndarray) -> Search[tuple[np.ndarray, bool]]:
    """The mask if it is sufficient, else the first that is of ever larger ones.

    A mask found in lower precision may lie just on the wrong side of the decision.

    Args:
        mask: ``(H, W)`` bool.
        ranking: ``(H, W)``, larger is more important; what is added comes in its order.

    Yields:
        Candidate masks, as :func:`prune` does.

    Returns:
        The mask, and whether it is sufficient; the whole image is the last that is tried.

    Examples:
        >>> from amx_jax.verify.pool import Judged, Pool
        >>> def judge(owners, masks):  # needs half of the pixels
        ...     margins = np.array([mask.mean() - 0.5 for mask in masks])
        ...     return Judged(margins, margins > 0)
        >>> pool = Pool(judge, batch_size=8)
        >>> pool.add("photo", widen(np.eye(4, dtype=bool), np.arange(16.0).reshape(4, 4)))
        >>> [(name, (widened, sufficient))] = pool.drain()
        >>> int(widened.sum()), sufficient
        (9, True)
    """
    if (yield [mask]).margins[0] > MARGIN:
        return mask, True
    order = np.argsort(-np.where(mask, np.inf, ranking).ravel(), kind="stable")
    larger, count = [], max(int(mask.sum()), 1)
    while count < mask.size:
        count = min(int(np.ceil(WIDER * count)), mask.size)
        flat = np.zeros(mask.size, bool)
        flat[order[:count]] = True
        larger.append(flat.reshape(mask.shape))
    for wider in larger:  # one by one: the first is nearly always enough
        if (yield [wider]).margins[0] > MARGIN:
            return wider, True
    return mask, False


def prune(mask: np.ndarray, ranking: np.ndarray, cell: int) -> Search[Pruned]:
    """Search for a 1-minimal sufficient mask inside a sufficient one.

    From coarse to fine: whole connected components (crumbs go first), the smallest sufficient
    prefix of the ranking, then squares of 4, 2 and 1 cells. At each scale every square is tried
    alone; those that can go are removed together, as many as keep the label, safest first. This
    repeats until every remaining square has been tried against the final mask and none can go.

    Args:
        mask: ``(H, W)`` bool, sufficient.
        ranking: ``(H, W)``, larger is more important; the order of the prefix search.
        cell: side of the removed squares, in pixels.

    Yields:
        Candidate masks, and expects what the classifier says of them: sufficient is a margin above
        ``MARGIN``.

    Returns:
        The pruned mask.

    Examples:
        >>> from amx_jax.verify.pool import Judged, Pool
        >>> def judge(owners, masks):  # needs the pixel in the corner and nothing else
        ...     margins = np.where([mask[0, 0] for mask in masks], 1.0, -1.0)
        ...     return Judged(margins, margins > 0)
        >>> pool = Pool(judge, batch_size=8)
        >>> pool.add("photo", prune(np.ones((8, 8), bool), np.zeros((8, 8)), cell=2))
        >>> [(name, pruned)] = pool.drain()
        >>> name, pruned.mask.sum(), pruned.minimal
        ('photo', np.int64(4), True)

    Reference: deletion to 1-minimality as in Zeller and Hildebrandt (2002), delta debugging.
    """
    calls = 0

    def test(candidates: list[np.ndarray]):
        nonlocal calls
        calls += len(candidates)
        return (yield candidates).margins

    mask = yield from _keep_largest_components(mask, test)
    mask = yield from _keep_prefix(mask, ranking, cell_map(mask.shape, cell), test)
    for scale in SCALES:
        mask = yield from _remove_squares(mask, cell_map(mask.shape, cell * scale), test)
    return Pruned(mask, calls, minimal=True)


def _keep_largest_components(mask, test):
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())[1:]
    largest = np.argsort(-sizes, kind="stable") + 1
    candidates = [np.isin(labels, largest[:n]) for n in (1, 2, 4) if n < count]
    if candidates:
        passed = (yield from test(candidates)) > MARGIN
        if passed.any():
            return candidates[int(np.argmax(passed))]
    return mask


def _keep_prefix(mask, ranking, cells, test):
    """The smallest sufficient of three prefixes of the cells, ordered by their mean ranking."""
    present = np.unique(cells[mask])
    means = ndimage.mean(np.where(mask, ranking, 0), cells, present)
    order = present[np.argsort(-means, kind="stable")]
    sizes = [size for size in (len(order) * k // 4 for k in (1, 2, 3)) if size]
    candidates = [mask & np.isin(cells, order[:size]) for size in sizes]
    if candidates:
        passed = (yield from test(candidates)) > MARGIN
        if passed.any():
            return candidates[int(np.argmax(passed))]
    return mask


def _remove_squares(mask, cells, test):
    """Remove squares, several at a time, until each has been tried alone and none can go."""
    margin_without: dict[int, float] = {}
    untried = np.unique(cells[mask]).tolist()
    wave = len(untried)  # the first time all of them, to learn their margins
    while untried:
        batch, untried = untried[:wave], untried[wave:]
        margins = yield from test([mask & (cells != number) for number in batch])
        margin_without.update(zip(batch, margins.tolist(), strict=True))
        free = [number for number in batch if margin_without[number] > MARGIN]
        if free:
            free.sort(key=lambda number: -margin_without[number])
            mask = yield from _remove_jointly(mask, cells, free, test)
            untried = sorted(
                np.unique(cells[mask]).tolist(), key=lambda number: -margin_without[number]
            )
            wave = WAVE
    return mask


def _remove_jointly(mask, cells, free, test):
    """Remove the longest tested prefix of ``free`` that leaves the mask sufficient (at least one)."""
    done = 1  # the safest alone is known to be free
    bound = len(free)
    while bound > done:
        sizes = np.unique(np.linspace(done, bound, 4).round().astype(int)[1:])
        sizes = sizes[sizes > done]
        margins = yield from test([mask & ~np.isin(cells, free[:size]) for size in sizes])
        passed = np.flatnonzero(margins > MARGIN)
        if not len(passed):
            bound = sizes[0] - 1
            continue
        best = passed[-1]
        done = sizes[best]
        bound = sizes[best + 1] - 1 if best + 1 < len(sizes) else done
    return mask & ~np.isin(cells, free[:done])
