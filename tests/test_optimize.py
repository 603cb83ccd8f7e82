"""The search: it keeps the smallest sufficient mask it meets, each image on its own."""

from collections import deque
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise, repeat
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from amx_jax import Classifier, Config, Weights, preset
from amx_jax.classifiers.classifier import BLOCK
from amx_jax.lift import Devices
from amx_jax.masks.backgrounds import Scene, draw
from amx_jax.masks.hardening import hard_mask
from amx_jax.objective.decision import MARGIN
from amx_jax.objective.objective import Reference
from amx_jax.optimize import loop
from amx_jax.optimize import step as one
from amx_jax.optimize.loop import Optimized, Optimizer, image_keys, make_generator

GRAY = np.zeros(3, np.float32)  # the background, in the classifier's input space
LIMITS = (GRAY, *(np.full(3, value, np.float32) for value in (-127 / 128, 1)))
WEIGHTS = Weights(
    activation=0.2,
    kl=0.1,
    cross_entropy=1.0,
    area=0.0,
    binarization=0.0,
    total_variation=0.1,
    robustness=0.0,
    necessity=0.0,
)
CONFIG = Config(
    generator="grid",
    free_gain=60.0,
    grid=8,
    background=(127, 127, 127),
    objective=WEIGHTS,
    budget=True,
    shrink=0.85,
    grow=1.15,
    steps=30,
    learning_rate=0.003,
    temperature=0.5,
)
PAPER = replace(
    preset("paper"),
    generator="grid",
    free_gain=60.0,
    grid=8,
    steps=30,
    learning_rate=0.003,
    temperature=0.5,
)
ANNEALED = replace(CONFIG, hardening="annealed")
DUAL = replace(CONFIG, budget=False, dual=0.25, objective=replace(WEIGHTS, area=3.0))
KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.fixture(scope="module")
def images(tiny, photos):
    return jnp.asarray(tiny.preprocess.normalize(photos.astype(np.float32)))


@pytest.fixture(scope="module")
def targets(tiny, images):
    return [int(tiny.apply(tiny.params, image)[0].argmax()) for image in images]


@cache
def optimizer(classifier: Classifier, config: Config, devices: int = 2) -> Optimizer:
    """Tests of one configuration share its compiled functions."""
    return Optimizer(classifier, config, Devices(jax.devices()[:devices]))


TOP = repeat(None)  # for each image its top class


def run(search: Optimizer, photos, targets=TOP, names=range(6)) -> list[Optimized]:
    """The outcome of each image, the next in line in every slot that is free."""
    waiting = deque(enumerate(zip(photos, targets, names, strict=False)))
    under_way, outcomes = {}, {}
    while waiting or under_way:
        while waiting and search.free:
            index, image = waiting.popleft()
            under_way[search.put(*image)] = index
        shares = search.advance()
        for slot in [slot for slot in under_way if shares[slot] == 1]:
            outcomes[under_way.pop(slot)] = search.take(slot)
    return [outcomes[index] for index in sorted(outcomes)]


def assert_same(first: Optimized, second: Optimized) -> None:
    """Bit for bit."""
    chex.assert_trees_all_equal(first._replace(failure=""), second._replace(failure=""))
    assert first.failure == second.failure


# --- one image by hand, step by step --------------------------------------------------------------


class Visited(NamedTuple):
    """What one step looked at, and the state it left."""

    mask: np.ndarray  # bool (H, W)
    loss: float  # the classifier's cross-entropy on it
    sufficient: bool
    before: one.State
    after: one.State


harden = jax.jit(partial(hard_mask, shape=(32, 32)))


@cache
def compiled(classifier: Classifier, config: Config):
    generator = make_generator(config, channels=3)
    classify = jax.jit(partial(classifier.apply, classifier.params))
    return generator, classify, jax.jit(partial(one.step, config, generator, classify, LIMITS))


