"""Pruning: remove cells from a mask that holds until no single one can go.

The search is a coroutine for one image (:mod:`amx_jax.verify.pool`): it yields candidate masks and
receives each one's score, and knows nothing of classifiers or batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from amx_jax.config import Config
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.notion import Notion
from amx_jax.verify.pool import Search

# Candidates of one image tested against the same mask before the next is chosen. More would fill
# batches with fewer images, but with 8 they cost a quarter more calls than with 4 for the same area.
WAVE = 2
# Squares of this many cells are removed first, until no single one can go: what is left is then a
# few coarse pieces, trimmed, and not many crumbs (median of 5 regions instead of 7).
SCALES = (4, 2, 1)

WIDER = 1.25  # the factor of the area from one candidate of `widen` to the next
FINER = 1.1  # likewise of `smallest_prefix`
LEAST = 0.005  # its first area


class Pruned(NamedTuple):
    """The outcome of one search.

    Attributes:
        mask: the pruned mask, ``(H, W)`` bool.
        calls: classifier forward passes spent on it.
        minimal: no cell of the mask can be removed alone and the notion still holds.
        visited: masks on the way that held, from large to small; the last is ``mask``.
    """

    mask: np.ndarray
    calls: int
    minimal: bool
    visited: list[np.ndarray]


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


def smallest_prefix(
    rankings: Sequence[np.ndarray],
    notion: Notion,
    least: float = LEAST,
    within: np.ndarray | None = None,
) -> Search[tuple[int, np.ndarray, bool]]:
    """The smallest top share of any of some rankings that holds.

    Shares rise by a tenth from one to the next, and the first at which one holds is taken: a larger one
    need not hold, so bisection could miss it.

    Args:
        rankings: ``(H, W)`` each, larger is more important.
        notion: when a mask holds.
        least: the first share, above 0.
        within: ``(H, W)`` bool, the pixels that may be kept, of which shares are taken; None for all.

    Yields:
        Candidates, as :meth:`Notion.test` does.

    Returns:
        Which ranking, its mask ``(H, W)`` bool, and whether it holds; all that may be kept comes last.
    """
    orders = [_order(ranking, within) for ranking in rankings]
    size, share = len(orders[0]), least
    while True:
        share = min(share, 1.0)
        masks = [_first(order, round(share * size), rankings[0].shape) for order in orders]
        scores = yield from notion.test(masks[:1] if share == 1 else masks)
        best = int(np.argmax(scores))
        if scores[best] > MARGIN or share == 1:
            return best, masks[best], bool(scores[best] > MARGIN)
        share *= FINER


def widen(
    mask: np.ndarray,
    ranking: np.ndarray,
    notion: Notion | None = None,
    within: np.ndarray | None = None,
) -> Search[tuple[np.ndarray, bool]]:
    """The mask if it holds, else the first that does of ever larger ones.

    A mask found in lower precision may lie just on the wrong side of the decision.

    Args:
        mask: ``(H, W)`` bool.
        ranking: ``(H, W)``, larger is more important; what is added comes in its order.
        notion: when a mask holds; by default where it is sufficient on the stated colour.
        within: ``(H, W)`` bool, the pixels that may be kept; None for all.

    Yields:
        Candidates, as :meth:`Notion.test` does.

    Returns:
        The mask, and whether it holds; all that may be kept is the last that is tried.

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
    notion = notion or Notion(Config())
    if (yield from notion.test([mask]))[0] > MARGIN:
        return mask, True
    order = _order(np.where(mask, np.inf, ranking), within)
    larger, count = [], max(int(mask.sum()), 1)
    while count < len(order):
        count = min(int(np.ceil(WIDER * count)), len(order))
        larger.append(_first(order, count, mask.shape))
    for wider in larger:  # one by one: the first is nearly always enough
        if (yield from notion.test([wider]))[0] > MARGIN:
            return wider, True
    return mask, False


def _order(ranking: np.ndarray, within: np.ndarray | None) -> np.ndarray:
    """The pixels that may be kept, the most important first."""
    order = np.argsort(-ranking, axis=None, kind="stable")
    return order if within is None else order[within.ravel()[order]]


