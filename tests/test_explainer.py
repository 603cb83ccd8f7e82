"""Photos in, verified explanations out: each of its own photo, whoever else is in the batch."""

import json
from dataclasses import asdict, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from amx_jax import Config, Explainer, Explanation, Unexplained, Weights, load_classifier
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.errors import ConfigError, ImageError, UnknownNameError
from amx_jax.explainer import start_of
from amx_jax.verify.evaluator import Evaluator

CONFIG = Config(
    generator="grid",
    free_gain=60.0,
    grid=8,
    background=(127, 127, 127),
    stages=(),
    objective=Weights(
        activation=0.2,
        kl=0.1,
        cross_entropy=1.0,
        area=0.0,
        binarization=0.0,
        total_variation=0.1,
        robustness=0.0,
        necessity=0.0,
    ),
    budget=True,
    shrink=0.85,
    grow=1.15,
    steps=12,
    learning_rate=0.003,
    temperature=0.5,
    cell=4,
    trials=3,
    seed=0,
    batch_size=4,
    candidates=16,
)
GRAY = np.full((32, 32, 3), 127, np.uint8)


@pytest.fixture(scope="module")
def explainer(tiny):
    return Explainer(tiny, CONFIG)


@pytest.fixture(scope="module")
def explanations(explainer, photos):
    """Of all six photos, in four slots."""
    return explainer(list(photos))


@pytest.fixture(scope="module")
def classify(tiny):
    """Probabilities of one image given as pixels, with only the pixels of a mask."""
    apply = jax.jit(lambda image: jax.nn.softmax(tiny.apply(tiny.params, image)[0]))

    def run(pixels, mask=None):
        kept = pixels if mask is None else np.where(mask[..., None], pixels, GRAY)
        return np.asarray(apply(jnp.asarray((kept - np.float32(127)) / np.float32(128))))

    return run


