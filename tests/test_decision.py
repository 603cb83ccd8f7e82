"""The decision: three kinds of question in one form, each against a rule written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax.objective.decision import ALL, NONE, Decision, ask, log_odds, margin, probability
from amx_jax.objective.terms import cross_entropy, kl_divergence, necessity

LOGITS = st.lists(st.floats(-20, 20, width=32, allow_subnormal=False), min_size=2, max_size=6).map(
    np.float32
)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.float64(z)))


@given(LOGITS, st.data())
@settings(max_examples=60, deadline=None)
def test_the_target_is_on_top_where_it_is_the_only_argmax(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    others = np.delete(logits, target)
    assert float(margin(logits, Decision(target))) == np.float32(logits[target] - others.max())
    assert float(margin(logits, target)) == float(margin(logits, Decision(target, ALL)))


@given(LOGITS, st.data())
@settings(max_examples=60, deadline=None)
def test_rather_than_a_rival_looks_at_these_two_classes_alone(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    rival = data.draw(st.integers(0, len(logits) - 1).filter(lambda index: index != target))
    decision = Decision(target, rival)
    difference = np.float32(logits[target] - logits[rival])
    assert float(margin(logits, decision)) == difference
    pair = jnp.asarray(logits)[jnp.array([target, rival])]
    np.testing.assert_allclose(cross_entropy(logits, decision), cross_entropy(pair, 0), rtol=1e-5)
    np.testing.assert_allclose(necessity(logits, decision), necessity(pair, 0), rtol=1e-5)


@given(LOGITS, st.floats(0.01, 0.99), st.data())
@settings(max_examples=60, deadline=None)
def test_a_class_of_a_sigmoid_head_is_present_above_the_threshold_whatever_the_others(
    logits, threshold, data
):
    target = data.draw(st.integers(0, len(logits) - 1))
    decision = ask("sigmoid", threshold, logits, target, -1)
    assert int(decision.rival) == NONE
    found, above = float(margin(logits, decision)), sigmoid(logits[target]) - threshold
    assert abs(above) < 1e-5 or (found > 0) == (above > 0)
    changed = np.where(np.arange(len(logits)) == target, logits, 20.0)
    assert float(margin(changed, decision)) == found


def test_at_a_threshold_of_a_half_the_terms_are_those_of_the_sigmoid():
    logits = np.float32([-1.5, 0.3, 2.0])
    for target, z in enumerate(logits):
        decision = ask("sigmoid", 0.5, logits, target, -1)
        np.testing.assert_allclose(cross_entropy(logits, decision), -np.log(sigmoid(z)), rtol=1e-5)
        np.testing.assert_allclose(necessity(logits, decision), -np.log(1 - sigmoid(z)), rtol=1e-5)


def test_without_a_target_the_highest_logit_is_asked_about():
    logits = jnp.array([0.0, 3.0, 1.0])
    for head in ("softmax", "sigmoid"):
        assert int(ask(head, 0.5, logits, -1, -1).target) == 1
        assert int(ask(head, 0.5, logits, 2, -1).target) == 2
    decision = ask("sigmoid", 0.5, logits, -1, 2)
    assert (int(decision.rival), float(decision.bound)) == (2, -np.inf)


def test_one_program_serves_a_batch_of_different_questions():
    logits = jnp.array([[1.0, 3.0, 2.0]] * 3)
    batch = Decision(jnp.array([1, 2, 1]), jnp.array([ALL, 0, NONE]), jnp.array([-jnp.inf] * 2 + [0.5]))
    found = jax.jit(jax.vmap(margin))(logits, batch)
    assert found.tolist() == [1.0, 1.0, 2.5]


@pytest.mark.parametrize("decision", [Decision(0), Decision(0, 2), Decision(0, NONE, 0.3)])
def test_gradients_are_finite_and_move_only_what_competes(decision):
    logits = jnp.array([0.5, -1.0, 2.0, 40.0])
    competing = {ALL: [1, 2, 3], 2: [2], NONE: []}[decision.rival]
    for function in (log_odds, cross_entropy, necessity, margin):
        gradient = np.asarray(jax.grad(function)(logits, decision))
        assert np.isfinite(gradient).all()
        assert set(np.flatnonzero(gradient)) <= {0, *competing}
    assert jax.grad(log_odds)(logits, decision)[0] == 1.0


def test_probabilities_are_the_heads():
    logits = jnp.array([0.0, 1.0, -2.0])
    np.testing.assert_allclose(
        probability("softmax", logits, 1), np.exp(1) / (1 + np.exp(1) + np.exp(-2)), rtol=1e-6
    )
    np.testing.assert_allclose(probability("sigmoid", logits, 1), sigmoid(1), rtol=1e-6)


def test_the_divergence_of_a_sigmoid_head_is_the_sum_over_its_classes():
    reference, logits = np.float32([0.3, -2.0, 4.0]), np.float32([1.0, 1.0, -1.0])
    p, q = sigmoid(reference), sigmoid(logits)
    expected = np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(kl_divergence(reference, logits, "sigmoid"), expected, rtol=1e-5)
    assert kl_divergence(reference, reference, "sigmoid") == 0.0
