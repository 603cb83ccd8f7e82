"""The PyTorch reference of the benchmarks: the same objective, gradient and steps as ours."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from amx_jax import Config, Weights
from amx_jax.classifiers.registry import load_classifier
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.errors import ConfigError
from amx_jax.masks.hardening import budget_threshold, soft_mask, straight_through_mask
from amx_jax.objective.objective import Reference as Ours
from amx_jax.objective.objective import evaluate_terms, weighted_sum
from amx_jax.optimize import step as one
from amx_jax.optimize.loop import make_generator
from benchmarks.pytorch_reference import CompilerError, Reference, from_jax
from benchmarks.pytorch_reference.classifier import Classifier
from benchmarks.recheck import load_model

SIDE = 64  # in place of 224: the network does not mind, and a test takes seconds
CONFIG = Config(
    grid=8,
    background=(100, 127, 140),
    objective=Weights(
        activation=0.2,
        kl=0.1,
        cross_entropy=1.0,
        area=0.3,
        binarization=0.2,
        total_variation=0.1,
        robustness=0.0,
        necessity=0.0,
    ),
)
N = 2
# A pixel at the mask's edge falls to the other side by rounding alone, and its image goes another way.
# Small steps put that off; a budget in a hurry meets sufficient masks and others.
GENTLE = replace(CONFIG, learning_rate=1e-4, shrink=0.9, steps=10)
FULL = 1.0  # the budget that the walks begin at: at the usual one these small photos only rise to it
# PyTorch's compiler warns of deprecated parts of PyTorch.
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COMPILED = pytest.param("compiled", marks=[pytest.mark.slow, QUIET])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the test may not be alone
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ours():
    return load_classifier("efficientnet_lite0")


@pytest.fixture(scope="module")
def model():
    return load_model("efficientnet_lite0")


def photos(classifier, side=SIDE):
    preprocess = replace(classifier.preprocess, size=side)
    pixels = [preprocess.crop(read_photo(path)) for path in bundled_photos()[:N]]
    return np.stack([preprocess.normalize(p) for p in pixels])


@pytest.fixture(scope="module")
def images(ours):
    return photos(ours)


@pytest.fixture(scope="module")
def targets(model, images):
    with torch.no_grad():
        return model(torch.tensor(images).movedim(3, 1)).argmax(1).numpy()


def of_image(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def references(classifier, config, images, targets):
    logits, activations = jax.vmap(partial(classifier.apply, classifier.params))(images)
    matched = {s: activations[s] for s in config.stages or classifier.stages}
    return Ours(jnp.asarray(images), jnp.asarray(targets), logits, matched)


def generators(config, seed=0):
    """Parameters for each image; the free logits are not zero, as they are at first."""
    keys = jax.random.split(jax.random.key(seed), N)
    params = jax.vmap(make_generator(config, channels=3).init)(keys)
    params["free"][...] = jax.random.normal(jax.random.key(9), params["free"].shape) / config.free_gain
    return params


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def our_objective(classifier, config):
    """``(reference, mask, soft) -> objective`` of one image."""
    background = jnp.asarray(classifier.preprocess.normalize(np.float32(config.background)))
    classify = partial(classifier.apply, classifier.params)

    def objective(reference, mask, soft):
        values, _ = evaluate_terms(
            config.objective, classify, reference, mask, soft, background, background
        )
        return weighted_sum(config.objective, values)

    return objective


def our_loss(classifier, config):
    """``(params, reference, budget) -> objective`` of one image."""
    generator, objective = make_generator(config, channels=3), our_objective(classifier, config)

    def loss(params, reference, budget):
        logits = generator.apply(params, generator.see(reference.image))
        logits -= jax.lax.stop_gradient(budget_threshold(logits, budget))
        mask = straight_through_mask(logits, (SIDE, SIDE), config.temperature)
        return objective(reference, mask, soft_mask(logits, config.temperature))

    return loss


# --- the parts ------------------------------------------------------------------------------------


def test_folded_stages_are_those_of_our_classifier(ours, model, images):
    with torch.no_grad():
        found_logits, found = Classifier(model)(torch.tensor(images).movedim(3, 1))
    logits, expected = jax.vmap(partial(ours.apply, ours.params))(images)
    assert set(found) == set(expected) - {"pooled"}
    for stage, activation in found.items():
        assert relative_error(activation.movedim(1, 3).numpy(), expected[stage]) < 1e-5, stage
    assert relative_error(found_logits.numpy(), logits) < 1e-5


def test_folding_changes_nothing_at_full_size(ours, model):
    images = torch.tensor(photos(ours, 224)).movedim(3, 1)
    with torch.no_grad():
        assert relative_error(Classifier(model)(images)[0].numpy(), model(images).numpy()) < 1e-5


def test_same_masks_give_the_same_objective(ours, model, images, targets):
    rng = np.random.default_rng(0)
    soft = rng.random((N, 8, 8), np.float32)
    masks = rng.random((N, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2) < 0.5
    reference = Reference(CONFIG, model, images, targets)
    found = reference.losses_of_masks(masks, soft)
    objective = jax.vmap(our_objective(ours, CONFIG))
    expected = objective(references(ours, CONFIG, images, targets), jnp.float32(masks), soft)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_same_parameters_give_the_same_objective_and_gradient(ours, model, images, targets):
    params, budget = generators(CONFIG), 0.4
    found, gradient = Reference(CONFIG, model, images, targets).losses(from_jax(params), budget)
    value_and_grad = jax.jit(jax.value_and_grad(our_loss(ours, CONFIG)))
    theirs = references(ours, CONFIG, images, targets)
    values, gradients = zip(
        *(value_and_grad(of_image(params, i), of_image(theirs, i), budget) for i in range(N)),
        strict=True,
    )
    np.testing.assert_allclose(found, values, rtol=1e-4)
    for name, expected in from_jax(stacked(gradients)).items():
        for image in range(N):  # measured: 5e-6; a unit over a kink of ReLU6 would cost more
            assert relative_error(gradient[name][image].numpy(), expected[image].numpy()) < 1e-3, name


# --- the steps ------------------------------------------------------------------------------------


def walk(form, config, model, images, targets, params):
    """The reference, its last state, and every step's budgets and areas, ``(steps, 2, n)``."""
    try:
        reference = Reference(config, model, images, targets, form)
    except CompilerError as error:
        pytest.skip(str(error))
    state, seen = reference.init(params), []
    assert (state.budget == one.START).all()
    for part in state.parts:
        part.budget = FULL * torch.ones_like(part.budget)
    for _ in range(config.steps):
        reference.step(state)
        seen.append((state.budget.numpy(), state.area.numpy()))
    return reference, state, np.array(seen)


