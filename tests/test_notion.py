"""What holds means: the questions stop early, and the answers are those of all backgrounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax import Config
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.certificate import certify
from amx_jax.verify.notion import SCREEN, Notion, View
from amx_jax.verify.pool import Judged, Pool
from amx_jax.verify.prune import cell_map, prune, smallest_prefix, step_back

SIDE, CELL = 16, 2
CELLS = cell_map((SIDE, SIDE), CELL)


def ask(search, margin, probability=lambda mask, trial: 0.5):
    """The outcome of a search where ``margin(mask, trial)`` is the answer; −1 is the stated colour."""
    asked = []

    def judge(owners, candidates):
        views = [c if isinstance(c, View) else View(c, -1) for c in candidates]
        asked.extend(views)
        return Judged(*(np.array([f(v.mask, v.trial) for v in views]) for f in (margin, probability)))

    pool = Pool(judge, batch_size=7)
    pool.add("photo", search)
    [(_, outcome)] = pool.drain()
    return outcome, asked


def random_margins(seed, shift):
    """A margin for every mask and background, the same whenever it is asked for."""
    return lambda mask, trial: float(
        np.random.default_rng([seed, int(mask.sum()), trial + 1]).normal() + shift
    )


def some_masks(count):
    return [np.arange(SIDE * SIDE).reshape(SIDE, SIDE) <= 10 * i for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(-1, 4), st.sampled_from(["robust", "worst"]), st.integers(1, 70))
def test_a_mask_holds_where_at_most_the_allowed_number_of_all_backgrounds_fails(
    seed, shift, name, backgrounds
):
    margin, masks = random_margins(seed, shift), some_masks(5)
    notion = Notion(Config(notion=name, backgrounds=backgrounds, delta=0.25))
    allowed = backgrounds // 20 if name == "robust" else 0  # a fifth of δ
    assert notion.allowed == allowed
    scores, asked = ask(notion.test(masks), margin)
    for mask, score in zip(masks, scores, strict=True):
        margins = np.sort([margin(mask, trial) for trial in range(backgrounds)])
        assert (score > MARGIN) == (np.sum(margins <= MARGIN) <= allowed)
        if score > MARGIN:
            assert score == margins[allowed]
    assert notion.views == len(asked) <= 5 * backgrounds


def test_hopeless_masks_cost_few_questions():
    notion = Notion(Config(notion="robust", backgrounds=60))
    _, asked = ask(notion.test(some_masks(10)), lambda mask, trial: -1.0)
    assert len(asked) == 10 * 2  # one failure of 60 is allowed


def test_the_hardest_backgrounds_come_first_once_they_are_known():
    hard = {7, 23, 41}
    notion = Notion(Config(notion="worst", backgrounds=60))
    [mask] = some_masks(1)
    ask(notion.test([mask]), lambda mask, trial: 0.1 if trial in hard else 1.0)
    assert set(notion.trials[:3]) == hard
    notion.forget()
    _, asked = ask(notion.test([mask]), lambda mask, trial: -0.1 if trial in hard else 1.0)
    assert len(asked) == 1


def test_who_fails_the_screen_fails_the_test():
    notion = Notion(Config(notion="worst", backgrounds=40))
    masks, margin = some_masks(30), random_margins(5, 1.5)
    screened, asked = ask(notion.screen(masks), margin)
    assert {view.trial for view in asked} == set(range(SCREEN))
    tested, _ = ask(notion.test(masks), margin)
    assert (screened <= MARGIN).any() and (tested[screened <= MARGIN] <= MARGIN).all()
    assert not notion.exact and Notion(Config()).exact


def test_nobody_is_asked_the_same_twice_until_all_is_forgotten():
    notion, masks = Notion(Config(notion="worst", backgrounds=20)), some_masks(4)
    margin = random_margins(3, 3.0)
    screened, first = ask(notion.screen(masks), margin)
    tested, second = ask(notion.test(masks), margin)
    asked = [(view.mask.tobytes(), view.trial) for view in first + second]
    assert (screened > MARGIN).any() and len(asked) == len(set(asked)) == notion.views
    again, none = ask(notion.test(masks), margin)
    assert not none and ((again > MARGIN) == (tested > MARGIN)).all()
    notion.forget()
    assert len(ask(notion.test(masks), margin)[1]) >= len(masks)


def test_an_extended_notion_asks_about_new_backgrounds_first():
    notion = Notion(Config(notion="robust", backgrounds=20))
    notion.extend()
    assert set(notion.trials[:20]) == set(range(20, 40)) and len(notion.trials) == 40


# --- goals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "worst"])
@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("sufficient", [True, True, False]),
        ("necessary", [True, False, False]),
        ("complete", [True, False, False]),
    ],
)
def test_goals_ask_about_the_mask_or_its_complement_or_both(name, goal, expected):
    """The decision needs the first row: its first half is enough, and both halves are."""
    whole, half, none = (np.zeros((4, 4), bool) for _ in range(3))
    whole[0], half[0, :2] = True, True

    def margin(mask, trial):
        return 1.0 if mask[0, :2].all() or mask[0, 2:].all() else -1.0

    scores, _ = ask(
        Notion(Config(notion=name, goal=goal, backgrounds=3)).test([whole, half, none]), margin
    )
    assert (scores > MARGIN).tolist() == expected


@pytest.mark.parametrize(
    ("confidence", "expected"), [(0.0, [1, 1, 1]), (0.5, [1, 1, 0]), (1.0, [1, 0, 0])]
)
def test_confidence_is_a_share_of_the_photos_probability(confidence, expected):
    """At τ = 1 the photo itself passes: it is as sure as itself."""
    masks = some_masks(3)

    def probability(mask, trial):
        return {masks[0].sum(): 0.8, masks[1].sum(): 0.5, masks[2].sum(): 0.3}[mask.sum()]

    notion = Notion(Config(confidence=confidence), probability=0.8)
    scores, _ = ask(notion.test(masks), lambda mask, trial: 1.0, probability)
    assert (scores > MARGIN).astype(int).tolist() == expected


# --- searches under a notion ----------------------------------------------------------------------


def worst_case(weights, thresholds):
    """Each background demands a weight of its own; the hardest decides."""
    return lambda mask, trial: float((weights * mask).sum() - thresholds[trial])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["robust", "worst"]))
def test_pruned_masks_are_1_minimal_under_the_notion(seed, name):
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(SIDE, SIDE))
    thresholds = weights.sum() * rng.uniform(0.1, 0.6, 40)
    margin = worst_case(weights, thresholds)
    notion = Notion(Config(notion=name, backgrounds=40, delta=0.25))
    found, asked = ask(prune(np.ones((SIDE, SIDE), bool), weights, CELL, notion), margin)
    assert found.calls == len(asked)

    def holds(mask):
        return sum(margin(mask, t) <= MARGIN for t in range(40)) <= notion.allowed

    assert holds(found.mask) and all(holds(mask) for mask in found.visited)
    assert not any(holds(found.mask & (number != CELLS)) for number in np.unique(CELLS[found.mask]))
    areas = [mask.sum() for mask in found.visited]
    assert areas == sorted(areas, reverse=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["robust", "worst"]))
def test_the_certificate_says_of_any_mask_whether_a_cell_can_go(seed, name):
    rng = np.random.default_rng(seed)
    weights, mask = rng.uniform(0.5, 1.5, (SIDE, SIDE)), rng.random((SIDE, SIDE)) < 0.5
    thresholds = (weights * mask).sum() - rng.uniform(-0.2, 2) - rng.random(40)
    margin = worst_case(weights, thresholds)
    notion = Notion(Config(notion=name, backgrounds=40, delta=0.25))
    found, _ = ask(certify(mask, CELL, notion, {"noise": (9, 9)}, 0.95), margin)
    without = (mask & (number != CELLS) for number in np.unique(CELLS[mask]))
    holds, *others = (
        sum(margin(some, t) <= MARGIN for t in range(40)) <= notion.allowed for some in (mask, *without)
    )
    assert (found.holds, found.minimal) == (holds, holds and not any(others))


def test_the_first_cell_that_can_go_is_enough_to_know():
    notion = Notion(Config(notion="worst", backgrounds=40))
    whole = np.ones((SIDE, SIDE), bool)
    found, asked = ask(certify(whole, CELL, notion, {"noise": (9, 9)}, 0.95), lambda mask, trial: 1.0)
    assert not found.minimal and len(asked) == 3 + 40 + 8 * 40  # of 64 cells


def test_the_smallest_prefix_of_the_best_ranking_is_found():
    """One ranking begins with the pixels that matter, the other with the rest."""
    order = np.arange(SIDE * SIDE, 0, -1.0).reshape(SIDE, SIDE)
    needed = SIDE * SIDE // 8

    def margin(mask, trial):
        return 1.0 if mask.ravel()[:needed].all() else -1.0

    notion = Notion(Config(notion="worst", backgrounds=5))
    (which, mask, holds), _ = ask(smallest_prefix([-order, order], notion), margin)
    assert (which, holds) == (1, True)
    assert needed <= mask.sum() <= 1.1 * needed + 1
    notion.forget()
    (_, mask, holds), _ = ask(smallest_prefix([order], notion), lambda mask, trial: -1.0)
    assert mask.all() and not holds


def test_a_step_back_is_to_a_visited_mask_that_holds_or_to_a_wider_one():
    visited = [np.arange(64).reshape(8, 8) < n for n in (40, 30, 20, 10)]
    ranking = -np.arange(64.0).reshape(8, 8)
    for least, expected in ((5, 10), (15, 20), (25, 40), (45, 50)):
        notion = Notion(Config(notion="worst", backgrounds=4))
        (mask, holds), _ = ask(
            step_back(visited, ranking, notion),
            lambda mask, trial, n=least: 1.0 if mask.sum() > n else -1.0,
        )
        assert holds and mask.sum() == expected
