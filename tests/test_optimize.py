"""The search: it keeps the smallest sufficient mask it meets, each image on its own."""

from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amx_jax import Classifier, Config, Weights, preset
from amx_jax.masks.composition import blur, sample_background
from amx_jax.masks.hardening import hard_mask
from amx_jax.objective.decision import MARGIN
from amx_jax.objective.objective import Reference
from amx_jax.optimize import step as one
from amx_jax.optimize.loop import Optimizer, make_generator

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
KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.fixture(scope="module")
def images(tiny, photos):
    return jnp.asarray(tiny.preprocess.normalize(photos.astype(np.float32)))


@pytest.fixture(scope="module")
def targets(tiny, images):
    return jnp.asarray([int(tiny.apply(tiny.params, image)[0].argmax()) for image in images], jnp.int32)


# --- one image by hand, step by step --------------------------------------------------------------


class Visited(NamedTuple):
    """What one step looked at, and the state it left."""

    mask: np.ndarray  # bool (H, W)
    loss: float  # the classifier's cross-entropy on it
    sufficient: bool
    before: one.State
    after: one.State


harden = jax.jit(partial(hard_mask, shape=(32, 32)))
optimizer = cache(Optimizer)  # tests of one configuration share its compiled functions


@cache
def compiled(classifier: Classifier, config: Config):
    generator = make_generator(config, channels=3)
    classify = jax.jit(partial(classifier.apply, classifier.params))
    return generator, classify, jax.jit(partial(one.step, config, generator, classify, LIMITS))


def by_hand(classifier, config, image, target, key, budget=1.0, steps=None) -> list[Visited]:
    """The loop for one image, with each mask judged by a forward pass of its own."""
    generator, classify, advance = compiled(classifier, config)
    reference = Reference(image, target, *classify(image))
    init_key, step_key = jax.random.split(key)
    state = one.init(config, generator, init_key)._replace(budget=jnp.float32(budget))
    visited = []
    for number in range(steps or config.steps):
        logits = np.asarray(generator.apply(state.params, image))
        if config.budget:  # the n-th largest logits are above the threshold
            dropped = int(np.floor((1 - np.asarray(state.budget)) * logits.size))
            logits = logits - (np.sort(logits.ravel())[dropped - 1] if dropped else logits.min() - 1)
        mask = np.asarray(harden(logits))
        z = np.asarray(classify(jnp.where(mask[..., None], image, GRAY))[0], np.float64)
        after = advance(reference, state, step_key, number)
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


def test_the_batched_loop_is_the_loop_by_hand_of_each_image(tiny, images, targets):
    brief = replace(CONFIG, steps=8)  # rounding differs, and in more steps it adds up
    outcome = optimizer(tiny, brief)(images, targets, KEYS)
    assert outcome.failures == [None] * 6
    assert outcome.found.all()
    for index in range(6):
        last = by_hand(tiny, brief, images[index], targets[index], KEYS[index])[-1].after
        mask = np.asarray(harden(last.logits))
        both, either = (outcome.masks[index] & mask).sum(), (outcome.masks[index] | mask).sum()
        assert both / either > 0.95
        np.testing.assert_array_equal(outcome.logits[index] > 0, outcome.masks[index])


def test_its_masks_are_sufficient_when_asked_again(tiny, images, targets):
    outcome = optimizer(tiny, CONFIG)(images, targets, KEYS)
    for image, target, mask in zip(images, targets, outcome.masks, strict=True):
        logits, _ = tiny.apply(tiny.params, jnp.where(mask[..., None], image, GRAY))
        assert logits.argmax() == target


def test_without_a_sufficient_mask_all_pixels_stay(tiny, images):
    never = jnp.full(6, tiny.class_index("never"))
    outcome = optimizer(tiny, CONFIG)(images, never, KEYS)
    assert not outcome.found.any()
    assert outcome.masks.all()
    assert outcome.failures == [None] * 6


def test_the_callback_counts_the_steps(tiny, images, targets):
    steps = []
    optimizer(tiny, CONFIG)(images, targets, KEYS, on_step=steps.append)
    assert steps == list(range(1, CONFIG.steps + 1))


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
    sampled = jax.jit(sample_background)(step_key, image, blur(image, 32 / 20), *LIMITS[1:])
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