def by_hand(classifier, config, image, target, key, budget=one.START, steps=None) -> list[Visited]:
    """The loop for one image, with each mask judged by a forward pass of its own."""
    generator, classify, advance = compiled(classifier, config)
    reference = Reference(image, target, *classify(image))
    init_key, step_key = jax.random.split(key)
    problem = one.pose(config, generator, reference, step_key)
    state = one.init(config, generator, init_key)._replace(budget=jnp.float32(budget))
    visited = []
    for _ in range(steps or config.steps):
        if int(state.failed) >= 0:
            break
        logits = np.asarray(generator.apply(state.params, generator.see(image)))
        if config.budget:  # the n-th largest logits are above the threshold
            dropped = int(np.floor((1 - np.asarray(state.budget)) * logits.size))
            logits = logits - (np.sort(logits.ravel())[dropped - 1] if dropped else logits.min() - 1)
        mask = np.asarray(harden(logits))
        z = np.asarray(classify(jnp.where(mask[..., None], image, GRAY))[0], np.float64)
        after = advance(problem, state)
        visited.append(
            Visited(
                mask=mask,
                loss=np.log(np.exp(z).sum()) - z[target],
                sufficient=bool(z[target] - np.delete(z, target).max() > MARGIN),
                before=state,
                after=after,
            )
        )
        state = after
    return visited


@pytest.mark.parametrize("index", range(6))
def test_the_smallest_sufficient_mask_of_all_steps_is_kept(tiny, images, targets, index):
    visited = by_hand(tiny, CONFIG, images[index], targets[index], KEYS[index])
    sufficient = [v.mask for v in visited if v.sufficient]
    assert len(sufficient) > 5
    smallest = min(sufficient, key=np.sum)  # the first of them
    kept = visited[-1].after
    np.testing.assert_array_equal(harden(kept.logits), smallest)
    assert float(kept.area) == smallest.mean()
    assert smallest.mean() < 0.3


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["default", "paper"])
def test_the_slots_run_the_loop_by_hand_of_each_image(tiny, photos, images, targets, config):
    brief = replace(config, steps=8)  # rounding differs, and in more steps it adds up
    outcomes = run(optimizer(tiny, brief), photos, targets)
    for name, (outcome, image, target) in enumerate(zip(outcomes, images, targets, strict=True)):
        key = image_keys(brief.seed, name)[0]
        last = by_hand(tiny, brief, image, target, key)[-1].after
        mask = np.asarray(harden(last.logits))
        assert (outcome.decision.target, outcome.steps, outcome.failure) == (target, 8, None)
        assert 0 < outcome.mask.mean() < 1
        assert (outcome.mask & mask).sum() / (outcome.mask | mask).sum() > 0.95
        np.testing.assert_array_equal(outcome.logits > 0, outcome.mask)


def test_its_masks_are_sufficient_when_asked_again(tiny, photos, images, targets):
    outcomes = run(optimizer(tiny, CONFIG), photos, targets)
    for image, target, outcome in zip(images, targets, outcomes, strict=True):
        logits, _ = tiny.apply(tiny.params, jnp.where(outcome.mask[..., None], image, GRAY))
        assert logits.argmax() == target


def test_without_a_target_the_top_class_is_explained(tiny, photos, targets):
    search = optimizer(tiny, CONFIG)
    for asked, unasked in zip(run(search, photos, targets), run(search, photos), strict=True):
        assert_same(asked, unasked)


def test_without_a_sufficient_mask_all_pixels_stay(tiny, photos):
    outcomes = run(optimizer(tiny, CONFIG), photos, repeat(tiny.class_index("never")))
    assert all(outcome.mask.all() and outcome.failure is None for outcome in outcomes)
    # Nor is what the steps learnt lost: it orders the pixels.
    assert all(len(np.unique(outcome.logits)) > 32 for outcome in outcomes)


def test_the_share_of_the_steps_that_each_slot_has_taken_is_told(tiny, photos):
    search = optimizer(tiny, CONFIG)
    first = search.put(photos[0], None, 0)
    shares = [search.advance()[first] for _ in range(2)]
    second = search.put(photos[1], None, 1)
    later = [search.advance()[[first, second]] for _ in range(8)]
    assert all(search.take(slot).steps == 30 for slot in (first, second))
    taken = np.minimum(4 * np.arange(1, 11), 30) / 30
    np.testing.assert_allclose([*shares, *(both[0] for both in later)], taken)
    np.testing.assert_allclose([both[1] for both in later], taken[:8])


# --- the budget -----------------------------------------------------------------------------------


