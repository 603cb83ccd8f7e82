"""Pruning: the mask that is left suffices, and no single cell of it can go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Judged, Pool
from amx_jax.verify.prune import cell_map, components, prune

SIDE, CELL = 24, 2
CELLS = cell_map((SIDE, SIDE), CELL)
FULL = np.ones((SIDE, SIDE), bool)


def kept_cells(mask: np.ndarray) -> set[int]:
    """The cells of which the mask keeps anything, found pixel by pixel."""
    return {(i // CELL) * (SIDE // CELL) + j // CELL for i, j in zip(*np.nonzero(mask), strict=True)}


def needs_all(wanted: set[int]):
    """A decision that holds exactly where all wanted cells are kept whole: its minimum is known."""

    def margin(mask: np.ndarray) -> float:
        return 1.0 if all(mask[cell == CELLS].all() for cell in wanted) else -1.0

    return margin


def weighs(weights: np.ndarray, threshold: float):
    return lambda mask: float((weights * mask).sum() - threshold)


def hashes(seed: int, share: float):
    """A decision without any order among masks: keeping more may lose it."""

    def margin(mask: np.ndarray) -> float:
        if mask.all():
            return 1.0
        rng = np.random.default_rng([seed, *mask[::CELL, ::CELL].ravel().astype(int)])
        return 1.0 if rng.random() < share else -1.0

    return margin


def run(decision, mask=FULL, ranking=None):
    seen = []

    def judge(owners, masks):
        seen.extend(masks)
        margins = np.array([decision(mask) for mask in masks])
        return Judged(margins, margins > 0)

    ranking = np.zeros((SIDE, SIDE)) if ranking is None else ranking
    pool = Pool(judge, batch_size=8)
    pool.add("photo", prune(mask, ranking, CELL))
    [(_, pruned)] = pool.drain()
    return pruned, seen


def is_1_minimal(decision, mask) -> bool:
    return decision(mask) > MARGIN and not any(
        decision(mask & (cell != CELLS)) > MARGIN for cell in kept_cells(mask)
    )


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 143), min_size=1, max_size=30))
def test_the_known_minimum_of_a_monotone_decision_is_found(wanted):
    pruned, _ = run(needs_all(wanted))
    assert kept_cells(pruned.mask) == wanted
    assert pruned.minimal


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_masks_of_an_additive_decision_are_1_minimal(seed, share):
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(SIDE, SIDE))
    decision = weighs(weights, share * weights.sum())
    pruned, _ = run(decision, ranking=weights)
    assert is_1_minimal(decision, pruned.mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.5))
def test_masks_are_1_minimal_also_where_keeping_more_may_lose_the_label(seed, share):
    decision = hashes(seed, share)
    pruned, _ = run(decision)
    assert is_1_minimal(decision, pruned.mask)


def test_a_mask_off_the_cell_borders_stays_inside_itself():
    rng = np.random.default_rng(0)
    start = rng.random((SIDE, SIDE)) < 0.6
    weights = rng.random((SIDE, SIDE))
    decision = weighs(weights, 0.5 * (weights * start).sum())
    pruned, _ = run(decision, mask=start)
    assert not (pruned.mask & ~start).any()
    assert is_1_minimal(decision, pruned.mask)


def test_nothing_is_kept_where_nothing_is_needed():
    pruned, _ = run(lambda mask: 1.0)
    assert not pruned.mask.any()


def test_every_call_is_counted():
    rng = np.random.default_rng(1)
    weights = rng.exponential(size=(SIDE, SIDE))
    pruned, seen = run(weighs(weights, 0.3 * weights.sum()))
    assert pruned.calls == len(seen) > 0


def test_a_few_needed_cells_are_found_in_few_calls():
    """Trying each of the 144 cells against each mask in turn would take thousands of calls."""
    pruned, _ = run(needs_all({3, 77, 78, 90}))
    assert pruned.calls < 150


def test_crumbs_go_before_the_region_that_suffices():
    """Either the square or all of the twelve crumbs would do: the square stays."""
    start = np.zeros((SIDE, SIDE), bool)
    start[4:12, 4:12] = True
    crumbs = np.zeros_like(start)
    crumbs[14::4, 2::4] = True
    start |= crumbs

    def decision(mask):
        return 1.0 if mask[4:12, 4:12].all() or (mask & crumbs).sum() == crumbs.sum() else -1.0

    pruned, _ = run(decision, mask=start)
    assert components(pruned.mask) == 1
    assert pruned.mask[4:12, 4:12].all()


def test_a_margin_within_rounding_is_not_sufficient():
    pruned, _ = run(lambda mask: MARGIN / 2 if not mask.all() else 1.0)
    assert pruned.mask.all()


def test_the_outcome_does_not_depend_on_what_is_pruned_beside():
    rng = np.random.default_rng(2)
    weights = rng.exponential(size=(5, SIDE, SIDE))
    rankings = weights + rng.normal(size=weights.shape)
    decisions = [
        weighs(w, share * w.sum()) for w, share in zip(weights, (0.1, 0.3, 0.5, 0.7, 0.9), strict=True)
    ]

    def judge(owners, masks):
        margins = np.array([decisions[o](m) for o, m in zip(owners, masks, strict=True)])
        return Judged(margins, margins > 0)

    for batch_size in (3, 50):
        pool = Pool(judge, batch_size)
        for owner, ranking in enumerate(rankings):
            pool.add(owner, prune(FULL, ranking, CELL))
        together = dict(pool.drain())
        assert len(together) == 5
        for owner, (decision, ranking) in enumerate(zip(decisions, rankings, strict=True)):
            alone, _ = run(decision, ranking=ranking)
            assert np.array_equal(alone.mask, together[owner].mask)
            assert alone.calls == together[owner].calls


def test_an_empty_mask_has_nothing_to_prune_and_is_no_call():
    pruned, seen = run(lambda mask: pytest.fail("asked"), mask=np.zeros_like(FULL))
    assert not pruned.mask.any() and pruned.calls == len(seen) == 0


@pytest.mark.parametrize("shape", [(5, 7), (4, 4), (1, 9)])
def test_cells_are_squares_cut_at_the_border(shape):
    cells = cell_map(shape, 3)
    for i in range(shape[0]):
        for j in range(shape[1]):
            same = cells == cells[i, j]
            rows, columns = np.nonzero(same)
            assert rows.min() == i // 3 * 3
            assert columns.min() == j // 3 * 3
            assert np.ptp(rows) < 3
            assert np.ptp(columns) < 3


def test_diagonal_neighbours_are_two_components():
    assert components(np.eye(4, dtype=bool)) == 4
    assert components(np.zeros((3, 3), bool)) == 0
    assert components(np.ones((3, 3), bool)) == 1
