"""Methods side by side: what is measured of each, against loops over single images."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from amx_jax import Config, Explainer
from amx_jax.data.results import plain, read_evaluation, write_evaluation
from amx_jax.evaluate.compare import (
    Failure,
    Measures,
    compare,
    configured,
    perturbed,
    rank_correlation,
)
from amx_jax.evaluate.curves import AREAS, STEPS, Curves, nested_masks
from amx_jax.evaluate.metrics import blurred
from amx_jax.evaluate.randomised import randomised
from amx_jax.evaluate.summary import mean_curve, summarise
from amx_jax.explanation import Unexplained

CONFIG = Config(steps=2, trials=1, batch_size=2, candidates=8, cell=8, controls=0)


METHODS = ("occlusion", "centre")
OCCLUSION = configured(CONFIG, "occlusion")


@pytest.fixture(scope="module")
def explainer(tiny):
    return Explainer(tiny, OCCLUSION)


@pytest.fixture(scope="module")
def probabilities(tiny):
    apply = jax.jit(lambda image: jax.nn.softmax(tiny.apply(tiny.params, image)[0]))
    return lambda image: np.asarray(apply(np.asarray(image, np.float32)))


# --- curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_nested_masks_lie_in_each_other_and_the_certified_pixels_come_first(rng, share):
    mask, ranking = rng.random((9, 7)) < share, rng.integers(0, 5, (9, 7)).astype(float)
    family = nested_masks(mask, ranking)
    assert [nested.sum() for nested in family] == [round(63 * area) for area in AREAS]
    for smaller, larger in itertools.pairwise(family):
        assert not (smaller & ~larger).any()
    for nested in family:
        assert not (nested & ~mask).any() or not (mask & ~nested).any()
        for part in (mask, ~mask):  # in each, whoever is in ranks no lower than whoever is not
            if (part & nested).any() and (part & ~nested).any():
                assert ranking[part & nested].min() >= ranking[part & ~nested].max()


def test_what_has_no_order_is_refused():
    mask = np.ones((2, 2), bool)
    for ranking in (np.ones((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="found a mask"):
            nested_masks(mask, ranking)
    with pytest.raises(ValueError, match="areas"):
        nested_masks(mask, np.ones((2, 2)), (1.5,))


def test_retention_is_what_the_classifier_says_on_the_background(
    tiny, photos, explainer, probabilities, rng
):
    """Of black ones, as there all trials are alike; and of three kinds at the ends."""
    black = Explainer(tiny, dataclasses.replace(OCCLUSION, kinds=("black",)))
    masks = [rng.random((4, 4)).repeat(8, 0).repeat(8, 1) < share for share in np.linspace(0, 1, 9)]
    seen = set()
    for photo in photos[:3]:
        [found] = black([photo])
        expected = []
        for mask in masks:
            image = tiny.preprocess.normalize(np.where(mask[..., None], photo, 0.0))
            expected.append(float(probabilities(image).argmax() == found.target))
        assert black.retention(found, masks, 2) == expected
        seen |= set(expected)
        [found] = explainer([photo])
        first, again, whole = explainer.retention(found, [masks[4], masks[4], masks[-1]], 5)
        assert first == again and whole == 1
    assert seen == {0, 1}


def test_insertion_and_deletion_are_those_of_a_loop(tiny, photos, probabilities, rng):
    ranking = rng.random((32, 32))
    order = np.argsort(-ranking.ravel())
    image = tiny.preprocess.normalize(photos[0].astype(np.float32))
    target = int(probabilities(image).argmax())
    found = Curves(tiny)(photos[0], ranking, target)
    ends = (blurred(image), image), (image, np.zeros_like(image))
    for auc, (start, end) in zip(found, ends, strict=True):
        shares, values, moving = [], [], start.copy()
        for step in range(STEPS + 1):
            count = round(1024 * step / STEPS)
            for pixel in order[:count]:
                moving[pixel // 32, pixel % 32] = end[pixel // 32, pixel % 32]
            shares.append(count / 1024)
            values.append(probabilities(moving)[target])
        assert auc == pytest.approx(scipy.integrate.trapezoid(values, shares), abs=1e-5)


# --- sensitivity and randomised parameters --------------------------------------------------------


def test_a_perturbed_copy_is_near_its_photo_and_a_matter_of_what_that_shows(photos):
    photo = photos[0].copy()
    photo[:8], photo[8:16] = 0, 255
    copies = perturbed(photo, 3, seed=1)
    for copy in copies:
        assert copy.dtype == np.uint8 and np.abs(copy - photo.astype(float)).max() == 5
    assert not np.array_equal(*copies[:2])
    assert np.array_equal(perturbed(photo, 2, seed=1), copies[:2])
    assert not np.array_equal(perturbed(photo, 1, seed=2)[0], copies[0])


def test_a_rank_correlation_is_scipys(rng):
    a, b = rng.integers(0, 9, (2, 8, 8)).astype(float)
    expected = scipy.stats.spearmanr(a.ravel(), (a + b).ravel()).statistic
    assert rank_correlation(a, a + b) == pytest.approx(expected)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.ones((8, 8))) is None


class Failing(Explainer):
    """Has no explanation of a black photo."""

    def stream(self, *arguments, **more):
        for found in super().stream(*arguments, **more):
            yield found if found.pixels.any() else Unexplained("it is not finite")


@pytest.fixture(scope="module")
def measured(tiny, photos):
    """Records of all measures and failures, what was complete when, and the progress shown."""
    records, failures, complete, shown = [], [], [], []

    def finished(method):
        own = [record for record in records if record["method"] == method]
        complete.append((method, len(own), all(r["curve"] and r["randomised"] for r in own)))

    given = [photos[0], np.zeros_like(photos[0]), *photos[1:3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amx_jax.evaluate.compare.Explainer", Failing)
        for found in compare(
            tiny,
            given,
            ["first", "black", "second", "third"],
            [lambda target: None] * len(given),
            {method: configured(CONFIG, method) for method in METHODS},
            measures=Measures(curves=True, sensitivity=2, randomised=True),
            on_progress=lambda *progress: shown.append(progress),
            on_finished=finished,
        ):
            if isinstance(found, Failure):
                failures.append(found)
                continue
            assert found["curve"] is found["sensitivity"] is found["randomised"] is None
            records.append(found)
    return records, failures, complete, shown


def test_a_method_is_complete_when_it_is_said_to_be(measured):
    _, _, complete, shown = measured
    assert complete == [(method, 3, True) for method in METHODS]
    steps = ("curves", "perturbed copies", "randomised classifier")
    assert shown == [(method, what, done) for method in METHODS for what in steps for done in (1, 2, 3)]


def test_measures_are_those_of_each_photo_alone(tiny, photos, explainer, measured):
    control = Explainer(randomised(tiny, jax.random.key(CONFIG.seed)), OCCLUSION)
    for photo, record in zip(photos[:2], measured[0][:2], strict=True):
        [found], [other] = explainer([photo]), control([photo])
        target = record["target"]["index"]
        assert record["area"] == found.mask.mean()
        norms = [
            np.linalg.norm(copy.ranking - found.ranking)
            for copy in explainer(perturbed(photo, 2, CONFIG.seed), [target] * 2)
        ]
        expected = max(norms) / np.linalg.norm(found.ranking)
        assert record["sensitivity"] == pytest.approx(expected) and expected > 0
        against = record["randomised"]
        assert (against["holds"], against["area"]) == (other.certificate.holds, other.mask.mean())
        top = np.zeros(1024, bool)
        top[np.argsort(-other.ranking.ravel(), kind="stable")[: found.mask.sum()]] = True
        overlap = (top & found.mask.ravel()).sum() / (top | found.mask.ravel()).sum()
        assert against["iou"] == pytest.approx(overlap)
        correlation = scipy.stats.spearmanr(found.ranking.ravel(), other.ranking.ravel()).statistic
        assert against["rank_correlation"] == pytest.approx(correlation, abs=1e-6)
        assert record["curve"]["retention"][-1] == 1


def test_a_ranking_that_knows_nothing_of_the_classifier_gives_itself_away(measured):
    records = measured[0]
    centre = {summary["method"]: summary for summary in summarise(records, "occlusion")}["centre"]
    assert centre["sensitivity"] == {"value": 0, "photos": 3}
    assert centre["randomised"]["rank_correlation"]["value"] == pytest.approx(1)
    assert centre["randomised"]["iou"]["value"] == pytest.approx(1)


def test_where_masks_lie_is_compared_of_as_many_pixels_as_the_first_method_keeps(tiny, photos):
    left = np.arange(32) < 16
    region = np.broadcast_to(left, (32, 32))
    configs = {method: configured(CONFIG, method) for method in ("centre", "random")}
    found = list(compare(tiny, photos[:2], ["a", "b"], [lambda target: region] * 2, configs))
    first, second = found[:2], found[2:]
    assert all(record["energy_matched"] == record["energy"] for record in first)
    random = Explainer(tiny, configs["random"])(list(photos[:2]))
    for record, other, one in zip(first, second, random, strict=True):
        order = np.argsort(-one.ranking.ravel(), kind="stable")[: round(record["area"] * 1024)]
        assert other["energy_matched"] == pytest.approx(left[order % 32].mean())
        assert other["energy_matched_chance"] == 0.5
    assert any(other["energy_matched"] != other["energy"] for other in second)


def test_where_the_first_method_has_no_mask_nothing_is_compared_with_it(tiny, photos, monkeypatch):
    class Centreless(Explainer):
        def stream(self, *arguments, **more):
            for found in super().stream(*arguments, **more):
                yield Unexplained("no centre") if self.config.method == "centre" else found

    monkeypatch.setattr("amx_jax.evaluate.compare.Explainer", Centreless)
    configs = {method: configured(CONFIG, method) for method in ("centre", "random")}
    region = np.ones((32, 32), bool)
    failure, record = compare(tiny, photos[:1], ["a"], [lambda target: region], configs)
    assert isinstance(failure, Failure)
    assert record["energy"] == 1 and record["energy_matched"] is None


def test_measured_records_can_be_saved_and_plotted(measured, tmp_path):
    records = measured[0]
    write_evaluation(tmp_path, records, summarise(records, "occlusion"), {})
    assert read_evaluation(tmp_path)[0] == plain(records)
    curve = mean_curve(records, "centre", np.array(AREAS))
    assert np.isfinite(curve).all() and curve[-1] == 1


def test_a_photo_that_cannot_be_explained_is_named_and_the_others_are_measured(measured):
    records, failures, *_ = measured
    reason = "it is not finite"
    assert failures == [Failure(reason, "black", method) for method in METHODS]
    assert [record["image"] for record in records] == 2 * ["first", "second", "third"]