def test_the_budget_falls_after_a_sufficient_mask_and_rises_after_another(tiny, images, targets):
    seen = set()
    for v in by_hand(tiny, CONFIG, images[4], targets[4], KEYS[4]):
        factor = CONFIG.shrink if v.sufficient else CONFIG.grow
        expected = min(max(float(v.before.budget) * factor, 1 / 64), 1.0)
        assert float(v.after.budget) == pytest.approx(expected, rel=1e-6)
        seen.add(v.sufficient)
    assert seen == {True, False}


def test_the_budget_never_exceeds_the_image(tiny, images):
    never = tiny.class_index("never")
    visited = by_hand(tiny, CONFIG, images[0], never, KEYS[0], budget=0.9)
    assert {float(v.after.budget) for v in visited[1:]} == {1.0}
    assert visited[-1].mask.all()


def test_the_budget_never_falls_below_one_cell(tiny, images):
    background_class = 0  # what the bare background shows: every mask is sufficient
    zero = jnp.zeros_like(images[0])
    visited = by_hand(tiny, CONFIG, zero, background_class, KEYS[0])
    assert {v.sufficient for v in visited} == {True}
    assert float(visited[-1].after.budget) == 1 / 64
    assert visited[-1].mask.any()


# --- the multiplier of the area -------------------------------------------------------------------


def test_the_multiplier_rises_while_the_mask_holds_and_falls_while_it_breaks(tiny, images, targets):
    seen = set()
    visited = by_hand(tiny, DUAL, images[4], targets[4], KEYS[4], budget=1.0)
    for v in visited:
        factor = 1.25 if v.sufficient else 1 / 1.25
        assert float(v.after.budget) == pytest.approx(float(v.before.budget) * factor, rel=1e-6)
        seen.add(v.sufficient)
    assert seen == {True, False}
    smallest = min((v.mask for v in visited if v.sufficient), key=np.sum)
    np.testing.assert_array_equal(harden(visited[-1].after.logits), smallest)


def test_a_robust_multiplier_falls_by_as_much_as_nine_rises(tiny, images, targets):
    robust = replace(DUAL, notion="robust")
    visited = by_hand(tiny, robust, images[4], targets[4], KEYS[4], budget=1.0)
    inside = [v for v in visited if float(v.after.budget) > 1.01e-3]  # the others were held back
    factors = {round(float(v.after.budget / v.before.budget), 3) for v in inside}
    assert factors == {1.25, round(1.25**-9, 3)}


@pytest.mark.parametrize(("never", "start", "end"), [(False, 950.0, 1e3), (True, 1.05e-3, 1e-3)])
def test_the_multiplier_stays_within_a_thousand_and_a_thousandth(tiny, images, never, start, end):
    # What the bare background shows holds on every mask, and the class that never wins on none.
    zero, target = jnp.zeros_like(images[0]), tiny.class_index("never") if never else 0
    [visited] = by_hand(tiny, DUAL, zero, target, KEYS[0], budget=start, steps=1)
    assert float(visited.after.budget) == pytest.approx(end)


def test_the_multiplier_begins_at_one_and_multiplies_the_areas_weight(tiny, images, targets):
    assert float(one.init(DUAL, make_generator(DUAL, channels=3), KEYS[0]).budget) == 1
    heavy = replace(DUAL, dual=0.0, objective=replace(DUAL.objective, area=9.0))
    (ours,), (fixed,) = (
        by_hand(tiny, config, images[1], targets[1], KEYS[1], budget=3.0, steps=1)
        for config in (DUAL, heavy)
    )
    moments = [np.asarray(v.after.optimizer[0].mu["free"]) for v in (ours, fixed)]
    np.testing.assert_allclose(*moments, rtol=1e-5, atol=1e-7)


# --- annealed masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1, 4])
def test_what_is_kept_of_annealed_masks_is_the_smallest_that_is_sufficient_as_a_hard_one(
    tiny, images, targets, index
):
    visited = by_hand(tiny, ANNEALED, images[index], targets[index], KEYS[index])
    sufficient = [v.mask for v in visited if v.sufficient]
    assert 0 < len(sufficient) < len(visited)
    smallest, kept = min(sufficient, key=np.sum), visited[-1].after
    np.testing.assert_array_equal(harden(kept.logits), smallest)
    assert float(kept.area) == smallest.mean() < 0.4


