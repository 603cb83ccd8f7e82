"""The metrics: best and worst where both are known, a formula written out slowly, and other libraries.

Quantus and Captum are asked only where they are installed; the slow formulas are there always.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy import ndimage

from amx_jax.evaluate.metrics import (
    average_drop,
    average_gain,
    blurred,
    bootstrap_interval,
    deletion_auc,
    energy_pointing_game,
    increase_in_confidence,
    insertion_auc,
    iou,
    iou_matrix_mean,
    max_sensitivity,
    paired_bootstrap,
    pointing_game,
)
from amx_jax.verify.bounds import clopper_pearson, clopper_pearson_lower

SEEDS = range(5)


def random_maps(seed, shape=(12, 10)):
    """A soft map and a region with some pixels."""
    rng = np.random.default_rng(seed)
    region = rng.random(shape) < 0.3
    region[0, 0] = True
    return rng.random(shape), region


# --- confidence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "drop", "gain", "increase"),
    [
        ([0.0, 0.0], 1.0, 0.0, 0.0),
        ([0.5, 0.25], 0.0, 0.0, 0.0),  # as sure as of the image
        ([1.0, 1.0], 0.0, 1.0, 1.0),
        ([0.25, 1.0], 0.25, 0.5, 0.5),
    ],
)
def test_confidence_from_its_worst_to_its_best(after, drop, gain, increase):
    before = np.array([0.5, 0.25])
    assert average_drop(before, np.array(after)) == drop
    assert average_gain(before, np.array(after)) == gain
    assert increase_in_confidence(before, np.array(after)) == increase


def test_nothing_is_lost_of_nothing_and_nothing_gained_on_certainty():
    assert average_drop(np.array([0.0]), np.array([0.7])) == 0
    assert average_gain(np.array([1.0]), np.array([0.7])) == 0


@pytest.mark.parametrize("metric", [average_drop, average_gain, increase_in_confidence])
@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([0.5], [0.5, 0.5]), ([0.5], [1.5]), ([np.nan], [0.5])]
)
def test_what_is_no_probability_of_the_same_images_is_refused(metric, before, after):
    with pytest.raises(ValueError, match="probabilit"):
        metric(np.array(before), np.array(after))


# --- insertion and deletion -----------------------------------------------------------------------


def needs(pixels):
    """An oracle: sure if all these pixels of the image are there, else sure that it is not."""
    return lambda images: np.all(images[:, pixels, 0] == 1, axis=1).astype(float)


@pytest.mark.parametrize("steps", [16, 8])
def test_the_pixels_that_decide_ranked_first_are_best_and_last_are_worst(steps):
    image, decisive = np.ones((4, 8, 1)), np.zeros((4, 8), bool)
    decisive[1:3, 2:6] = True  # 8 of 32
    classify, black = needs(decisive), np.zeros_like(image)
    best, worst = decisive.astype(float), -decisive.astype(float)
    half = 1 / (2 * steps)  # of the trapezoid in which the probability jumps
    assert insertion_auc(classify, image, best, black, steps).auc == 24 / 32 + half
    assert insertion_auc(classify, image, worst, black, steps).auc == half
    assert deletion_auc(classify, image, best, steps=steps).auc == half
    assert deletion_auc(classify, image, worst, steps=steps).auc == 24 / 32 + half


def slow_curve(classify, image, other, ranking, steps, deletion):
    pixels = sorted(np.ndindex(ranking.shape), key=lambda at: -ranking[at])
    found = []
    for step in range(steps + 1):
        present = (image if deletion else other).copy()
        for at in pixels[: step * len(pixels) // steps]:
            present[at] = (other if deletion else image)[at]
        found.append(classify(present[None])[0])
    area = sum((found[i] + found[i + 1]) / 2 for i in range(steps)) / steps
    return area, found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curves_are_those_of_pixels_moved_one_part_at_a_time(seed):
    rng = np.random.default_rng(seed)
    image, weights = rng.normal(size=(6, 8, 3)), rng.normal(size=(6, 8, 3))
    ranking = rng.normal(size=(6, 8))

    def classify(images):
        return 1 / (1 + np.exp(-np.sum(images * weights, axis=(1, 2, 3))))

    for curve, other, deletion in (
        (insertion_auc(classify, image, ranking, steps=12), blurred(image), False),
        (deletion_auc(classify, image, ranking, steps=12), np.zeros_like(image), True),
    ):
        area, probabilities = slow_curve(classify, image, other, ranking, 12, deletion)
        np.testing.assert_allclose(curve.auc, area, rtol=1e-12)
        np.testing.assert_allclose(curve.probabilities, probabilities, rtol=1e-12)
        np.testing.assert_allclose(curve.shares, np.arange(13) / 12)


def test_parts_that_do_not_divide_the_pixels_weigh_what_they_hold():
    image = np.ones((1, 10, 1))
    curve = deletion_auc(lambda images: images.mean(axis=(1, 2, 3)), image, np.ones((1, 10)), steps=4)
    np.testing.assert_allclose(curve.shares * 10, [0, 2, 5, 8, 10])
    np.testing.assert_allclose(curve.auc, 0.5, rtol=1e-12)  # of a straight line, whatever the parts


def test_equals_move_in_reading_order():
    seen = []
    high = np.arange(1600) % 2 == 0  # few pixels would be sorted stably by any sort
    deletion_auc(
        lambda images: seen.extend(images[..., 0].reshape(-1, 1600)) or np.zeros(len(images)),
        np.ones((40, 40, 1)),
        high.reshape(40, 40),
        steps=4,
    )
    for left, present in zip((1600, 1200, 800, 400, 0), seen, strict=True):
        order = [*np.flatnonzero(high), *np.flatnonzero(~high)]
        np.testing.assert_array_equal(present.nonzero()[0], sorted(order[1600 - left :]))


def test_the_blurred_image_is_rises_convolution():
    rng = np.random.default_rng(0)
    image, delta = rng.normal(size=(24, 20, 3)), np.zeros((11, 11))
    delta[5, 5] = 1
    kernel = ndimage.gaussian_filter(delta, 5)
    around = np.pad(image, ((5, 5), (5, 5), (0, 0)))
    slow = [
        [np.tensordot(kernel, around[i : i + 11, j : j + 11], 2) for j in range(20)] for i in range(24)
    ]
    np.testing.assert_allclose(blurred(image), slow, atol=1e-12)
    assert blurred(image.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"start": np.ones((2, 2, 1))}, r"\(H, W, C\) twice"),
        ({"ranking": np.ones((3, 2))}, r"\(H, W, C\) twice"),
        ({"ranking": np.full((2, 3), np.nan)}, "not a number"),
        ({"steps": 0}, "steps: found 0"),
        ({"classify": lambda images: np.zeros((len(images), 2))}, "one an image"),
    ],
)
def test_a_curve_of_what_does_not_fit_is_refused(change, match):
    good = {
        "classify": lambda images: np.zeros(len(images)),
        "image": np.ones((2, 3, 1)),
        "ranking": np.ones((2, 3)),
    }
    with pytest.raises(ValueError, match=match):
        insertion_auc(**(good | change))


# --- localisation ---------------------------------------------------------------------------------


def test_energy_is_best_inside_worst_outside_and_at_chance_everywhere():
    region = np.zeros((4, 5), bool)
    region[1:3, 1:3] = True
    assert energy_pointing_game(region, region) == (1.0, 0.2)
    assert energy_pointing_game(~region, region) == (0.0, 0.2)
    value, chance = energy_pointing_game(np.full((4, 5), 0.3), region)
    assert value == pytest.approx(chance)


def test_energy_of_no_mass_is_no_number():
    assert math.isnan(energy_pointing_game(np.zeros((2, 2), bool), np.ones((2, 2), bool)).value)


@pytest.mark.parametrize("seed", SEEDS)
def test_chance_of_energy_is_what_random_masks_score(seed):
    rng = np.random.default_rng(seed)
    _, region = random_maps(seed)
    masks = rng.permuted(np.tile(np.arange(120) < 30, (2000, 1)), axis=1).reshape(-1, 12, 10)
    found = [energy_pointing_game(mask, region) for mask in masks]
    assert np.mean([value for value, _ in found]) == pytest.approx(found[0].chance, abs=0.01)


def test_iou_is_one_of_the_same_and_nothing_of_the_disjoint():
    mask = np.eye(4, dtype=bool)
    assert iou(mask, mask).value == 1
    assert iou(mask, ~mask).value == 0
    assert iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == (1.0, 1.0)
    assert iou(np.ones((2, 2), bool), np.zeros((2, 2), bool)) == (0.0, 0.0)


@pytest.mark.parametrize(("a", "r"), [(5, 40), (100, 60), (128, 128), (250, 10)])
def test_chance_of_iou_is_the_expectation_over_masks_of_that_area(a, r):
    pixels = np.arange(256)
    mask, region = (pixels < a).reshape(16, 16), (pixels >= 256 - r).reshape(16, 16)
    common = np.arange(min(a, r) + 1)
    probability = scipy.stats.hypergeom(256, r, a).pmf(common)
    exact = np.sum(probability * common / (a + r - common))
    assert iou(mask, region).chance == pytest.approx(exact, rel=0.02)
    assert iou(mask, region).chance <= exact * (1 + 1e-9), "the exact one is never smaller"


def test_the_pointing_game_hits_within_the_tolerance():
    region, soft = np.zeros((40, 40), bool), np.zeros((40, 40))
    region[0, 0] = True
    soft[9, 12] = 1.0  # at a distance of 15
    assert pointing_game(soft, region).value == 1
    assert pointing_game(soft, region, tolerance=14.99).value == 0
    near = [i * i + j * j <= 225 for i, j in np.ndindex(40, 40)]
    assert pointing_game(soft, region).chance == np.mean(near)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_map_without_a_maximum_points_as_chance_does(seed):
    _, region = random_maps(seed)
    assert (
        pointing_game(np.full((12, 10), 0.7), region, 1).value
        == pointing_game(np.full((12, 10), 0.7), region, 1).chance
    )


def test_of_two_maxima_one_that_hits_counts_half():
    soft = np.array([[1.0, 0.0, 0.0, 1.0]])
    assert pointing_game(soft, soft * [[1, 1, 0, 0]] > 0, tolerance=0) == (0.5, 0.25)


def test_localisation_of_what_does_not_fit_is_refused():
    region = np.ones((2, 2), bool)
    for metric in (energy_pointing_game, pointing_game):
        with pytest.raises(ValueError, match="twice"):
            metric(np.ones((2, 1)), region)
    with pytest.raises(ValueError, match="twice"):
        iou(np.ones((2, 1), bool), region)
    with pytest.raises(ValueError, match="negative"):
        energy_pointing_game(np.full((2, 2), -1.0), region)
    with pytest.raises(ValueError, match="expected bool: no soft mask"):
        iou(np.full((2, 2), 0.5), region)
    with pytest.raises(ValueError, match="found no pixel"):
        pointing_game(np.ones((2, 2)), ~region)
    with pytest.raises(ValueError, match="not a number"):
        pointing_game(np.full((2, 2), np.nan), region)


# --- stability ------------------------------------------------------------------------------------


def test_a_map_that_never_moves_is_not_sensitive():
    image, rng = np.ones((4, 4, 3)), np.random.default_rng(0)
    assert max_sensitivity(lambda x: np.eye(4, dtype=bool), image, 0.5, 10, rng) == 0


@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_the_sensitivity_of_the_image_itself_is_bounded_by_the_ball_and_scales_with_it(radius):
    image = np.ones((4, 4, 3))
    small, large = (
        max_sensitivity(lambda x: 5 * x, image, r, 20, np.random.default_rng(0))
        for r in (radius, 2 * radius)
    )
    assert 0.5 * radius < small < radius  # ‖δ‖ / ‖x‖ ≤ radius · √n / √n
    assert large == pytest.approx(2 * small)


def test_the_maximum_over_more_samples_is_no_smaller():
    image = np.ones((4, 4, 3))
    found = [
        max_sensitivity(lambda x: x, image, 0.1, samples, np.random.default_rng(0))
        for samples in (1, 5, 50)
    ]
    assert found[0] < found[1] < found[2]


def test_a_map_of_zeros_counts_the_norm_of_what_it_becomes():
    def explain(image):
        return np.full(4, float(image.any()))

    assert max_sensitivity(explain, np.zeros((2, 2, 1)), 0.1, 3, np.random.default_rng(0)) == 2


def test_sensitivity_of_what_does_not_fit_is_refused():
    image, rng = np.zeros((2, 2, 1)), np.random.default_rng(0)
    with pytest.raises(ValueError, match="samples: found 0"):
        max_sensitivity(lambda x: x, image, 0.1, 0, rng)
    with pytest.raises(ValueError, match="expected one shape"):
        max_sensitivity(lambda x: np.zeros(1 + int(x.any())), image, 0.1, 1, rng)


@pytest.mark.parametrize("seed", SEEDS)
def test_agreement_is_the_mean_over_pairs(seed):
    masks = np.random.default_rng(seed).random((4, 6, 6)) < 0.5
    pairs = []
    for i in range(4):
        for j in range(i):
            both = sum(masks[i][at] and masks[j][at] for at in np.ndindex(6, 6))
            either = sum(masks[i][at] or masks[j][at] for at in np.ndindex(6, 6))
            pairs.append(both / either)
    assert iou_matrix_mean(masks) == pytest.approx(sum(pairs) / 6)


def test_agreement_is_one_of_the_same_masks_even_empty_and_nothing_of_disjoint_ones():
    assert iou_matrix_mean(np.zeros((3, 4, 4), bool)) == 1
    assert iou_matrix_mean(np.eye(4, dtype=bool).reshape(4, 2, 2)) == 0
    with pytest.raises(ValueError, match="found 1, expected at least 2"):
        iou_matrix_mean(np.zeros((1, 4, 4), bool))


# --- over images ----------------------------------------------------------------------------------


def test_the_bootstrap_is_scipys_for_the_same_draws():
    values = np.random.default_rng(3).lognormal(size=40)
    for statistic in (np.median, np.mean):
        found = bootstrap_interval(values, 0.9, 500, seed=7, statistic=statistic)
        expected = scipy.stats.bootstrap(
            (values,),
            statistic,
            n_resamples=500,
            confidence_level=0.9,
            method="percentile",
            random_state=np.random.default_rng(7),
        ).confidence_interval
        np.testing.assert_allclose(found[1:], expected, rtol=1e-12)
        assert found.value == statistic(values)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        _, lower, upper = bootstrap_interval(rng.normal(5, 1, 60), 0.9, 300, statistic=np.mean)
        covered.append(lower <= 5 <= upper)
    assert 0.83 < np.mean(covered) < 0.97


def test_pairs_show_a_difference_that_the_spread_of_images_hides():
    rng = np.random.default_rng(0)
    b = rng.lognormal(0, 2, 50)
    a = b * rng.uniform(0.85, 0.95, 50)
    _, lower, upper = paired_bootstrap(a, b, of="ratio")
    assert 0.85 < lower < upper < 0.95
    assert paired_bootstrap(a, b).upper < 0
    assert bootstrap_interval(a).lower < bootstrap_interval(b).lower < bootstrap_interval(a).upper


def test_the_order_of_pairs_matters_and_of_images_does_not():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    found = paired_bootstrap(a, b)
    assert paired_bootstrap(b, a).value == -found.value
    assert paired_bootstrap(a[::-1], b[::-1]).value == found.value
    assert paired_bootstrap(a, a) == (0, 0, 0)


def test_values_that_are_no_sample_are_refused():
    for values in ([], [np.nan], [np.inf], [[1.0]]):
        with pytest.raises(ValueError, match="one finite number for each image"):
            bootstrap_interval(np.array(values))
    with pytest.raises(ValueError, match="confidence: found 1"):
        bootstrap_interval(np.ones(3), confidence=1)
    with pytest.raises(ValueError, match="expected the same images"):
        paired_bootstrap(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="not positive"):
        paired_bootstrap(np.ones(2), np.zeros(2), of="ratio")


# --- bounds of a probability ----------------------------------------------------------------------


def at_least(kept, trials, p):
    """P(K ≥ kept), its terms added up."""
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(kept, trials + 1))


def bisect(rising, level):
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > level else (middle, high)
    return low


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("kept", "trials"), [(0, 1), (1, 1), (0, 32), (32, 32), (1, 32), (29, 32), (50, 100)]
)
def test_the_bounds_invert_the_tails_of_the_binomial(kept, trials, confidence):
    alpha = 1 - confidence
    lower, upper = clopper_pearson(kept, trials, confidence)
    one_sided = clopper_pearson_lower(kept, trials, confidence)
    if kept == 0:
        assert lower == one_sided == 0
    else:
        assert lower == pytest.approx(bisect(lambda p: at_least(kept, trials, p), alpha / 2), abs=1e-9)
        assert one_sided == pytest.approx(bisect(lambda p: at_least(kept, trials, p), alpha), abs=1e-9)
    if kept == trials:
        assert upper == 1
    else:
        at_most = bisect(lambda p: at_least(kept + 1, trials, p), 1 - alpha / 2)
        assert upper == pytest.approx(at_most, abs=1e-9)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.93])
def test_the_bounds_hold_with_at_least_the_confidence_whatever_the_probability(p):
    two_sided = one_sided = 0.0
    for kept in range(33):
        probability = math.comb(32, kept) * p**kept * (1 - p) ** (32 - kept)
        lower, upper = clopper_pearson(kept, 32, 0.9)
        two_sided += probability * (lower <= p <= upper)
        one_sided += probability * (clopper_pearson_lower(kept, 32, 0.9) <= p)
    assert 0.9 <= two_sided < 0.99
    assert 0.9 <= one_sided <= 1


@pytest.mark.parametrize("bound", [clopper_pearson, clopper_pearson_lower])
@pytest.mark.parametrize(
    ("kept", "trials", "confidence"), [(0, 0, 0.9), (3, 2, 0.9), (-1, 2, 0.9), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_what_is_no_count_or_confidence_is_refused(bound, kept, trials, confidence):
    if (bound, confidence) == (clopper_pearson, 0.0):
        confidence = -1.0
    with pytest.raises(ValueError, match="expected"):
        bound(kept, trials, confidence)


# --- other libraries ------------------------------------------------------------------------------


class Sigmoid(torch.nn.Module):
    """Two classes of one number: the weighted sum of the image."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.from_numpy(weights)

    def forward(self, images):
        score = torch.einsum("nchw,hwc->n", images.double(), self.weights)
        return torch.stack([torch.zeros_like(score), score], dim=1)


