"""The objective: each term sees the right image and the right mask, and costs only what it weighs."""

from dataclasses import asdict, fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from amx_jax import Weights
from amx_jax.objective.objective import Reference, evaluate_terms, weighted_sum

TERMS = [f.name for f in fields(Weights)]
ALL = Weights(**dict.fromkeys(TERMS, 1.0))
NONE = dict.fromkeys(TERMS, 0.0)
TARGET = 1


@pytest.fixture(scope="module")
def inputs(tiny, photos):
    """Image, masks and backgrounds, all of them different."""
    rng = np.random.default_rng(3)
    return {
        "image": tiny.preprocess.normalize(photos[0].astype(np.float32)),
        "mask": rng.uniform(0, 1, (32, 32)).astype(np.float32),
        "soft": rng.uniform(0, 1, (8, 8)).astype(np.float32),
        "background": np.float32([-0.5, 0.1, 0.9]),
        "sampled": rng.uniform(-1, 1, (32, 32, 3)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def classify(tiny):
    return partial(tiny.apply, tiny.params)


def evaluate(weights, classify, inputs):
    image, *rest = inputs.values()
    logits, activations = classify(image)
    reference = Reference(jnp.asarray(image), jnp.asarray(TARGET), logits, activations)
    return evaluate_terms(weights, classify, reference, *map(jnp.asarray, rest))


def slow_terms(classify, image, mask, soft, background, sampled):
    """From the classifier's outputs on, in float64."""

    def run(composed):
        logits, activations = classify(jnp.asarray(composed, jnp.float32))
        log_p = special.log_softmax(np.asarray(logits, np.float64))
        return log_p, {stage: np.asarray(a, np.float64) for stage, a in activations.items()}

    m = mask[:, :, None]
    log_p_x, x = run(image)
    log_p_e, e = run(m * image + (1 - m) * background)
    log_p_b, _ = run(m * image + (1 - m) * sampled)
    log_p_c, _ = run((1 - m) * image + m * background)
    steps = np.abs(np.diff(soft, axis=0)).sum() + np.abs(np.diff(soft, axis=1)).sum()
    return {
        "activation": np.mean([np.sum((e[s] - x[s]) ** 2) / np.sum(x[s] ** 2) for s in x]),
        "kl": np.sum(special.rel_entr(np.exp(log_p_x), np.exp(log_p_e))),
        "cross_entropy": -log_p_e[TARGET],
        "area": soft.mean(),
        "binarization": np.mean(soft - soft**2),
        "total_variation": steps / 8,
        "robustness": -log_p_b[TARGET],
        "necessity": -np.log1p(-np.exp(log_p_c[TARGET])),
    }


def test_every_term_is_its_formula_on_the_explanation_the_complement_or_the_mask(classify, inputs):
    values, logits = evaluate(ALL, classify, inputs)
    expected = slow_terms(classify, **inputs)
    assert list(values) == TERMS  # the order in which a culprit is looked for
    for term, value in values.items():
        assert value.shape == ()
        assert float(value) == pytest.approx(expected[term], rel=1e-4, abs=1e-6), term
    assert min(expected.values()) > 1e-3  # or the comparison would say little
    m = inputs["mask"][:, :, None]
    explanation = m * inputs["image"] + (1 - m) * inputs["background"]
    np.testing.assert_allclose(logits, classify(jnp.asarray(explanation))[0], rtol=1e-4, atol=1e-4)


def test_activations_are_matched_over_the_references_stages_only(classify, inputs):
    logits, activations = classify(inputs["image"])
    image, *rest = inputs.values()
    one = Reference(image, TARGET, logits, {"stage2": activations["stage2"]})
    values, _ = evaluate_terms(ALL, classify, one, *rest)
    m = inputs["mask"][:, :, None]
    found = classify(m * image + (1 - m) * inputs["background"])[1]["stage2"]
    expected = np.sum((found - activations["stage2"]) ** 2) / np.sum(activations["stage2"] ** 2)
    assert float(values["activation"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_only_the_weighted_term_is_evaluated_and_only_its_forward_passes_are_run(
    classify, inputs, term
):
    calls = []

    def counted(image):
        calls.append(image)
        return classify(image)

    weights = Weights(**NONE | {term: 0.5})
    values, _ = jax.eval_shape(lambda: evaluate(weights, counted, inputs))
    assert set(values) == {term}
    on_reference_and_explanation = 2
    assert len(calls) == on_reference_and_explanation + (term in ("robustness", "necessity"))


def test_all_eight_terms_cost_three_forward_passes(classify, inputs):
    calls = []

    def counted(image):
        calls.append(image)
        return classify(image)

    jax.eval_shape(lambda: evaluate(ALL, counted, inputs))
    assert len(calls) == 1 + 3  # one of them for the reference


def test_a_mask_of_ones_leaves_nothing_to_match_and_one_of_zeros_nothing_to_remove(classify, inputs):
    whole, _ = evaluate(ALL, classify, inputs | {"mask": np.ones((32, 32), np.float32)})
    assert float(whole["activation"]) == 0
    assert float(whole["kl"]) == 0
    empty, logits = evaluate(ALL, classify, inputs | {"mask": np.zeros((32, 32), np.float32)})
    bare, _ = classify(jnp.broadcast_to(inputs["background"], (32, 32, 3)))
    np.testing.assert_allclose(logits, bare, rtol=1e-5, atol=1e-5)
    p_image = special.softmax(np.asarray(classify(inputs["image"])[0], np.float64))[TARGET]
    assert float(empty["necessity"]) == pytest.approx(-np.log1p(-p_image), rel=1e-4)


def test_the_weighted_sum_is_the_scalar_product_of_weights_and_terms():
    rng = np.random.default_rng(0)
    weights = Weights(**dict(zip(TERMS, rng.uniform(0, 3, 8), strict=True)))
    values = dict(zip(TERMS, rng.uniform(0, 3, 8).astype(np.float32), strict=True))
    expected = sum(weight * float(values[term]) for term, weight in asdict(weights).items())
    assert float(weighted_sum(weights, values)) == pytest.approx(expected, rel=1e-6)
    gradient = jax.grad(lambda v: weighted_sum(weights, v))(values)
    assert gradient == pytest.approx(asdict(weights))
    assert float(weighted_sum(weights, {"kl": values["kl"]})) == pytest.approx(
        weights.kl * float(values["kl"]), rel=1e-6
    )


def test_no_terms_sum_to_zero():
    assert float(weighted_sum(ALL, {})) == 0.0