TERM = {"objective": replace(WEIGHTS, robustness=1.0)}


@pytest.mark.parametrize(
    ("config", "blends", "hard"),
    [
        (CONFIG, 0, 1),
        (ANNEALED, 1, 1),
        (replace(CONFIG, notion="robust"), 0, 1),
        (replace(ANNEALED, notion="robust"), 1, 1),
        (replace(CONFIG, **TERM), 0, 2),
        (replace(ANNEALED, **TERM), 2, 1),
    ],
    ids=["default", "annealed", "robust", "robust and annealed", "term", "term and annealed"],
)
def test_the_hard_mask_costs_an_annealed_step_a_forward_pass(
    tiny, images, targets, config, blends, hard
):
    """Of a white image on black: what the classifier sees is the mask."""
    seen = []

    def classify(image):
        jax.debug.callback(lambda shown: seen.append(np.array(shown)), image)
        return tiny.apply(tiny.params, image)

    white = jnp.ones_like(images[0])
    generator = make_generator(config, channels=3)
    reference = Reference(white, targets[0], *tiny.apply(tiny.params, white))
    config = replace(config, kinds=("black",))
    problem = one.pose(config, generator, reference, KEYS[0])
    state = one.init(config, generator, KEYS[1])
    zero = (GRAY, GRAY, np.full(3, 1, np.float32))
    jax.block_until_ready(one.step(config, generator, classify, zero, problem, state))
    jax.effects_barrier()
    crisp = [bool(np.isin(shown, (0, 1)).all()) for shown in seen]
    assert (crisp.count(False), crisp.count(True)) == (blends, hard)


def test_a_robust_mask_is_explained_on_the_steps_own_background(tiny, images, targets):
    """Of one colour alone: then it is the step of the plain notion on that colour."""
    _, low, high = LIMITS
    generator = make_generator(CONFIG, channels=3)
    reference = Reference(images[1], targets[1], *tiny.apply(tiny.params, images[1]))

    def after(config, background):
        problem = one.pose(config, generator, reference, KEYS[0])
        state = one.init(config, generator, KEYS[1])
        limits, classify = (background, low, high), lambda image: tiny.apply(tiny.params, image)
        return one.step(config, generator, classify, limits, problem, state)

    robust = after(replace(CONFIG, notion="robust", kinds=("black",)), high)
    plain, other = after(CONFIG, low), after(CONFIG, high)
    moved = [np.asarray(state.optimizer[0].mu["free"]) for state in (robust, plain, other)]
    np.testing.assert_array_equal(moved[0], moved[1])
    assert not np.allclose(moved[1], moved[2])


# --- the descent ----------------------------------------------------------------------------------


def test_the_loss_falls_at_a_fixed_budget(tiny, images):
    """A quarter of the cells, chosen anew each step: those the class depends on are found."""
    only = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0) | {"cross_entropy": 1.0})
    config = replace(CONFIG, shrink=1.0, grow=1.0, objective=only)
    for index in range(6):
        for target in range(4):
            losses = [v.loss for v in by_hand(tiny, config, images[index], target, KEYS[index], 0.25)]
            assert np.mean(losses[-5:]) < 0.7 * losses[0], (index, target)