def assert_same_way(found, expected, start):
    """How far two sets of parameters are apart, to how far they have come."""
    for name in start:
        moved = [(params[name] - start[name]).numpy() for params in (found, expected)]
        assert relative_error(*moved) < 0.15, name


@pytest.mark.slow
def test_ten_steps_are_ours(ours, model, images, targets):
    """Measured: parameters 6 % of their way apart after ten steps, from rounding."""
    params = generators(GENTLE)
    generator, classify = make_generator(GENTLE, channels=3), partial(ours.apply, ours.params)
    limits = (jnp.asarray(ours.preprocess.normalize(np.float32(GENTLE.background))),) * 3

    @jax.jit
    def step(reference, state):
        problem = one.pose(GENTLE, generator, reference, jax.random.key(0))
        return one.step(GENTLE, generator, classify, limits, problem, state)

    theirs = references(ours, GENTLE, images, targets)
    states = [
        one.init(GENTLE, generator, jax.random.key(0))._replace(
            params=of_image(params, i), budget=jnp.float32(FULL)
        )
        for i in range(N)
    ]
    expected = []
    for _ in range(GENTLE.steps):
        states = [step(of_image(theirs, i), state) for i, state in enumerate(states)]
        expected.append([[state.budget for state in states], [state.area for state in states]])
    start = from_jax(params)
    _, state, found = walk("batched", GENTLE, model, images, targets, start)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)
    rose = np.diff(found[:, 0], axis=0) > 0
    assert rose.any() and not rose.all()
    after = from_jax(stacked([state.params for state in states]))
    assert_same_way(state.params, after, start)
    np.testing.assert_allclose(state.logits, np.stack([s.logits for s in states]), atol=0.05)


@pytest.mark.parametrize("form", ["loop", COMPILED])
def test_the_forms_take_the_same_steps(form, model, images, targets):
    start = from_jax(generators(GENTLE))
    reference, state, found = walk(form, GENTLE, model, images, targets, start)
    batched, expected_state, expected = walk("batched", GENTLE, model, images, targets, start)
    gradients = [r.losses(start, 0.4)[1] for r in (reference, batched)]
    for name in start:
        assert relative_error(*(g[name].numpy() for g in gradients)) < 1e-3, name
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert_same_way(state.params, expected_state.params, start)


def test_a_value_that_is_not_finite_stops_its_image_alone(model, images, targets):
    start = from_jax(generators(GENTLE))
    broken = images.copy()
    broken[0, 0, 0] = np.inf
    _, alone, _ = walk(
        "batched", GENTLE, model, images[1:], targets[1:], {k: v[1:] for k, v in start.items()}
    )
    _, state, found = walk("batched", GENTLE, model, broken, targets, start)
    assert state.failed.tolist() == [0, -1]
    assert np.all(found[:, 1, 0] == 1)
    assert all(torch.isfinite(values).all() for values in state.params.values())
    np.testing.assert_allclose(state.area[1:], alone.area, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "form", "named"),
    [
        (replace(CONFIG, objective=Weights(robustness=1.0)), "loop", "robustness"),
        (replace(CONFIG, objective=Weights(necessity=1.0)), "loop", "necessity"),
        (replace(CONFIG, generator="grid"), "loop", "generator"),
        (replace(CONFIG, dtype="bfloat16"), "loop", "dtype"),
        (replace(CONFIG, hardening="annealed"), "loop", "hardening"),
        (CONFIG, "eager", "form"),
    ],
)
def test_what_it_lacks_is_refused_by_name(config, form, named, model, images, targets):
    with pytest.raises(ConfigError, match=named):
        Reference(config, model, images, targets, form)


def test_a_missing_compiler_is_named(monkeypatch, model, images, targets):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler$"):
        Reference(CONFIG, model, images, targets, "compiled")