SPECK = np.zeros((32, 32, 3), np.float32)  # only one corner is not gray: without it, 0 / 0
SPECK[:4, :4] = 0.5


def with_inputs(classifier, config, images, targets, changed):
    """The outcome for the images with some of them exchanged."""
    images = images.at[jnp.asarray(list(changed))].set(jnp.stack(list(changed.values())))
    return optimizer(classifier, config)(images, targets, KEYS)


def test_an_image_that_is_not_finite_fails_by_step_and_term_and_its_neighbours_do_not_notice(
    unit_power, images, targets
):
    config = replace(CONFIG, steps=15)
    sound = optimizer(unit_power, config)(images, targets, KEYS)
    assert sound.failures == [None] * 6
    changed = {1: jnp.zeros((32, 32, 3)), 4: jnp.asarray(SPECK)}
    broken = with_inputs(unit_power, config, images, targets, changed)
    others = [0, 2, 3, 5]
    assert [broken.failures[i] for i in others] == [None] * 4
    assert broken.failures[1] == "activation is not finite at step 0"
    assert broken.failures[4] is not None
    for name in ("masks", "logits", "found"):
        np.testing.assert_array_equal(getattr(broken, name)[others], getattr(sound, name)[others])
    assert np.isfinite(broken.logits).all()


@pytest.mark.parametrize("term", ["activation", "cross_entropy"])
def test_the_step_named_is_the_first_whose_mask_the_classifier_cannot_bear(unit_power, term):
    image = jnp.asarray(SPECK)
    target = int(unit_power.apply(unit_power.params, image)[0].argmax())
    only = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0) | {term: 1.0})
    config = replace(CONFIG, objective=only, shrink=0.5)
    visited = by_hand(unit_power, config, image, target, KEYS[0])
    step = next(n for n, v in enumerate(visited) if not v.mask[:4, :4].any())
    assert step > 0
    assert all(int(v.after.failed) == -1 for v in visited[:step])
    assert {int(v.after.failed) for v in visited[step:]} == {step}
    # From then on it stands still, finite.
    chex.assert_trees_all_equal(visited[step].before.params, visited[-1].after.params)
    chex.assert_tree_all_finite(visited[-1].after)
    outcome = optimizer(unit_power, config)(image[None], jnp.array([target]), KEYS[:1])
    assert outcome.failures == [f"{term} is not finite at step {step}"]


def test_the_complement_may_be_what_is_not_finite(unit_power, images, targets):
    weights = replace(WEIGHTS, necessity=1.0)  # at first everything is kept: the complement is gray
    outcome = optimizer(unit_power, replace(CONFIG, objective=weights))(images, targets, KEYS)
    assert outcome.failures == ["necessity is not finite at step 0"] * 6


def test_a_gradient_that_is_not_finite_is_named_where_all_terms_are(tiny, images, targets):
    def apply(params, image):  # at zero: the value is 0, the derivative 0 · ∞
        return tiny.apply(params, image * jnp.sqrt(jnp.mean(image**2)))

    rooted = replace(tiny, apply=apply)
    gray = {0: jnp.zeros((32, 32, 3))}
    outcome = with_inputs(rooted, replace(CONFIG, steps=2), images, targets, gray)
    assert outcome.failures == ["gradient is not finite at step 0", *[None] * 5]


# --- what it costs --------------------------------------------------------------------------------


def test_batches_after_the_first_and_steps_after_the_first_compile_nothing(tiny, images, targets):
    traces = []

    def traced(params, image):
        traces.append(image)
        return tiny.apply(params, image)

    search = Optimizer(replace(tiny, apply=traced), CONFIG)
    counts = []
    for shift in range(3):
        batch = (jnp.roll(array, shift, axis=0) for array in (images, targets, KEYS))
        search(*batch, on_step=lambda number: counts.append(len(traces)))
    assert len(set(counts)) == 1


def test_the_state_of_a_step_is_donated_to_the_next(tiny, images, targets):
    search = optimizer(tiny, CONFIG)
    state = search._init(KEYS)
    references = search._refer(tiny.params, images, targets)
    after = search._advance(tiny.params, references, state, KEYS, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, references)))