def test_a_step_follows_the_gradient_of_the_weighted_sum(tiny, images, targets):
    """The gradient of all eight terms, in the mask and in its soft version, through the chain rule."""
    config, weights = PAPER, PAPER.objective
    image, target, key = images[1], int(targets[1]), KEYS[1]
    first, second = by_hand(tiny, config, image, target, key, steps=2)
    step_key = jax.random.fold_in(jax.random.split(key)[1], 0)
    kind_key, draw_key = jax.random.split(step_key)
    kind = jax.random.randint(kind_key, (), 0, len(config.kinds))
    scene = Scene(image, *LIMITS[1:], jnp.zeros((0, *image.shape)))
    sampled = draw(config.kinds, kind, draw_key, scene)
    x_logits, x = tiny.apply(tiny.params, image)

    def seen(mask):
        m = mask[..., None]
        e_logits, e = tiny.apply(tiny.params, m * image)
        b_logits, _ = tiny.apply(tiny.params, m * image + (1 - m) * sampled)
        c_logits, _ = tiny.apply(tiny.params, (1 - m) * image)
        p, log_q = jax.nn.softmax(x_logits), jax.nn.log_softmax(e_logits)
        matching = sum(jnp.sum((e[s] - x[s]) ** 2) / jnp.sum(x[s] ** 2) for s in x) / 2
        return (
            weights.activation * matching
            + weights.kl * jnp.sum(p * (jnp.log(p) - log_q))
            - weights.cross_entropy * log_q[target]
            - weights.robustness * jax.nn.log_softmax(b_logits)[target]
            - weights.necessity * jnp.log(1 - jax.nn.softmax(c_logits)[target])
        )

    z = np.asarray(60 * first.before.params["free"], np.float64)
    positions = (np.arange(32) + 0.5) / 4 - 0.5
    enlarge = np.stack([np.interp(positions, np.arange(8), e) for e in np.eye(8)], axis=1)
    in_mask = np.asarray(jax.jit(jax.grad(seen))(jnp.asarray(first.mask, jnp.float32)))
    in_large = enlarge @ z @ enlarge.T
    expected = enlarge.T @ (in_mask * slope(in_large)) @ enlarge
    soft = 1 / (1 + np.exp(-z / config.temperature))
    rows, columns = (np.sign(np.diff(soft, axis=axis)) for axis in (0, 1))
    variation = np.pad(rows, ((1, 0), (0, 0))) - np.pad(rows, ((0, 1), (0, 0)))
    variation += np.pad(columns, ((0, 0), (1, 0))) - np.pad(columns, ((0, 0), (0, 1)))
    in_soft = weights.area / 64 + weights.binarization * (1 - 2 * soft) / 64
    expected += (in_soft + weights.total_variation * variation / 8) * slope(z)
    expected *= 60  # the gain of the free logits

    mean_gradient = first.after.optimizer[0].mu["free"] / (1 - 0.9)  # Adam's, after one step
    np.testing.assert_allclose(mean_gradient, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    moved = np.asarray(second.before.params["free"] - first.before.params["free"])
    np.testing.assert_allclose(moved, -config.learning_rate * np.sign(expected), rtol=1e-2)


def slope(z):
    """The derivative of the soft mask."""
    soft = 1 / (1 + np.exp(-z / CONFIG.temperature))
    return soft * (1 - soft) / CONFIG.temperature


def test_the_learning_rate_falls_to_a_tenth_along_a_cosine():
    optimizer = one.make_optimizer(CONFIG)
    state = optimizer.init(0.0)
    rates = []
    for _ in range(CONFIG.steps + 1):
        update, state = optimizer.update(jnp.float32(1), state)  # Adam's move on a steady gradient
        rates.append(-float(update))
    phase = np.arange(CONFIG.steps + 1) / CONFIG.steps
    expected = CONFIG.learning_rate * (0.1 + 0.9 * (1 + np.cos(np.pi * phase)) / 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-4)


def test_the_papers_objective_runs_and_brings_the_area_down(tiny, images, targets):
    for image, target, key in zip(images, targets, KEYS, strict=True):
        visited = by_hand(tiny, PAPER, image, target, key)
        areas = [v.mask.mean() for v in visited]
        assert np.mean(areas[-3:]) < areas[0]
        assert 0 < float(visited[-1].after.area) < 1
        assert int(visited[-1].after.failed) == -1


def test_without_a_budget_the_area_term_alone_removes_everything(tiny, images, targets):
    only = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0) | {"area": 1.0})
    config = replace(CONFIG, objective=only, budget=False)
    visited = by_hand(tiny, config, images[0], targets[0], KEYS[0])
    areas = [v.mask.mean() for v in visited]
    assert areas[0] > 0.3
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] == 0


# --- values that are not finite -------------------------------------------------------------------

EMPTY = np.full((32, 32, 3), 127, np.uint8)  # all zero in the classifier's input space: 0 / 0
SPECK = EMPTY.copy()  # only one corner is not: without it, 0 / 0
SPECK[:4, :4] = 191
KEEPS_IT = 6  # the first mask of an image of this name keeps that corner