def assert_same(first, second):
    """Byte for byte, but for the time it took."""
    for name in ("pixels", "mask", "ranking", "optimized_mask"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    for name in ("target", "label", "certificate", "steps", "calls", "optimized_sufficient", "cell"):
        assert getattr(first, name) == getattr(second, name), name


# --- what an explanation says ---------------------------------------------------------------------


def test_every_photo_has_a_smaller_mask_that_keeps_its_top_class(explanations, classify, photos):
    for explanation, pixels in zip(explanations, photos, strict=True):
        assert np.array_equal(explanation.pixels, pixels)
        assert explanation.target == classify(pixels).argmax()
        assert explanation.certificate.sufficient and explanation.certificate.minimal
        assert explanation.optimized_sufficient
        for mask in (explanation.mask, explanation.optimized_mask):
            assert (mask.shape, mask.dtype) == ((32, 32), bool)
            assert classify(pixels, mask).argmax() == explanation.target
        assert explanation.mask.mean() <= explanation.optimized_mask.mean() < 0.5
        assert np.array_equal(explanation.ranking > 0, explanation.optimized_mask)
        assert explanation.calls > 0 and explanation.seconds > 0
        assert explanation.steps == 12


def test_any_class_can_be_asked_for_and_the_answer_is_honest(explainer, classify, photos):
    pixels = photos[1]
    for target, explanation in enumerate(explainer([pixels] * 5, range(5))):
        assert (explanation.target, explanation.label) == (target, explainer.classifier.labels[target])
        certificate = explanation.certificate
        assert certificate.sufficient == (classify(pixels, explanation.mask).argmax() == target)
        assert certificate.probability_image == pytest.approx(classify(pixels)[target], rel=1e-4)
        kept = classify(pixels, explanation.optimized_mask).argmax() == target
        assert explanation.optimized_sufficient == kept
        if certificate.sufficient and target != classify(pixels).argmax():
            assert 0 < explanation.mask.mean() < 0.5


def test_a_class_that_no_mask_gives_is_said_to_have_none(explainer, photos):
    [explanation] = explainer([photos[0]], ["never"])
    certificate = explanation.certificate
    assert not (certificate.sufficient or certificate.minimal or explanation.optimized_sufficient)
    assert explanation.mask.all() and certificate.area == 1
    assert explanation.calls == 0


def test_what_is_said_is_of_the_float32_classifier_whatever_the_steps_were_computed_in(
    tiny, classify, photos
):
    explainer = Explainer(tiny, replace(CONFIG, dtype="bfloat16", remat=True))
    for pixels, explanation in zip(photos, explainer(photos), strict=True):
        target, seen = explanation.target, classify(pixels, explanation.mask)
        assert target == classify(pixels).argmax() == seen.argmax()
        assert explanation.certificate.sufficient
        assert explanation.certificate.probability_explanation == pytest.approx(seen[target], rel=1e-4)
        assert explanation.optimized_mask.mean() < 0.5


# --- the record -----------------------------------------------------------------------------------

CONTRACT = {
    "schema": int,
    "image": str,
    "classifier": str,
    "weights": str,
    "target": {"index": int, "name": str},
    "decision": {"kind": str},
    "probability": {"image": float, "explanation": float, "complement": float},
    "top": {"image": list, "explanation": list},
    "area": float,
    "sufficient": bool,
    "necessary": bool,
    "minimal": {"holds": bool, "cell": int, "calls": int},
    "notion": {"name": str, "goal": str, "confidence": float, "holds": bool},
    "method": {"name": str, "start": str, "pruned": bool},
    "before_pruning": {"area": float, "sufficient": bool},
    "robustness": {kind: {"kept": int, "trials": int} for kind in ("colour", "noise", "blur")},
    "robustness_bound": {"share": float, "certainty": float},
    "controls": {
        "specificity": {
            "own": bool,
            "displaced": {"kept": int, "trials": int},
            "scattered": {"kept": int, "trials": int},
            "holds": bool,
        },
        "leakage": {
            "constants": {"leaked": int, "trials": int},
            "photos": {"leaked": int, "trials": int},
            "flagged": bool,
        },
        "stability": type(None),
        "flags": list,
    },
    "components": int,
    "background": {"name": str, "rgb": list},
    "seed": int,
    "steps": int,
    "seconds": float,
    "config": dict,
    "versions": dict,
    "words": list,
}


def assert_fits(value, contract, path="record"):
    if isinstance(contract, dict):
        assert set(value) == set(contract), path
        for name, part in contract.items():
            assert_fits(value[name], part, f"{path}.{name}")
    else:
        assert type(value) is contract, path


def test_the_record_is_the_output_contract_and_survives_json(explanations):
    for explanation in explanations:
        record = json.loads(json.dumps(explanation.record("a.png"), allow_nan=False))
        assert_fits(record, CONTRACT)
        assert list(record) == list(CONTRACT)


def test_the_record_says_what_the_explanation_is(explanations, classify):
    for explanation in explanations:
        record = json.loads(json.dumps(explanation.record("photos/a.png")))
        certificate = asdict(explanation.certificate)
        pixels, mask, target = explanation.pixels, explanation.mask, explanation.target
        assert record["image"] == "photos/a.png"
        assert record["classifier"] == "tiny"
        assert record["target"] == {"index": target, "name": ("ant", "bee", "cat", "dog")[target]}
        for seen, ranked in record["top"].items():
            assert [entry["probability"] for entry in ranked] == sorted(
                (entry["probability"] for entry in ranked), reverse=True
            )
            assert sum(entry["probability"] for entry in ranked) == pytest.approx(1)  # of 5 classes
            [own] = [entry for entry in ranked if entry["index"] == target]
            assert own["name"] == record["target"]["name"]
            assert own["probability"] == pytest.approx(record["probability"][seen], abs=1e-5)
        assert record["probability"] == pytest.approx(
            {
                "image": classify(pixels)[target],
                "explanation": classify(pixels, mask)[target],
                "complement": classify(pixels, ~mask)[target],
            },
            rel=1e-4,
        )
        for name in ("area", "sufficient", "necessary", "components"):
            assert record[name] == certificate[name]
        assert record["minimal"] == {
            "holds": certificate["minimal"],
            "cell": 4,
            "calls": explanation.calls,
        }
        assert record["before_pruning"] == {
            "area": explanation.optimized_mask.mean(),
            "sufficient": explanation.optimized_sufficient,
        }
        for kind, (kept, trials) in certificate["robustness"].items():
            assert record["robustness"][kind] == {"kept": kept, "trials": trials} and trials == 3
        assert record["background"] == {"name": "#7f7f7f", "rgb": [127, 127, 127]}
        assert (record["seed"], record["steps"]) == (0, 12)
        assert record["config"] == json.loads(json.dumps(asdict(CONFIG)))
        assert {"python", "amx-jax", "jax", "flax", "optax", "numpy"} <= set(record["versions"])


# --- independence ---------------------------------------------------------------------------------


def test_number_order_and_neighbours_of_the_photos_change_no_byte(explainer, explanations, photos):
    backwards = explainer(list(photos[::-1]))[::-1]
    for first, second in zip(explanations, backwards, strict=True):
        assert_same(first, second)
    for index in (2, 5):
        [alone] = explainer([photos[index]])
        assert_same(alone, explanations[index])
    twice = explainer([photos[1], photos[1]])
    assert_same(*twice)


@pytest.mark.slow
def test_nor_do_they_or_batches_and_devices_for_a_real_classifier():
    photos = [read_photo(path) for path in bundled_photos()][:3]
    config = Config(steps=3, cell=28, trials=2, batch_size=1)  # the docstrings', compiled with them
    alone = Explainer(load_classifier(), config, jax.devices()[:1])(photos)
    together = Explainer(load_classifier(), config)(photos[::-1])[::-1]
    for first, second in zip(alone, together, strict=True):
        assert first.certificate.sufficient and first.certificate.minimal
        assert_same(first, second)


@pytest.mark.slow
def test_nor_do_they_where_each_photo_trains_an_autoencoder(tiny, photos):
    explainer = Explainer(tiny, replace(CONFIG, generator="autoencoder"))
    together = explainer(list(photos))
    assert all(explanation.certificate.sufficient for explanation in together)
    for first, second in zip(together, explainer(list(photos[::-1]))[::-1], strict=True):
        assert_same(first, second)


def test_the_same_configuration_gives_the_same_bytes_again(tiny, explanations, photos):
    for first, second in zip(explanations, Explainer(tiny, CONFIG)(list(photos)), strict=True):
        assert_same(first, second)


def test_another_seed_searches_elsewhere(tiny, explanations, photos):
    others = Explainer(tiny, replace(CONFIG, seed=1))(list(photos))
    assert all(
        not np.array_equal(a.ranking, b.ranking) for a, b in zip(explanations, others, strict=True)
    )
    assert all(other.certificate.sufficient for other in others)


EARLY = replace(CONFIG, steps=40, patience=4, progress=0.2)


@cache
def impatient(classifier, batch_size, devices, candidates):
    # Without controls, which ask about one photo at a time: what is counted is the search's.
    config = replace(EARLY, batch_size=batch_size, candidates=candidates, controls=0)
    return Explainer(classifier, config, jax.devices()[:devices])


@pytest.fixture(scope="module")
def early(tiny, photos):
    """Of all six photos, each alone in the one slot of the one device."""
    explainer = impatient(tiny, 1, 1, 1)
    return [explanation for photo in photos for explanation in explainer([photo])]


def test_an_impatient_search_ends_where_the_photo_lets_it_and_its_masks_are_as_good(early, classify):
    assert len({explanation.steps for explanation in early}) > 2
    for explanation in early:
        assert 4 <= explanation.steps < 40
        assert explanation.certificate.sufficient and explanation.certificate.minimal
        assert classify(explanation.pixels, explanation.mask).argmax() == explanation.target
        assert explanation.record("a.png")["steps"] == explanation.steps


@pytest.mark.parametrize(("batch_size", "devices", "candidates"), [(2, 1, 5), (3, 2, 3), (8, 1, 16)])
def test_neither_the_batch_nor_the_devices_nor_the_neighbours_in_a_slot_change_a_byte(
    tiny, photos, early, batch_size, devices, candidates
):
    """On a CPU, where images go one by one, and with slots that are filled again and again."""
    order = [3, 0, 5, 1, 4, 2, 0]
    found = impatient(tiny, batch_size, devices, candidates)(photos[order])
    for index, explanation in zip(order, found, strict=True):
        assert_same(explanation, early[index])


def test_a_search_for_sturdy_masks_gives_the_same_bytes_in_any_order(tiny, photos):
    only = Weights(**dict.fromkeys(asdict(CONFIG.objective), 0.0) | {"robustness": 1.0})
    explainer = Explainer(tiny, replace(EARLY, objective=only, batch_size=2))
    explanations = explainer(photos)
    assert any(explanation.certificate.sufficient for explanation in explanations)
    for first, second in zip(explanations, explainer(photos[::-1])[::-1], strict=True):
        assert_same(first, second)


def test_a_chunk_of_many_rounds_differently_and_no_more(tiny, explanations, photos):
    others = Explainer(tiny, replace(CONFIG, chunk=2))(list(photos))
    for first, second in zip(explanations, others, strict=True):
        assert first.target == second.target and second.certificate.sufficient
        both, either = (
            how(first.optimized_mask, second.optimized_mask).sum() for how in (np.minimum, np.maximum)
        )
        assert both / either > 0.9


# --- targets --------------------------------------------------------------------------------------


def test_a_target_is_an_index_a_name_or_the_top_class(explainer, explanations, photos):
    targets = [1, "1", "bee", " BEE ", None]
    found = explainer([photos[0]] * 5, targets)
    for explanation in found[:4]:
        assert (explanation.target, explanation.label) == (1, "bee")
        assert_same(explanation, found[0])
    assert_same(found[4], explanations[0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("beee", r"no class 'beee' in tiny; nearest: bee"),
        (5, "class 5 does not exist.*0 to 4"),
        (-1, "-1"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(explainer, photos, target, message):
    with pytest.raises(UnknownNameError, match=message):
        explainer([photos[0], photos[1]], [0, target])


def test_too_few_targets_are_refused(explainer, photos):
    with pytest.raises(ValueError, match="fewer targets than images"):
        explainer(list(photos[:3]), [0, 1])


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.int64),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((33, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.shape}",
)
def test_an_array_that_is_no_input_is_refused_by_its_position(explainer, photos, image):
    with pytest.raises(ImageError) as error:
        explainer([*photos[:2], image])
    message = str(error.value)
    assert message.startswith(f"image 2: found an array {image.dtype} {image.shape}, expected uint8 ")
    assert "(32, 32, 3)" in message


def test_the_position_counts_on_from_slot_to_slot(explainer, photos):
    with pytest.raises(ImageError, match="image 5: "):
        explainer([*photos[:5], photos[5][:16]])


def test_a_pillow_image_is_cropped_to_its_centre_square(explainer, explanations, photos):
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste(Image.fromarray(photos[0]), (16, 0))
    tall = Image.new("RGB", (32, 60), "blue")
    tall.paste(Image.fromarray(photos[1]), (0, 14))
    for found, expected in zip(explainer([wide, tall]), explanations, strict=False):
        assert_same(found, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_a_pillow_image_of_any_mode_is_explained_as_rgb(explainer, photos, mode):
    photo = Image.fromarray(photos[0]).convert(mode).resize((96, 80))
    [explanation] = explainer([photo])
    expected = explainer.classifier.preprocess.crop(photo.convert("RGB"))
    assert np.array_equal(explanation.pixels, expected)
    assert explanation.certificate.sufficient


# --- failures -------------------------------------------------------------------------------------


def test_an_image_that_is_not_finite_is_unexplained_and_the_others_are_not_changed(unit_power, photos):
    explainer = Explainer(unit_power, CONFIG)
    first, second = explainer([photos[0], photos[4]])
    found = explainer([photos[0], GRAY, photos[4]])
    assert found[1] == Unexplained("activation is not finite at step 0")
    assert_same(found[0], first)
    assert_same(found[2], second)
    assert isinstance(first, Explanation)
    # Also where nothing else is in its batch.
    assert explainer([GRAY, photos[0]])[0] == found[1]
    assert explainer([GRAY, GRAY]) == [found[1]] * 2


@pytest.mark.parametrize("method", ["amx", "occlusion"])
def test_a_photo_is_not_compared_with_its_own_top_class_and_the_others_are(
    tiny, explanations, photos, method
):
    explainer = Explainer(tiny, replace(CONFIG, method=method))
    rival = explanations[0].target
    found = explainer(list(photos[:4]), rivals=[rival] * 4)
    for one, other in zip(explanations, found, strict=False):
        if one.target == rival:
            name = tiny.labels[rival]
            assert other == Unexplained(
                f"its top class is {name}, the class it shall be compared with; name a target"
            )
        else:
            assert other.target == one.target
            assert other.decision.rival == rival
    assert isinstance(found[0], Unexplained)
    assert explainer([photos[0]], rivals=[rival]) == [found[0]]


def test_a_stage_that_the_classifier_lacks_is_refused_with_those_it_has(tiny):
    with pytest.raises(ConfigError, match=r"stages: found stage9, expected some of stage1, stage2"):
        Explainer(tiny, replace(CONFIG, stages=("stage1", "stage9")))


# --- the stream -----------------------------------------------------------------------------------


def test_no_images_have_no_explanations(explainer):
    assert explainer([]) == []


class Watched:
    """Photos that tell when they are drawn, and what the explainer did until then."""

    def __init__(self, photos):
        self.photos, self.drawn, self.done = photos, 0, []

    def __iter__(self):
        for photo in self.photos:
            self.drawn += 1
            self.done.append("draw")
            yield photo

    def on_progress(self, phase, work):
        self.done.append(phase)


def test_a_photo_is_drawn_when_a_slot_is_free_for_it(explainer, explanations, photos):
    watched = Watched(photos)
    stream = explainer.stream(watched, (None for _ in range(6)), watched.on_progress)
    assert watched.drawn == 0
    for index, explanation in enumerate(stream):
        assert_same(explanation, explanations[index])
    advances = 3 * ["optimising"]  # of 4 steps: in twelve all photos end together
    optimising = [what for what in watched.done if what != "verifying"]
    assert optimising == [*4 * ["draw"], *advances, *2 * ["draw"], *advances]


def test_a_photo_that_stops_early_leaves_its_slot_to_the_next_and_never_are_there_more(
    tiny, early, photos
):
    explainer = impatient(tiny, 2, 1, 5)
    watched = Watched(photos)
    found = list(explainer.stream(watched, on_progress=watched.on_progress))
    for first, second in zip(found, early, strict=True):
        assert_same(first, second)
    # The first that is free takes the next, as at the counters of a bank.
    until, expected = [0, 0], []
    for explanation in early:
        start = min(until)
        expected.append(start)
        until[until.index(start)] = start + -(-explanation.steps // 4)
    events = [what for what in watched.done if what != "verifying"]
    draws = [position for position, what in enumerate(events) if what == "draw"]
    assert [position - number for number, position in enumerate(draws)] == expected
    assert events.count("optimising") == max(until)
    full = sum(-(-explanation.steps // 4) for explanation in early)
    assert max(until) < full  # so that the slots have worked side by side


def test_masks_are_judged_in_full_batches_until_no_photo_is_left_to_optimise(tiny, photos, monkeypatch):
    watched, judge = Watched(photos), Evaluator.judge

    def counted(self, pixels, targets, masks):
        watched.done.append(len(masks))
        return judge(self, pixels, targets, masks)

    monkeypatch.setattr(Evaluator, "judge", counted)
    list(impatient(tiny, 2, 1, 5).stream(watched, on_progress=watched.on_progress))
    last = len(watched.done) - watched.done[::-1].index("optimising")
    while_optimising, after = (
        [what for what in part if isinstance(what, int)]
        for part in (watched.done[:last], watched.done[last:])
    )
    assert set(while_optimising) == {5} and len(while_optimising) > 3
    assert max(after) <= 5


def test_progress_goes_from_the_first_step_to_all_photos(explainer, photos):
    seen = []
    list(explainer.stream(photos, on_progress=lambda phase, work: seen.append((phase, work))))
    assert {phase for phase, _ in seen} == {"optimising", "verifying"}
    assert 0 < seen[0][1] < 1
    assert all(0 <= work <= 6 for _, work in seen)


def test_an_explainer_that_was_interrupted_or_refused_a_photo_explains_the_next_as_ever(
    explainer, explanations, photos
):
    for _ in range(3):
        next(explainer.stream(photos))
        with pytest.raises(ImageError):
            explainer([*photos[:3], photos[3][:16]])
    for first, second in zip(explainer(photos), explanations, strict=True):
        assert_same(first, second)


def test_two_streams_of_one_explainer_do_not_meet(explainer, explanations, photos):
    both = zip(explainer.stream(photos), explainer.stream(photos[::-1]), strict=True)
    for index, (first, second) in enumerate(both):
        assert_same(first, explanations[index])
        assert_same(second, explanations[5 - index])


def test_photos_after_the_first_compile_nothing(tiny, photos, compilations):
    explainer = Explainer(tiny, replace(EARLY, batch_size=2))
    explainer(photos[:1])
    assert compilations  # so that the list can grow
    del compilations[:]
    assert len(explainer(photos)) == 6
    assert compilations == []


# --- notions, goals and methods -------------------------------------------------------------------

BRIEF = replace(CONFIG, cell=4, trials=60, backgrounds=20, delta=0.3)


def on_noise(pixels, mask, rng):
    return np.where(mask[..., None], pixels, rng.integers(0, 256, pixels.shape))


def test_a_robust_mask_keeps_its_class_on_backgrounds_that_nobody_has_seen(tiny, classify, photos):
    config = replace(BRIEF, notion="robust", kinds=("noise",))
    plain, robust = (Explainer(tiny, c)(list(photos)) for c in (BRIEF, config))
    rng = np.random.default_rng(0)
    whole = np.ones((32, 32), bool)
    shares = {"plain": [], "robust": []}
    for name, explanations in (("plain", plain), ("robust", robust)):
        for pixels, explanation in zip(photos, explanations, strict=True):
            drawn = [on_noise(pixels, explanation.mask, rng) for _ in range(100)]
            kept = [classify(x, whole).argmax() == explanation.target for x in drawn]
            shares[name].append(np.mean(kept))
    for explanation, share in zip(robust, shares["robust"], strict=True):
        certificate = explanation.certificate
        assert certificate.holds and certificate.bound >= 0.7
        assert certificate.certainty == pytest.approx(1 - 0.05 / 3)
        assert share > 0.6  # four standard deviations below the bound
        assert explanation.start in ("amx", start_of(tiny))
    assert np.mean(shares["plain"]) < np.mean(shares["robust"]) - 0.1


def test_a_robust_mask_needs_no_activations(tiny, photos):
    blind = replace(tiny, apply=lambda params, image: tiny.apply(params, image)[0], stages=None)
    assert start_of(tiny) == "gradcam" and start_of(blind) == "rise"
    objective = replace(BRIEF.objective, activation=0.0)
    config = replace(BRIEF, notion="robust", kinds=("noise",), objective=objective)
    [explanation] = Explainer(blind, config)(list(photos[:1]))
    assert explanation.certificate.holds and explanation.certificate.bound >= 0.7


def test_a_worst_mask_is_1_minimal_on_its_backgrounds(tiny, photos):
    config = replace(BRIEF, notion="worst", backgrounds=6, trials=4)
    explanations = Explainer(tiny, config)(list(photos[:3]))
    assert all(e.certificate.holds and e.certificate.minimal for e in explanations)
    assert all(e.certificate.area < 1 for e in explanations)


def test_an_explanation_as_sure_as_the_photo(tiny, classify, photos):
    for confidence in (0.5, 1.0):
        config = replace(BRIEF, confidence=confidence)
        for pixels, e in zip(photos, Explainer(tiny, config)(list(photos)), strict=True):
            least = confidence * classify(pixels)[e.target]
            assert classify(pixels, e.mask)[e.target] >= least * (1 - 1e-3)
            assert e.certificate.holds and e.certificate.minimal


@pytest.mark.parametrize("goal", ["necessary", "complete"])
def test_without_a_necessary_mask_the_photo_loses_its_class(tiny, classify, photos, goal):
    for pixels, e in zip(photos, Explainer(tiny, replace(BRIEF, goal=goal))(list(photos)), strict=True):
        loses = classify(pixels, ~e.mask).argmax() != e.target
        keeps = classify(pixels, e.mask).argmax() == e.target
        assert e.certificate.holds == (loses and (keeps or goal == "necessary"))
        if e.target != 0:  # which the bare background has
            assert e.certificate.holds and e.certificate.minimal


@pytest.mark.parametrize("method", ["gradcam", "ig", "occlusion", "random", "centre"])
@pytest.mark.parametrize("pruned", [True, False])
def test_any_methods_ranking_makes_a_mask_that_holds(tiny, classify, photos, method, pruned):
    config = replace(BRIEF, method=method, prune=pruned)
    for pixels, e in zip(photos[:3], Explainer(tiny, config)(list(photos[:3])), strict=True):
        assert classify(pixels, e.mask).argmax() == e.target == classify(pixels).argmax()
        assert e.certificate.holds and (e.certificate.minimal or not pruned)
        assert (e.start, e.steps) == (method, 0)
        if not pruned:  # the top share of the ranking, none of it better than what is left out
            assert np.array_equal(e.mask, e.optimized_mask)
            assert e.ranking[e.mask].min() >= e.ranking[~e.mask].max()


def test_controls_ask_about_wrong_masks_and_the_shape(tiny, classify, photos):
    """What the certificate says of wrong masks is what the classifier says of them."""
    explanations = Explainer(tiny, CONFIG, others=photos[4:])(list(photos[:4]))
    for e in explanations:
        specific, leakage = e.controls.specificity, e.controls.leakage
        assert specific.own == (classify(e.pixels, e.mask).argmax() == e.target)
        assert specific.displaced[1] == specific.scattered[1] == (20 if e.mask.any() else 0)
        assert leakage.constants[1] == 20
        own = [classify(photo).argmax() == e.target for photo in photos[4:]]
        assert leakage.photos[1] == own.count(False)
        leaked = [
            classify(photo, e.mask).argmax() == e.target
            for photo, same in zip(photos[4:], own, strict=True)
            if not same
        ]
        assert leakage.photos[0] == sum(leaked)
        assert bool(e.controls.flags) == (not specific.holds or leakage.flagged)
    assert Explainer(tiny, replace(CONFIG, controls=0))([photos[0]])[0].controls == (None, None, None)


def test_several_seeds_say_how_alike_their_masks_are(tiny, explanations, photos):
    twice = Explainer(tiny, replace(CONFIG, seeds=2))(list(photos[:3]))
    assert len(twice) == 3
    for once, both in zip(explanations, twice, strict=False):
        assert np.array_equal(once.mask, both.mask) and once.controls.stability is None
        assert 0 <= both.controls.stability <= 1
        assert both.record("a")["controls"]["stability"]["seeds"] == 2
    # A method without randomness finds the same mask again.
    [same] = Explainer(tiny, replace(CONFIG, method="occlusion", seeds=3))([photos[0]])
    assert same.controls.stability == 1


def test_backgrounds_that_show_photos_need_some(tiny, photos):
    config = replace(BRIEF, notion="robust", kinds=("photo",))
    with pytest.raises(ConfigError, match="kinds: found photo and 1 other photos"):
        Explainer(tiny, config, others=photos[:1])
    [explanation] = Explainer(tiny, config, others=photos[2:])([photos[0]])
    assert explanation.certificate.robustness["photo"][1] == 60


# --- a part of the photo ----------------------------------------------------------------------------


def left_half() -> np.ndarray:
    region = np.zeros(GRAY.shape[:2], bool)
    region[:, : region.shape[1] // 2] = True
    return region


@pytest.mark.parametrize("asked", [{}, {"notion": "robust", "backgrounds": 20}, {"method": "gradcam"}])
def test_a_mask_keeps_pixels_of_its_region_only_and_is_certified_on_the_whole_photo(
    tiny, classify, photos, asked
):
    region = left_half()
    explainer = Explainer(tiny, replace(CONFIG, controls=0, **asked))
    for photo, one in zip(photos[:3], explainer(list(photos[:3]), within=[region] * 3), strict=True):
        assert not (one.mask & ~region).any() and not (one.optimized_mask & ~region).any()
        certificate, target = one.certificate, one.target
        assert certificate.area == pytest.approx(one.mask.mean())
        assert certificate.probability_image == pytest.approx(classify(photo)[target], abs=1e-4)
        kept = classify(photo, one.mask)
        assert certificate.probability_explanation == pytest.approx(kept[target], abs=1e-4)
        rest = classify(photo, ~one.mask)
        assert certificate.probability_complement == pytest.approx(rest[target], abs=1e-4)
        assert certificate.sufficient == (kept.argmax() == target)


def test_the_class_that_a_region_gives_is_what_is_explained_where_nobody_names_one(
    explainer, classify, photos
):
    region = left_half()
    for photo in photos[:3]:
        [one] = explainer([photo], within=[region])
        assert one.target == classify(photo, region).argmax()
        assert one.certificate.holds


def test_the_whole_as_a_region_changes_no_byte(explainer, explanations, photos):
    whole = np.ones(GRAY.shape[:2], bool)
    for one, two in zip(explainer(list(photos[:2]), within=[whole, None]), explanations, strict=False):
        assert_same(one, two)


@pytest.mark.parametrize(
    ("region", "found"),
    [
        (np.zeros(GRAY.shape[:2], bool), "an empty one"),
        (np.ones((8, 8), bool), "bool (8, 8)"),
        (np.ones(GRAY.shape[:2], np.uint8), "uint8 (32, 32)"),
    ],
)
def test_a_region_that_is_none_is_refused_by_its_position(explainer, photos, region, found):
    with pytest.raises(ImageError) as caught:
        explainer(list(photos[:2]), within=[None, region])
    assert str(caught.value) == f"image 1: found as its region {found}, expected some of bool (32, 32)"
