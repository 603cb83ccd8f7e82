"""The loss terms: what each measures, against its formula written out in float64, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amx_jax.objective.terms import (
    activation_matching,
    area,
    binarization,
    cross_entropy,
    kl_divergence,
    necessity,
    robustness,
    total_variation,
)

SEEDS = range(5)

# --- the formulas, written out --------------------------------------------------------------------


def probability(logits, c):
    return np.exp(logits[c]) / sum(np.exp(z) for z in logits)


def slow_activation_matching(reference, activations):
    total = 0.0
    for stage in reference:
        distance = norm = 0.0
        for at in np.ndindex(reference[stage].shape):
            distance += (activations[stage][at] - reference[stage][at]) ** 2
            norm += reference[stage][at] ** 2
        total += distance / norm
    return total / len(reference)


def slow_kl_divergence(reference, logits):
    total = 0.0
    for c in range(len(logits)):
        p, q = probability(reference, c), probability(logits, c)
        total += p * (np.log(p) - np.log(q))
    return total


def slow_cross_entropy(logits, target):
    return -np.log(probability(logits, target))


def slow_robustness(logits, target):
    return sum(-np.log(probability(row, target)) for row in logits) / len(logits)


def slow_necessity(logits, target):
    return -np.log1p(-probability(logits, target))


def slow_area(mask):
    return sum(abs(m) for row in mask for m in row) / (len(mask) * len(mask[0]))


def slow_binarization(mask):
    return sum(m * (1 - m) for row in mask for m in row) / (len(mask) * len(mask[0]))


def slow_total_variation(mask):
    height, width = mask.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            if i + 1 < height:
                total += abs(mask[i + 1, j] - mask[i, j])
            if j + 1 < width:
                total += abs(mask[i, j + 1] - mask[i, j])
    return total / np.sqrt(height * width)


# --- random inputs of one image; the last column: which argument the optimiser moves --------------


def two_activations(rng):
    shapes = {"stem": (4, 3, 2), "head": (5,)}
    return [{stage: rng.normal(size=shape) for stage, shape in shapes.items()} for _ in range(2)]


def two_logits(rng):
    return [rng.normal(0, 3, 7), rng.normal(0, 3, 7)]


def logits_and_target(rng):
    return [rng.normal(0, 3, 7), rng.integers(7)]


def rows_and_target(rng):
    return [rng.normal(0, 3, (4, 7)), rng.integers(7)]


def one_mask(rng):
    return [rng.uniform(size=(5, 3))]


CASES = {
    activation_matching: (slow_activation_matching, two_activations, 1),
    kl_divergence: (slow_kl_divergence, two_logits, 1),
    cross_entropy: (slow_cross_entropy, logits_and_target, 0),
    robustness: (slow_robustness, rows_and_target, 0),
    necessity: (slow_necessity, logits_and_target, 0),
    area: (slow_area, one_mask, 0),
    binarization: (slow_binarization, one_mask, 0),
    total_variation: (slow_total_variation, one_mask, 0),
}

every_term = pytest.mark.parametrize("term", CASES, ids=lambda term: term.__name__)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def draw(term, seed):
    """The same arguments for the formula, in float64, and for the term, in float32."""
    arguments = CASES[term][1](np.random.default_rng(seed))
    as_float32 = jax.tree.map(jnp.asarray, arguments)
    exact = jax.tree.map(
        lambda a: int(a) if a.dtype == jnp.int32 else np.array(a, np.float64), as_float32
    )
    return exact, as_float32


def central_differences(function, variable):
    """The gradient of ``function()`` in every element of ``variable``, arrays it reads."""

    def one(array):
        gradient = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            here = array[at]
            array[at] = here + 1e-6
            above = function()
            array[at] = here - 1e-6
            below = function()
            array[at] = here
            gradient[at] = (above - below) / 2e-6
        return gradient

    return jax.tree.map(one, variable)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol, atol), actual, expected)


# --- every term -----------------------------------------------------------------------------------


@every_seed
@every_term
def test_a_term_is_its_formula(term, seed):
    exact, arguments = draw(term, seed)
    value = term(*arguments)
    assert value.shape == () and value.dtype == jnp.float32
    assert_close(value, CASES[term][0](*exact))


@every_seed
@every_term
def test_a_gradient_is_the_formulas(term, seed):
    formula, _, moved = CASES[term]
    exact, arguments = draw(term, seed)
    expected = central_differences(lambda: formula(*exact), exact[moved])
    assert_close(jax.grad(term, argnums=moved)(*arguments), expected, rtol=1e-4)


@every_term
def test_a_batch_is_its_images_one_by_one(term):
    images = [draw(term, seed)[1] for seed in SEEDS]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *images)
    together = jax.jit(jax.vmap(term))(*batch)
    assert together.shape == (len(SEEDS),)
    assert_close(together, [term(*arguments) for arguments in images])


@every_term
def test_a_batch_of_gradients_is_its_images_one_by_one(term):
    gradient = jax.grad(term, argnums=CASES[term][2])
    images = [draw(term, seed)[1] for seed in SEEDS]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *images)
    together = jax.jit(jax.vmap(gradient))(*batch)
    for i, arguments in enumerate(images):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), gradient(*arguments))


# --- activation matching --------------------------------------------------------------------------


@pytest.fixture
def activations():
    return jax.tree.map(jnp.asarray, two_activations(np.random.default_rng(0))[0])


def test_equal_activations_match_perfectly_and_pull_nowhere(activations):
    value, gradient = jax.value_and_grad(activation_matching, argnums=1)(activations, activations)
    assert value == 0.0
    assert_close(gradient, jax.tree.map(jnp.zeros_like, activations), atol=0)


def test_all_zero_activations_cost_one(activations):
    assert_close(activation_matching(activations, jax.tree.map(jnp.zeros_like, activations)), 1.0)


def test_twice_the_activations_cost_one_and_thrice_cost_four(activations):
    for factor, cost in ((2.0, 1.0), (3.0, 4.0)):
        scaled = jax.tree.map(lambda a, factor=factor: factor * a, activations)
        assert_close(activation_matching(activations, scaled), cost)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_stages_weigh_alike_whatever_their_scale(scale):
    reference = {"one": jnp.array([3.0, -4.0]), "other": scale * jnp.array([3.0, -4.0])}
    for lost in reference:
        assert_close(activation_matching(reference, {**reference, lost: jnp.zeros(2)}), 0.5)


def test_stages_weigh_alike_whatever_their_size():
    reference = {"small": jnp.array([2.0]), "large": jnp.full((30, 30, 4), 2.0)}
    for lost in reference:
        gone = {**reference, lost: jnp.zeros_like(reference[lost])}
        assert_close(activation_matching(reference, gone), 0.5)


def test_a_stage_that_is_dead_on_the_image_counts_its_square():
    reference = {"dead": jnp.zeros(3), "alive": jnp.ones(3)}
    seen = {"dead": jnp.array([1.0, 2.0, 0.0]), "alive": jnp.ones(3)}
    value, gradient = jax.value_and_grad(activation_matching, argnums=1)(reference, seen)
    assert value == 2.5
    assert_close(gradient, {"dead": np.array([1.0, 2.0, 0.0]), "alive": np.zeros(3)})
    assert activation_matching(reference, reference) == 0.0


def test_a_missing_stage_raises_and_a_further_one_is_ignored(activations):
    fewer = {"stem": activations["stem"]}
    with pytest.raises(KeyError, match="head"):
        activation_matching(activations, fewer)
    assert activation_matching(fewer, activations) == 0.0
    further = {**fewer, "head": activations["head"] + 1e9}
    assert activation_matching(fewer, further) == 0.0


def test_no_stages_cost_nothing():
    assert jax.jit(activation_matching)({}, {"stem": jnp.ones(3)}) == 0.0


# --- the decision: terms of logits ----------------------------------------------------------------


@every_seed
def test_kl_is_zero_for_equal_distributions_and_else_positive(seed):
    _, (reference, logits) = draw(kl_divergence, seed)
    assert kl_divergence(reference, reference) == 0.0
    assert_close(kl_divergence(reference, reference + 5.0), 0.0)
    assert_close(jax.grad(kl_divergence, argnums=1)(reference, reference), np.zeros(7))
    for share in (1.0, 0.1, 0.01):
        assert kl_divergence(reference, reference + share * (logits - reference)) > 0.0


def test_kl_is_never_below_zero_but_for_rounding():
    rng = np.random.default_rng(0)
    reference = jnp.asarray(rng.normal(0, 3, (200, 1000)))
    near = reference + 1e-4 * rng.normal(size=reference.shape)
    assert jax.vmap(kl_divergence)(reference, near).min() > -2e-6


def test_kl_weighs_by_the_images_distribution():
    fair, sure = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    assert_close(kl_divergence(fair, sure), np.log(5 / 3))
    assert_close(kl_divergence(sure, fair), 0.9 * np.log(1.8) + 0.1 * np.log(0.2))


def test_terms_of_logits_do_not_change_when_all_logits_are_shifted():
    logits = jnp.array([1.0, 2.0, 0.5])
    reference = logits[::-1]
    assert_close(kl_divergence(reference - 64.0, logits + 64.0), kl_divergence(reference, logits))
    for term in (cross_entropy, necessity):
        assert_close(term(logits + 64.0, 1), term(logits, 1))
    assert_close(robustness(logits[None] + 64.0, 1), robustness(logits[None], 1))


def test_robustness_is_the_mean_cross_entropy_over_backgrounds():
    _, (rows, target) = draw(robustness, 0)
    assert_close(
        robustness(rows, target), jnp.mean(jnp.stack([cross_entropy(r, target) for r in rows]))
    )


def test_necessity_grows_without_bound_as_the_complement_alone_decides():
    lead = jnp.array([-20.0, -2.0, 0.0, 2.0, 20.0, 200.0])
    value = jax.vmap(lambda z: necessity(jnp.stack([z, 0.0 * z]), 0))(lead)
    assert_close(value[2], np.log(2))
    assert (jnp.diff(value) > 0).all() and value[-1] == 200.0


@pytest.mark.parametrize("lead", [-60.0, -30.0, -10.0, 10.0, 30.0, 60.0])
def test_necessity_keeps_its_digits_where_the_probability_rounds_to_zero_or_one(lead):
    logits = jnp.array([lead + 30.0, 30.0, 30.0])
    value, gradient = jax.value_and_grad(necessity)(logits, 0)
    odds = np.exp(lead) / 2
    p = odds / (1 + odds)
    assert_close(value, np.log1p(odds), atol=0)
    assert_close(gradient, p * np.array([1.0, -0.5, -0.5]), atol=0)


HIGH, LOW = np.array([1e3, -1e3, -1e3]), np.array([-1e3, 1e3, 1e3])
NOTHING = np.zeros(3)
SURE, SPLIT = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("term", "logits", "value", "gradient"),
    [
        (cross_entropy, HIGH, 0.0, NOTHING),
        (cross_entropy, LOW, 2000 + np.log(2), SPLIT - SURE),
        (cross_entropy, HIGH - HIGH + 1e3, np.log(3), np.array([-2.0, 1.0, 1.0]) / 3),
        (
            robustness,
            np.stack([HIGH, LOW]),
            1000 + np.log(2) / 2,
            np.stack([NOTHING, SPLIT - SURE]) / 2,
        ),
        (necessity, HIGH, 2000 - np.log(2), SURE - SPLIT),
        (necessity, LOW, 0.0, NOTHING),
        (necessity, HIGH - HIGH - 1e3, np.log(1.5), np.array([2.0, -1.0, -1.0]) / 6),
    ],
)
def test_extreme_logits_have_finite_costs_and_gradients(term, logits, value, gradient):
    # float32 near 1,000 has steps of 6e-5
    assert_close(jax.value_and_grad(term)(jnp.asarray(logits), 0), (value, gradient), atol=1e-4)


@pytest.mark.parametrize(
    ("reference", "logits", "value", "gradient"),
    [
        (HIGH, HIGH, 0.0, NOTHING),
        (HIGH, LOW, 2000 + np.log(2), SPLIT - SURE),
        (LOW, HIGH, 2000 - np.log(2), SURE - SPLIT),
    ],
)
def test_extreme_logits_have_finite_divergences(reference, logits, value, gradient):
    actual = jax.value_and_grad(kl_divergence, argnums=1)(jnp.asarray(reference), jnp.asarray(logits))
    assert_close(actual, (value, gradient))


# --- the mask's shape -----------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [np.zeros((4, 6)), np.ones((4, 6)), np.eye(4, 6)])
def test_a_hard_masks_area_is_its_share_and_it_is_fully_binary(binary):
    for mask in (jnp.asarray(binary, jnp.float32), jnp.asarray(binary, bool)):
        assert_close(area(mask), binary.sum() / 24)
        assert binarization(mask) == 0.0


def test_one_half_is_least_binary():
    shares = jnp.linspace(0.0, 1.0, 101)
    values = jax.vmap(lambda m: binarization(jnp.full((3, 3), m)))(shares)
    assert values.argmax() == 50 and values[50] == 0.25
    assert_close(values, values[::-1])


def checkerboard(height, width):
    return jnp.asarray(np.indices((height, width)).sum(0) % 2, jnp.float32)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (3, 5), (1, 7), (7, 1)])
def test_every_neighbour_differs_on_a_checkerboard(height, width):
    pairs = (height - 1) * width + height * (width - 1)
    assert_close(total_variation(checkerboard(height, width)), pairs / np.sqrt(height * width))


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 6)])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_mask_has_no_variation_and_no_slope(shape, level):
    value, gradient = jax.value_and_grad(total_variation)(jnp.full(shape, level))
    assert value == 0.0 and (gradient == 0.0).all()


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose])
def test_variation_pulls_on_flat_regions_alike_from_every_side(turn):
    mask = np.zeros((6, 6), np.float32)
    mask[1:3, 2:6] = 1.0
    gradient = jax.grad(total_variation)
    assert_close(gradient(jnp.asarray(turn(mask))), turn(gradient(jnp.asarray(mask))))
    corner = np.zeros((6, 6))
    corner[0, 2:6] = corner[3, 2:6] = -1
    corner[1, 2:6] = corner[2, 2:6] = 1
    corner[1:3, 1] -= 1
    corner[1:3, 2] += 1
    assert_close(gradient(jnp.asarray(mask)), corner / 6)


def test_variation_of_a_box_is_its_perimeter_over_the_masks_side():
    mask = jnp.zeros((16, 9)).at[3:7, 2:5].set(1.0)
    assert_close(total_variation(mask), 2 * (4 + 3) / 12)
    assert_close(total_variation(mask.astype(bool)), 2 * (4 + 3) / 12)
    at_the_border = jnp.zeros((16, 9)).at[:4, :3].set(1.0)
    assert_close(total_variation(at_the_border), (4 + 3) / 12)


@pytest.mark.parametrize("factor", [2, 5])
def test_priors_of_a_mask_do_not_depend_on_its_resolution(factor):
    # the pixels of a mask are as long as wide: twice the rows come with twice the columns
    mask = np.random.default_rng(0).integers(0, 2, (6, 4)).astype(np.float32)
    fine = np.kron(mask, np.ones((factor, factor), np.float32))
    for prior in (area, binarization, total_variation):
        assert_close(prior(jnp.asarray(fine)), prior(jnp.asarray(mask)))


def test_compact_masks_vary_less_than_scattered_ones_of_the_same_area():
    box = jnp.zeros((8, 8)).at[2:6, 2:6].set(1.0)
    scattered = jnp.zeros((8, 8)).at[::2, ::2].set(1.0)
    assert area(box) == area(scattered)
    assert total_variation(box) < total_variation(scattered) / 2