def exchanged(photos, changed):
    """The photos with some of them exchanged."""
    return [changed.get(index, photo) for index, photo in enumerate(photos)]


def test_an_image_that_is_not_finite_fails_by_step_and_term_and_its_neighbours_do_not_notice(
    unit_power, photos, targets
):
    search = optimizer(unit_power, replace(CONFIG, steps=15))
    sound = run(search, photos, targets)
    assert [outcome.failure for outcome in sound] == [None] * 6
    broken = run(search, exchanged(photos, {1: EMPTY, 4: SPECK}), targets)
    for index in (0, 2, 3, 5):
        assert_same(broken[index], sound[index])
    assert (broken[1].failure, broken[1].steps) == ("activation is not finite at step 0", 1)
    assert broken[4].failure == f"activation is not finite at step {broken[4].steps - 1}"
    assert all(np.isfinite(outcome.logits).all() for outcome in broken)


@pytest.mark.parametrize("term", ["activation", "cross_entropy"])
def test_the_step_named_is_the_first_whose_mask_the_classifier_cannot_bear(unit_power, term):
    image = jnp.asarray(unit_power.preprocess.normalize(np.float32(SPECK)))
    target = int(unit_power.apply(unit_power.params, image)[0].argmax())
    only = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0) | {term: 1.0})
    config = replace(CONFIG, objective=only, shrink=0.5)
    visited = by_hand(unit_power, config, image, target, image_keys(0, KEEPS_IT)[0])
    assert visited[0].mask[:4, :4].all()
    step = next(n for n, v in enumerate(visited) if not v.mask[:4, :4].any())
    assert [int(v.after.failed) for v in visited] == [-1] * step + [step]
    # That step moves nothing, so everything stays finite, and is the last.
    before, after = visited[-1].before, visited[-1].after
    moved = {"number": before.number, "failed": before.failed, "culprit": before.culprit}
    chex.assert_trees_all_equal(before, after._replace(**moved))
    chex.assert_tree_all_finite(after)
    assert int(after.number) == step + 1 and one.finished(config, after)
    [outcome] = run(optimizer(unit_power, config), [SPECK], [target], [KEEPS_IT])
    assert outcome.failure == f"{term} is not finite at step {step}"


def test_the_complement_may_be_what_is_not_finite(unit_power):
    config = replace(CONFIG, objective=replace(WEIGHTS, necessity=1.0))
    [outcome] = run(optimizer(unit_power, config), [SPECK], names=[KEEPS_IT])
    assert outcome.failure == "necessity is not finite at step 0"


def test_a_gradient_that_is_not_finite_is_named_where_all_terms_are(tiny, photos, targets):
    def apply(params, image):  # at zero: the value is 0, the derivative 0 · ∞
        return tiny.apply(params, image * jnp.sqrt(jnp.mean(image**2)))

    search = optimizer(replace(tiny, apply=apply), replace(CONFIG, steps=2))
    outcomes = run(search, exchanged(photos, {0: EMPTY}), targets)
    failures = [outcome.failure for outcome in outcomes]
    assert failures == ["gradient is not finite at step 0", *[None] * 5]


# --- the stopping rule ----------------------------------------------------------------------------

EARLY = replace(CONFIG, patience=4, progress=0.2)
FRESH = {"number": 0, "area": 1.0, "improved": 0, "failed": -1}


@pytest.mark.parametrize(
    ("patience", "known", "stops"),
    [
        (0, {}, False),
        (0, {"number": 29, "area": 0.5}, False),
        (0, {"number": 30}, True),
        (5, {"number": 20, "area": 0.5, "improved": 16}, False),
        (5, {"number": 20, "area": 0.5, "improved": 15}, True),
        (5, {"number": 20, "area": 0.5, "improved": 3}, True),
        (5, {"number": 29}, False),  # no sufficient mask yet: it goes on
        (5, {"number": 30}, True),
        (5, {"number": 30, "area": 0.5, "improved": 30}, True),
        (0, {"number": 1, "failed": 0}, True),
        (5, {"number": 9, "area": 0.5, "improved": 8, "failed": 8}, True),
    ],
)
def test_an_image_stops_after_its_steps_or_its_patience_or_a_failure(patience, known, stops):
    config = replace(CONFIG, patience=patience)
    start = one.init(config, make_generator(config, channels=3), KEYS[0])
    assert {name: getattr(start, name).item() for name in FRESH} == FRESH
    state = start._replace(**{name: jnp.asarray(value) for name, value in known.items()})
    assert bool(one.finished(config, state)) == stops