def _first(order: np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of the first pixels of an order."""
    mask = np.zeros(shape, bool)
    mask.flat[order[:count]] = True
    return mask


def step_back(
    visited: Sequence[np.ndarray],
    ranking: np.ndarray,
    notion: Notion,
    within: np.ndarray | None = None,
) -> Search[tuple[np.ndarray, bool]]:
    """A mask that holds among those that pruning visited, tried from the last; else a wider one.

    Args:
        visited: as :class:`Pruned` has them.
        ranking: ``(H, W)``, as for :func:`widen`.
        notion: when a mask holds.
        within: likewise.

    Returns:
        The mask, and whether it holds.
    """
    back = 1
    while back <= len(visited):
        if (yield from notion.test([visited[-back]]))[0] > MARGIN:
            return visited[-back], True
        back *= 2
    return (yield from widen(visited[0], ranking, notion, within))


def prune(
    mask: np.ndarray, ranking: np.ndarray, cell: int, notion: Notion | None = None
) -> Search[Pruned]:
    """Search for a 1-minimal mask inside one that holds.

    From coarse to fine: whole connected components (crumbs go first), the smallest sufficient
    prefix of the ranking, then squares of 4, 2 and 1 cells. At each scale every square is tried
    alone; those that can go are removed together, as many as the notion bears, safest first. This
    repeats until every remaining square has been tried against the final mask and none can go.

    Args:
        mask: ``(H, W)`` bool, one that holds.
        ranking: ``(H, W)``, larger is more important; the order of the prefix search.
        cell: side of the removed squares, in pixels.
        notion: when a mask holds; by default where it is sufficient on the stated colour.

    Yields:
        Candidates, as :meth:`Notion.test` does.

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
    notion = notion or Notion(Config())
    before, visited = notion.views, [mask]
    mask = yield from _keep_largest_components(mask, notion)
    visited.append(mask)
    mask = yield from _keep_prefix(mask, ranking, cell_map(mask.shape, cell), notion)
    visited.append(mask)
    for scale in SCALES:
        mask = yield from _remove_squares(mask, cell_map(mask.shape, cell * scale), notion, visited)
    return Pruned(mask, notion.views - before, minimal=True, visited=visited)


def _keep_largest_components(mask, notion):
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())[1:]
    largest = np.argsort(-sizes, kind="stable") + 1
    candidates = [np.isin(labels, largest[:n]) for n in (1, 2, 4) if n < count]
    if candidates:
        passed = (yield from notion.test(candidates)) > MARGIN
        if passed.any():
            return candidates[int(np.argmax(passed))]
    return mask


def _keep_prefix(mask, ranking, cells, notion):
    """The smallest that holds of three prefixes of the cells, ordered by their mean ranking."""
    present = np.unique(cells[mask])
    means = ndimage.mean(np.where(mask, ranking, 0), cells, present)
    order = present[np.argsort(-means, kind="stable")]
    sizes = [size for size in (len(order) * k // 4 for k in (1, 2, 3)) if size]
    candidates = [mask & np.isin(cells, order[:size]) for size in sizes]
    if candidates:
        passed = (yield from notion.test(candidates)) > MARGIN
        if passed.any():
            return candidates[int(np.argmax(passed))]
    return mask


def _remove_squares(mask, cells, notion, visited):
    """Remove squares, several at a time, until each has been tried alone and none can go."""
    score_without: dict[int, float] = {}
    untried = np.unique(cells[mask]).tolist()
    wave = len(untried)  # the first time all of them, to learn their scores
    while untried:
        batch, untried = untried[:wave], untried[wave:]
        scores = yield from notion.screen([mask & (cells != number) for number in batch])
        score_without.update(zip(batch, scores.tolist(), strict=True))
        free = [number for number in batch if score_without[number] > MARGIN]
        free.sort(key=lambda number: -score_without[number])
        while free:
            smaller = yield from _remove_jointly(mask, cells, free, notion)
            if smaller is not mask:
                mask = smaller
                visited.append(mask)
                untried = sorted(
                    np.unique(cells[mask]).tolist(), key=lambda number: -score_without[number]
                )
                wave = WAVE
                break
            score_without[free.pop(0)] = -np.inf  # passed the screen, and not the test
    return mask


def _remove_jointly(mask, cells, free, notion):
    """Remove the longest tested prefix of ``free`` that leaves a mask that holds.

    At least one where the screen was exact; else the mask itself comes back where the first cannot go.
    """
    done = 1 if notion.exact else 0  # the safest alone is known to be free
    bound = len(free)
    while bound > done:
        if notion.exact:
            sizes = np.unique(np.linspace(done, bound, 4).round().astype(int)[1:])
            sizes = sizes[sizes > done]
        else:  # one that holds costs all backgrounds, so not while a larger one may hold
            sizes = np.array([bound if bound == len(free) else (done + bound + 1) // 2])
        scores = yield from notion.test([mask & ~np.isin(cells, free[:size]) for size in sizes])
        passed = np.flatnonzero(scores > MARGIN)
        if not len(passed):
            bound = sizes[0] - 1
            continue
        best = passed[-1]
        done = sizes[best]
        bound = sizes[best + 1] - 1 if best + 1 < len(sizes) else done
    return mask & ~np.isin(cells, free[:done]) if done else mask