QUIET = {"disable_warnings": True, "display_progressbar": False, "normalise": False, "abs": False}


@pytest.mark.parametrize("seed", SEEDS)
def test_energy_is_quantus_relevance_mass_accuracy_and_the_game_its_pointing_game(seed):
    quantus = pytest.importorskip("quantus")
    soft, region = random_maps(seed)
    given = {
        "model": None,
        "x_batch": np.zeros((1, 1, 12, 10)),
        "y_batch": np.array([1]),
        "a_batch": soft[None, None],
        "s_batch": region[None, None],
    }
    mass = quantus.RelevanceMassAccuracy(**QUIET)(**given)
    assert energy_pointing_game(soft, region).value == pytest.approx(mass[0])
    hit = quantus.PointingGame(**QUIET)(**given)
    assert pointing_game(soft, region, tolerance=0).value == hit[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_deletion_is_quantus_pixel_flipping_and_the_whole_image_before_it(seed):
    quantus = pytest.importorskip("quantus")
    rng = np.random.default_rng(seed)
    image, weights, ranking = (rng.normal(size=(6, 8, 1)) for _ in range(3))
    model = Sigmoid(weights).eval()

    def classify(images):
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        return torch.softmax(logits, dim=1)[:, 1].numpy()

    flipping = quantus.PixelFlipping(features_in_step=4, perturb_baseline=0.0, **QUIET)
    (expected,) = flipping(
        model=model,
        x_batch=image.transpose(2, 0, 1)[None],
        y_batch=np.array([1]),
        a_batch=ranking.transpose(2, 0, 1)[None],
        softmax=True,
    )
    found = deletion_auc(classify, image, ranking[..., 0], steps=12)
    np.testing.assert_allclose(found.probabilities[1:], expected, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities[0], classify(image[None])[0])


def explain(images):
    """A map of each image: torch (n, C, H, W) to (n, 1, H, W)."""
    return torch.sin(3 * images).sum(dim=1, keepdim=True)


class Replay:
    """A generator that gives its perturbations again, one after the other."""

    def __init__(self, noise):
        self.noise = iter(noise)

    def uniform(self, low, high, shape):
        return next(self.noise).transpose(1, 2, 0)


def replayed(seed):
    """An image, five perturbations of it (n, C, H, W), and our sensitivity to them."""
    rng = np.random.default_rng(seed)
    image, noise = rng.normal(size=(3, 6, 5)), rng.uniform(-0.2, 0.2, (5, 3, 6, 5))

    def of_one(x):
        return explain(torch.from_numpy(x.transpose(2, 0, 1).copy())[None]).numpy()

    return image, noise, max_sensitivity(of_one, image.transpose(1, 2, 0), 0.2, 5, Replay(noise))


@pytest.mark.parametrize("seed", SEEDS)
def test_sensitivity_is_captums_for_the_same_perturbations(seed):
    metrics = pytest.importorskip("captum.metrics")
    image, noise, found = replayed(seed)
    expected = metrics.sensitivity_max(
        lambda inputs: (explain(inputs[0]),),
        torch.from_numpy(image)[None],
        perturb_func=lambda inputs: (inputs[0] + torch.from_numpy(noise),),
        n_perturb_samples=5,
    )
    assert found == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_sensitivity_is_quantus_for_the_same_perturbations(seed):
    quantus = pytest.importorskip("quantus")
    image, noise, found = replayed(seed)
    again = iter(noise)
    metric = quantus.MaxSensitivity(
        nr_samples=5, perturb_func=lambda arr, **_: arr + next(again).reshape(1, -1), **QUIET
    )
    expected = metric(
        model=Sigmoid(np.ones((6, 5, 3))).eval(),
        x_batch=image[None],
        y_batch=np.array([1]),
        explain_func=lambda inputs, **_: explain(torch.as_tensor(np.asarray(inputs))).numpy(),
    )
    assert found == pytest.approx(expected[0], rel=1e-6)