def steps_with_patience(config: Config, areas: list[float]) -> int:
    """Of a full run whose best mask has these areas after each step, those an impatient one takes."""
    area_then, since = 1.0, 0
    for number, area in enumerate(areas, start=1):
        if area < area_then and area <= (1 - config.progress) * area_then:
            area_then, since = area, number
        if area < 1 and number - since >= config.patience:
            return number
    return len(areas)


def test_patience_stops_a_run_where_it_no_longer_gets_ahead_and_changes_nothing_before(
    tiny, photos, targets, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "pure_functions", partial(loop.pure_functions, burst=1))
        full = Optimizer(tiny, CONFIG, Devices())
    slots = [full.put(*image) for image in zip(photos, targets, range(6), strict=True)]
    states = [[] for _ in slots]
    for _ in range(CONFIG.steps):
        full.advance()
        for slot, after in zip(slots, states, strict=True):
            after.append(jax.tree.map(lambda leaf, slot=slot: np.array(leaf[slot]), full.slots[1]))
    areas = [[float(state.area) for state in after] for after in states]
    for config in (EARLY, replace(EARLY, patience=3, progress=0.0)):
        outcomes = run(optimizer(tiny, config), photos, targets)
        expected = [steps_with_patience(config, best) for best in areas]
        assert [outcome.steps for outcome in outcomes] == expected
        assert min(expected) < 30 and len(set(expected)) > 1
        for outcome, after in zip(outcomes, states, strict=True):
            np.testing.assert_array_equal(outcome.mask, harden(after[outcome.steps - 1].logits))


# --- the slots ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "others"),
    [(EARLY, [(1, 1), (2, 3)]), (replace(PAPER, steps=8), [(1, 2)])],
    ids=["default", "paper"],
)
def test_an_images_outcome_is_the_same_in_any_slot_beside_any_others_on_any_devices(
    tiny, photos, config, others
):
    expected = run(optimizer(tiny, config), photos)
    assert (len({outcome.steps for outcome in expected}) > 1) == (config.patience > 0)
    order = [4, 0, 5, 2, 1, 3]
    for devices, batch_size in others:
        search = optimizer(tiny, replace(config, batch_size=batch_size), devices)
        shuffled = run(search, photos[order], names=order)
        for index, outcome in zip(order, shuffled, strict=True):
            assert_same(outcome, expected[index])


def test_another_seed_or_name_searches_elsewhere(tiny, photos):
    [first] = run(optimizer(tiny, CONFIG), photos[:1])
    for seed, name in ((0, 1), (0, 2**32 - 1), (2**32 - 1, 0)):
        [other] = run(optimizer(tiny, replace(CONFIG, seed=seed)), photos[:1], names=[name])
        assert not np.array_equal(first.logits, other.logits)


@pytest.mark.parametrize(
    ("notion", "term"), [("plain", "robustness"), ("robust", "cross_entropy")], ids=["term", "notion"]
)
def test_random_backgrounds_differ_from_step_to_step_and_come_of_the_images_key(
    tiny, images, targets, notion, term
):
    """Of a step of learning rate (almost) zero everything else stays the same."""
    only = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0) | {term: 1.0})
    still = {"learning_rate": 1e-30, "shrink": 1.0, "grow": 1.0}
    config = replace(CONFIG, notion=notion, objective=only, **still)

    def gradients(key):
        visited = by_hand(tiny, config, images[1], targets[1], key, budget=0.5, steps=6)
        assert len({v.mask.tobytes() for v in visited}) == 1
        moments = [np.zeros((8, 8)), *(np.asarray(v.after.optimizer[0].mu["free"]) for v in visited)]
        return [(b - 0.9 * a) / 0.1 for a, b in pairwise(moments)]

    first, again, other = gradients(KEYS[0]), gradients(KEYS[0]), gradients(KEYS[1])
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first[0], other[0])
    assert len({np.round(gradient / np.abs(first).max(), 4).tobytes() for gradient in first}) > 3


