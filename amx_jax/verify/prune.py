"""Pruning: remove cells from a sufficient mask until no single one can go.

The search is a coroutine for one image: it yields candidate masks and receives each one's margin.
So it knows nothing of classifiers or batches, and :func:`prune_all` can fill full batches with the
candidates of many images.
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from amx_jax.objective.decision import MARGIN

# candidates (n, H, W) bool, out; margins (n,), in
Search = Generator[np.ndarray, np.ndarray, "Pruned"]
# (image index of each candidate, candidates) -> margins
Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Candidates of one image tested against the same mask before the next is chosen.
WAVE = 8


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


def prune(mask: np.ndarray, ranking: np.ndarray, cell: int) -> Search:
    """Search for a 1-minimal sufficient mask inside a sufficient one.

    From coarse to fine: whole connected components (crumbs go first), the smallest sufficient
    prefix of the ranking, then squares of 4, 2 and 1 cells. At each scale every square is tried
    alone; those that can go are removed together, as many as keep the label, safest first. The last
    scale repeats until every remaining cell has been tried against the final mask and none can go.

    Args:
        mask: ``(H, W)`` bool, sufficient.
        ranking: ``(H, W)``, larger is more important; the order of the prefix search.
        cell: side of the removed squares, in pixels.

    Yields:
        Candidate masks ``(n, H, W)``; expects their margins, ``(n,)``: sufficient above ``MARGIN``.

    Returns:
        The pruned mask (through ``StopIteration.value``).
    """
    calls = 0

    def test(candidates: list[np.ndarray]):
        nonlocal calls
        calls += len(candidates)
        return (yield np.stack(candidates))

    # Largest components alone: the fewest of them that suffice.
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())[1:]
        largest = np.argsort(-sizes, kind="stable") + 1
        keep = [np.isin(labels, largest[:n]) for n in range(1, min(count, WAVE + 1))]
        margins = yield from test(keep)
        if (margins > MARGIN).any():
            mask = keep[int(np.argmax(margins > MARGIN))]

    # Smallest sufficient prefix of the ranking, whole cells, two rounds of parallel section.
    cells = cell_map(mask.shape, cell)
    present = np.unique(cells[mask])
    sums = ndimage.sum_labels(np.where(mask, ranking, 0), cells, present)
    order = present[np.argsort(-sums / ndimage.sum_labels(mask, cells, present), kind="stable")]
    low, high = 0, len(order)
    for _ in range(2):
        sizes = np.unique(np.linspace(low, high, 6).round().astype(int)[1:-1])
        sizes = sizes[(sizes > low) & (sizes < high)]
        if not len(sizes):
            break
        prefixes = [mask & np.isin(cells, order[:size]) for size in sizes]
        passed = (yield from test(prefixes)) > MARGIN
        if passed.any():
            first = int(np.argmax(passed))
            high = sizes[first]
            low = sizes[first - 1] if first else low
        else:
            low = sizes[-1]
    mask = mask & np.isin(cells, order[:high])

    for scale in (4, 2):
        mask = yield from _remove(mask, cell_map(mask.shape, cell * scale), test, until_minimal=False)
    mask = yield from _remove(mask, cells, test, until_minimal=True)
    return Pruned(mask, calls, minimal=True)


def _remove(mask, cells, test, until_minimal: bool):
    """Remove cells, several at a time, until each was tried once or until none can go."""
    # `untried` against the present mask; safest first once margins are known.
    margins_alone: dict[int, float] = {}
    untried = list(np.unique(cells[mask]))
    wave = len(untried)  # the first time all of them, to learn their margins
    while untried:
        batch, untried = untried[:wave], untried[wave:]
        margins = yield from test([mask & (cells != number) for number in batch])
        margins_alone.update(zip(batch, margins.tolist(), strict=True))
        free = [number for number in batch if margins_alone[number] > MARGIN]
        if not free:
            continue
        free.sort(key=lambda number: -margins_alone[number])
        mask = yield from _remove_jointly(mask, cells, free, test)
        remaining = np.unique(cells[mask]).tolist()
        if not until_minimal:
            untried = [number for number in untried if number in remaining]
            continue
        untried = sorted(remaining, key=lambda number: -margins_alone[number])
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


def prune_all(searches: Sequence[Search], judge: Judge) -> list[Pruned]:
    """Run many searches together, so that their candidates share full batches.

    Args:
        searches: one for each image, from :func:`prune`.
        judge: margins of candidates, given the image each belongs to.

    Returns:
        The outcomes, in order. Each depends on its own image only.
    """
    outcomes: dict[int, Pruned] = {}
    pending: dict[int, np.ndarray] = {}
    for index, search in enumerate(searches):
        _advance(index, search, None, pending, outcomes)
    while pending:
        owners = np.concatenate([np.full(len(c), i) for i, c in pending.items()])
        margins = judge(owners, np.concatenate(list(pending.values())))
        for index in list(pending):
            del pending[index]
            _advance(index, searches[index], margins[owners == index], pending, outcomes)
    return [outcomes[index] for index in range(len(searches))]


def _advance(index, search, margins, pending, outcomes) -> None:
    try:
        pending[index] = search.send(margins)
    except StopIteration as stop:
        outcomes[index] = stop.value
