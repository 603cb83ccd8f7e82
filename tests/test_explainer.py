"""Photos in, verified explanations out: each of its own photo, whoever else is in the batch."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from amx_jax import Config, Explainer, Explanation, Unexplained, Weights
from amx_jax.errors import ConfigError, ImageError, UnknownNameError

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
    """Of all six photos: a full batch and a ragged one."""
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
    for name in ("target", "label", "certificate", "calls", "optimized_sufficient", "config", "cell"):
        assert getattr(first, name) == getattr(second, name), name


def overlap(first, second):
    either = (first | second).sum()
    return (first & second).sum() / either if either else 1.0


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


# --- the record -----------------------------------------------------------------------------------

CONTRACT = {
    "schema": int,
    "image": str,
    "classifier": str,
    "target": {"index": int, "name": str},
    "probability": {"image": float, "explanation": float, "complement": float},
    "area": float,
    "sufficient": bool,
    "necessary": bool,
    "minimal": {"holds": bool, "cell": int, "calls": int},
    "before_pruning": {"area": float, "sufficient": bool},
    "robustness": {kind: {"kept": int, "trials": int} for kind in ("colour", "noise", "blur")},
    "components": int,
    "background": {"name": str, "rgb": list},
    "seed": int,
    "steps": int,
    "seconds": float,
    "config": dict,
    "versions": dict,
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


def test_another_batch_size_rounds_differently_and_no_more(tiny, explanations, photos):
    others = Explainer(tiny, replace(CONFIG, batch_size=2, candidates=5))(list(photos))
    pairs = list(zip(explanations, others, strict=True))
    assert [a.target for a, _ in pairs] == [b.target for _, b in pairs]
    assert np.mean([overlap(a.optimized_mask, b.optimized_mask) for a, b in pairs]) > 0.9
    assert np.median([overlap(a.mask, b.mask) for a, b in pairs]) > 0.9


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


def test_the_position_counts_on_from_batch_to_batch(explainer, photos):
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
    # Also where it fills the rest of the batch, and where nothing else is in it.
    assert explainer([GRAY, photos[0]])[0] == found[1]
    assert explainer([GRAY, GRAY]) == [found[1]] * 2


def test_a_stage_that_the_classifier_lacks_is_refused_with_those_it_has(tiny):
    with pytest.raises(ConfigError, match=r"stages: found stage9, expected some of stage1, stage2"):
        Explainer(tiny, replace(CONFIG, stages=("stage1", "stage9")))


# --- the stream -----------------------------------------------------------------------------------


def test_no_images_have_no_explanations(explainer):
    assert explainer([]) == []


def test_a_batch_is_drawn_when_the_one_before_has_been_given_out(explainer, explanations, photos):
    drawn = []

    def images():
        for index in range(6):
            drawn.append(index)
            yield photos[index]

    stream = explainer.stream(images(), (None for _ in range(6)))
    assert drawn == []
    for index, explanation in enumerate(stream):
        assert len(drawn) == (4 if index < 4 else 6)
        assert_same(explanation, explanations[index])


def test_progress_goes_from_the_first_step_to_the_whole_batch(explainer, photos):
    seen = []
    list(explainer.stream(photos[:2], on_progress=lambda phase, share: seen.append((phase, share))))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1
    assert len({phase for phase, _ in seen}) > 1