FOUR = replace(EARLY, batch_size=4)


def test_there_are_always_as_many_slots_and_an_image_that_is_taken_frees_its_own(tiny, photos):
    search = optimizer(tiny, FOUR)
    shapes = [leaf.shape for leaf in jax.tree.leaves(search.slots)]
    assert search.count == 4 and {shape[0] for shape in shapes} == {4}
    slots = [search.put(photo, None, name) for name, photo in enumerate(photos[:4])]
    assert sorted(slots) == [0, 1, 2, 3] and search.free == []
    while not (done := np.flatnonzero(search.advance() == 1)).size:
        pass
    assert done.size < 4
    for slot in done.tolist():
        search.take(slot)
    assert sorted(search.free) == done.tolist()
    slots.append(search.put(photos[4], None, 4))
    assert slots[4] in done
    assert [leaf.shape for leaf in jax.tree.leaves(search.slots)] == shapes
    for slot in set(slots) - set(search.free):
        search.take(slot)
    assert len(search.free) == 4


def test_every_device_has_an_image_before_any_has_two(tiny, photos):
    search = optimizer(tiny, FOUR)
    shards = jax.tree.leaves(search.slots)[0].addressable_shards
    home = {slot: shard.device for shard in shards for slot in range(4)[shard.index[0]]}
    slots = [search.put(photo, None, name) for name, photo in enumerate(photos[:4])]
    assert sorted(slots) == [0, 1, 2, 3]
    for pair in (slots[:2], slots[2:]):
        assert {home[slot] for slot in pair} == set(jax.devices())
    for slot in slots[::-1]:
        search.take(slot)
    assert search.put(photos[0], None, 0) == slots[0]
    search.take(slots[0])


# --- what it costs --------------------------------------------------------------------------------


def test_images_after_the_first_and_steps_after_the_first_compile_nothing(tiny, photos, compilations):
    search = Optimizer(tiny, replace(EARLY, batch_size=2), Devices())
    run(search, photos[:1])
    assert len(compilations) > 2  # so that the list can grow
    del compilations[:]
    outcomes = run(search, photos)
    assert len({outcome.steps for outcome in outcomes}) > 1
    assert compilations == []


def test_the_slots_are_donated_to_the_next_step_and_to_the_next_image(tiny, photos):
    search = optimizer(tiny, FOUR)
    before = search.slots
    slot = search.put(photos[0], None, 0)
    problem, state = search.slots
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    search.advance()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((search.slots, problem)))
    search.take(slot)


def test_only_the_classifier_of_the_steps_is_computed_in_another_type(tiny):
    seen = []

    def apply(params, image):
        seen.append({leaf.dtype.name for leaf in jax.tree.leaves((params, image))})
        return tiny.apply(params, image)

    watched = replace(tiny, apply=apply)
    seen.clear()
    enter, advance = loop.pure_functions(watched, replace(CONFIG, dtype="bfloat16"))
    pixels, number, name = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((32, 32, 3), jnp.uint8), ((), jnp.int32), ((), jnp.uint32))
    )
    problem, state = jax.eval_shape(enter, tiny.params, pixels, number, number, name)
    assert seen == [{"float32"}]
    after = jax.eval_shape(advance, tiny.params, problem, state)
    assert len(seen) > 1 and all(types == {"bfloat16"} for types in seen[1:])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_to_compute_again_instead_of_keeping_changes_nothing_but_the_work(tiny, photos):
    def apply(params, image):
        return tiny.apply(params, checkpoint_name(image, BLOCK))

    brief = replace(CONFIG, steps=8)
    remat = optimizer(replace(tiny, apply=apply), replace(brief, remat=True))
    found, convolutions = [], []
    for search in (optimizer(tiny, brief), remat):
        found.append(run(search, photos))
        text = search._advance.lower(search._params, *search.slots).as_text()
        convolutions.append(text.count("stablehlo.convolution"))
    assert convolutions[1] > convolutions[0]
    for kept, again in zip(*found, strict=True):
        assert (kept.mask & again.mask).sum() / (kept.mask | again.mask).sum() > 0.95
