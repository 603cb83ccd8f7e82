"""The zoo: from every layout of its weights, each architecture computes what PyTorch does."""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from amx_jax.classifiers import vgg, vit
from amx_jax.classifiers.classifier import Classifier, Preprocess
from amx_jax.classifiers.registry import load_classifier
from amx_jax.classifiers.weights import fill
from amx_jax.classifiers.zoo import CLASSIFIERS, Layout
from amx_jax.data.photos import read_photo
from amx_jax.errors import WeightsError
from tests import oracles

TOLERANCE = 1e-4  # measured: 8e-6, from the order of the sums and the folded batch norms
EXACT_TOLERANCE = 1e-10  # measured: 2e-14
CLASSES, TARGET = 10, 3
HIDDEN = 64  # of VGG's fully connected layers, whose 120 million weights take their time
FAST = {  # one of each family; EfficientNet-Lite's is in tests/test_efficientnet_lite.py
    ("mobilenet_v1_075_192", "28_b"),
    ("mobilenet_v2", "classifier.1.bias"),
    ("squeezenet1_1", "classifier.1.bias"),
    ("resnet18", "fc.bias"),
    ("cifar_resnet20", "linear.bias"),
    ("convnext_tiny", "classifier.2.bias"),
    ("vit_tiny_patch16_224", "head.bias"),
    ("vgg11_bn", "classifier.6.bias"),
}
LAYOUTS = [
    pytest.param(
        (name, layout.head),
        id=f"{name}-{layout.head}",
        marks=() if (name, layout.head) in FAST else pytest.mark.slow,
    )
    for name, entry in CLASSIFIERS.items()
    for layout in entry.layouts
]
# Only deeper or wider than another in the list: their blocks' gradients are compared there.
LARGER = {
    *(f"efficientnet_lite{number}" for number in (1, 2, 3, 4)),
    *("mobilenet_v1", "resnet34", "resnet101", "resnet152"),
    *("cifar_resnet32", "cifar_resnet44", "cifar_resnet56"),
    *("convnext_small", "convnext_base", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn"),
    *("vit_small_patch16_224", "vit_base_patch16_224"),
    *("deit_small_patch16_224", "deit_base_patch16_224"),
}


def layout_of(name: str, head: str) -> Layout:
    return next(layout for layout in CLASSIFIERS[name].layouts if layout.head == head)


def relative_error(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@contextlib.contextmanager
def float64():
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@dataclass
class Case:
    """A small random classifier, once as the arrays of a file for us and once in PyTorch, float64."""

    name: str
    layout: Layout
    arrays: dict[str, np.ndarray]
    module: nnx.Module
    oracle: torch.nn.Module
    image: np.ndarray

    @property
    def rules(self):
        return self.layout.rules(self.arrays)

    def params(self, arrays: dict[str, np.ndarray] | None = None) -> nnx.State:
        arrays = self.arrays if arrays is None else arrays
        return fill(self.module, arrays, self.rules, origin=self.name)

    def exact_params(self) -> nnx.State:
        """Folded, but not rounded to float32."""
        flat: dict[Any, Any] = dict(iter(nnx.to_flat_state(nnx.state(self.module, nnx.Param))))
        arrays = {
            name: array.astype(np.float64) if array.dtype == np.float32 else array
            for name, array in self.arrays.items()
        }
        return nnx.from_flat_state(
            [
                (rule.target, flat[rule.target].replace(jnp.asarray(rule.transform(*sources))))
                for rule in self.rules
                for sources in [[arrays[name] for name in rule.sources]]
            ]
        )

    @property
    def graph(self) -> nnx.GraphDef:
        return nnx.split(self.module)[0]

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """PyTorch's stages, ``logits`` and ``gradient``: of the cross-entropy, in the image."""
        x = torch.tensor(self.image, dtype=torch.float64, requires_grad=True)
        logits, out = self.oracle(x.movedim(-1, 0)[None])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([TARGET]))
        found = {name: value[0].detach() for name, value in (out | {"logits": logits}).items()}
        found = {name: x.movedim(0, -1) if x.ndim == 3 else x for name, x in found.items()}
        return {name: x.numpy() for name, x in found.items()} | {
            "gradient": torch.autograd.grad(loss, x)[0].numpy()
        }


# These tests do little but compile: once for the layouts and the names that share a module, and with
# less of LLVM, which takes a third less time.
quick_jit = partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


@quick_jit
def forward(graph: nnx.GraphDef, params: nnx.State, image):
    """The logits and the stages."""
    return nnx.merge(graph, params)(image)


@quick_jit
def backward(graph: nnx.GraphDef, params: nnx.State, image):
    """The gradient of the cross-entropy in the image, the logits and the stages."""

    def loss(image):
        logits, out = nnx.merge(graph, params)(image)
        return -jax.nn.log_softmax(logits)[TARGET], (logits, out)

    gradient, (logits, out) = jax.grad(loss, has_aux=True)(image)
    return gradient, logits, out


def prepared(name: str, head: str) -> Case:
    """A case, at a size that lets the paddings, the strides and the pools show how they round."""
    layout = layout_of(name, head)
    transformer = name.startswith(("vit", "deit"))
    size = (32, 28) if name.startswith("cifar") else (72, 67)
    if transformer:
        size = (224, 224) if name.startswith("vit_tiny") else (64, 64)
    torch.set_num_threads(1)  # the test may not be alone
    image = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    oracle = oracles.build(name, head, size, CLASSES, HIDDEN)
    oracles.randomise(oracle, torch.tensor(image).movedim(-1, 0)[None])
    if oracles.is_tensorflow(head):
        first = oracles.first_number(head)
        arrays = oracles.quantise(oracle.double(), first, per_channel=bool(first))
    else:
        arrays = oracles.state_arrays(oracle)  # float32 still, also after the next line
        oracle = oracle.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "HIDDEN", HIDDEN)
        if transformer:
            build = partial(vit.VisionTransformer, vit.VARIANTS[name], size[0])
        else:
            build = layout.build
        module = nnx.eval_shape(lambda: build(CLASSES))
    return Case(name, layout, arrays, module, oracle, image)


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request) -> Case:
    return prepared(*request.param)


# --- what is computed -----------------------------------------------------------------------------


def test_every_stage_and_the_logits_are_pytorchs(case):
    logits, found = forward(case.graph, case.params(), case.image)
    found = found | {"logits": logits}
    assert {*found, "gradient"} == set(case.expected)
    assert set(CLASSIFIERS[case.name].stages) <= set(found)
    assert np.ptp(case.expected["logits"]) > 0.5
    for stage, activation in found.items():
        expected = case.expected[stage]
        assert 0.05 < np.sqrt(np.mean(expected**2)) < 50, stage  # the oracle says something here
        assert activation.shape == expected.shape, stage
        assert activation.dtype == np.float32, stage
        assert relative_error(activation, expected) <= TOLERANCE, stage


@pytest.mark.parametrize(
    "case", [layout for layout in LAYOUTS if layout.values[0][0] not in LARGER], indirect=True
)
def test_the_input_gradient_of_the_cross_entropy_is_pytorchs(case):
    """In float64: in float32, rounding can take a unit over the kink of its rectifier."""

    with float64():
        image = case.image.astype(np.float64)
        gradient, logits, found = backward(case.graph, case.exact_params(), image)
        for name, value in (found | {"logits": logits, "gradient": gradient}).items():
            assert value.dtype == np.float64, name
            assert relative_error(value, case.expected[name]) <= EXACT_TOLERANCE, name


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("cifar_resnet20", "linear.bias"),
        *(
            pytest.param(*layout, marks=pytest.mark.slow)
            for layout in (
                ("resnet18", "fc.bias"),
                ("efficientnet_lite0", "_fc.bias"),
                ("efficientnet_lite0", "classifier.bias"),
                ("mobilenet_v1_075_192", "classifier.bias"),
                ("mobilenet_v2", "classifier.1.bias"),
                ("mobilenet_v2", "63_b"),
                ("squeezenet1_1", "classifier.1.bias"),
                ("squeezenet1_1", "conv10/b"),
                ("convnext_tiny", "classifier.2.bias"),
                ("convnext_tiny", "head.fc.bias"),
                ("vit_tiny_patch16_224", "head.bias"),
                ("vgg11_bn", "classifier.6.bias"),
            )
        ),
    ],
)
def test_two_arrays_of_one_shape_that_change_places_change_the_logits(name, head):
    """By more than the tolerance, so that no swapped names pass the comparison with PyTorch."""
    case = prepared(name, head)
    expected, _ = forward(case.graph, case.params(), case.image)
    by_shape: dict[Any, list[str]] = {}
    for key, array in case.arrays.items():
        if "num_batches_tracked" not in key and array.size > 1:
            by_shape.setdefault((array.shape, array.dtype), []).append(key)
    pairs = [pair for keys in by_shape.values() for pair in pairwise(keys)]
    assert len(pairs) > 8
    for first, second in pairs[:: -(-len(pairs) // 16)]:
        swapped = {first: case.arrays[second], second: case.arrays[first]}
        with contextlib.suppress(WeightsError):  # what is no variance can be negative
            logits, _ = forward(case.graph, case.params(case.arrays | swapped), case.image)
            assert relative_error(logits, expected) > 10 * TOLERANCE, (first, second)


# --- what is said of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_number_of_parameters_is_right_to_the_printed_digit(name):
    entry = CLASSIFIERS[name]
    for layout in entry.layouts:
        usual = 1001 if oracles.is_tensorflow(layout.head) else 1000  # one more: the background
        classes = 10 if name.startswith("cifar") else usual
        module = nnx.eval_shape(partial(layout.build, classes))
        leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
        assert round(sum(leaf.size for leaf in leaves) / 1e6, 1) == entry.parameters, layout.head


def expected_preprocess(name: str, head: str) -> tuple[int, float, Any, Any]:
    """Side, the part of the short side that is seen, mean and deviation for pixels in 0 … 1."""
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    half = 0.5, 0.5
    if name.startswith("cifar"):
        return 32, 1.0, *imagenet
    if name.startswith("efficientnet"):
        side = (224, 240, 260, 280, 300)[int(name[-1])]
        return side, 0.875, *((127 / 255, 128 / 255) if head == "_fc.bias" else half)
    if name.startswith("mobilenet_v1"):
        return 192 if name.endswith("192") else 224, 0.875, *half
    if oracles.is_tensorflow(head):
        return 224, 0.875, *half
    if head == "conv10/b":
        return 227, 227 / 256, (123 / 255, 117 / 255, 104 / 255), 1 / 255
    if name.startswith("convnext") and head == "classifier.2.bias":
        resize = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232}[name]
        return 224, 224 / resize, *imagenet
    if name.startswith("vit"):
        return 224, 0.9, *half
    return 224, 0.9 if name.startswith("deit") else 0.875, *imagenet


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_layout_states_the_size_and_the_pixels_it_was_trained_on(name):
    for layout in CLASSIFIERS[name].layouts:
        side, crop, mean, deviation = expected_preprocess(name, layout.head)
        found = layout.preprocess
        assert (found.size, found.channels) == (side, 3)
        assert found.resize == round(side / crop)
        pixels = np.random.default_rng(0).uniform(0, 255, (4, 4, 3))
        expected = (pixels / 255 - np.asarray(mean)) / np.asarray(deviation)
        np.testing.assert_allclose(found.normalize(pixels), expected, rtol=0, atol=1e-3)


def names_in(name: str, head: str) -> set[str]:
    with torch.device("meta"):
        oracle = oracles.build(name, head, (64, 64), CLASSES)
    if not oracles.is_tensorflow(head):
        return set(oracles.file_names(oracle))
    numbers = [number for number, *_ in oracles.tflite_layers(oracle, oracles.first_number(head))]
    return {f"{number}_{kind}" for number in numbers for kind in ("w", "scale", "zp", "b")}


def test_the_head_tells_the_layouts_of_an_architecture_apart():
    for name, entry in CLASSIFIERS.items():
        for layout in entry.layouts:
            names = names_in(name, layout.head)
            assert [other.head for other in entry.layouts if other.head in names] == [layout.head]


# --- what does not fit ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar_arrays() -> dict[str, np.ndarray]:
    return prepared("cifar_resnet20", "linear.bias").arrays


def refusal(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> str:
    np.savez(folder / "weights.npz", **arrays)
    with pytest.raises(WeightsError) as caught:
        load_classifier(name, folder / "weights.npz")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_arrays_of_a_file_load(cifar_arrays, tmp_path):
    np.savez(tmp_path / "weights.npz", **cifar_arrays)
    classifier = load_classifier("cifar_resnet20", tmp_path / "weights.npz")
    assert classifier.labels[3] == "cat" and classifier.stages == ("layer1", "layer2", "layer3")


def test_a_renamed_array_is_refused_under_both_names(cifar_arrays, tmp_path):
    arrays = cifar_arrays | {"layer2.1.bn2.gamma": cifar_arrays["layer2.1.bn2.weight"]}
    del arrays["layer2.1.bn2.weight"]
    message = refusal(tmp_path, "cifar_resnet20", arrays)
    assert "(2 problems)" in message
    assert "no array 'layer2.1.bn2.weight' in the file" in message
    assert "array 'layer2.1.bn2.gamma' in the file is not used" in message


@pytest.mark.parametrize("key", ["conv1.weight", "layer3.2.bn1.running_var", "linear.bias"])
def test_a_missing_array_is_refused_by_name(cifar_arrays, tmp_path, key):
    arrays = {name: array for name, array in cifar_arrays.items() if name != key}
    message = refusal(tmp_path, "cifar_resnet20", arrays)
    assert f"no array {key!r} in the file" in message


def test_a_head_whose_weight_and_bias_disagree_is_refused(cifar_arrays, tmp_path):
    arrays = cifar_arrays | {"linear.bias": np.zeros(7, np.float32)}
    message = refusal(tmp_path, "cifar_resnet20", arrays)
    assert "linear.weight: found shape (64, 10), expected (64, 7) for classify.kernel" in message


def test_every_mismatch_with_another_member_of_the_family_is_named_and_so_is_the_member(tmp_path):
    state = oracles.build("resnet34", "fc.bias", (64, 64), CLASSES).state_dict()
    arrays = {name: array.numpy() for name, array in state.items()}
    fewer = oracles.build("resnet18", "fc.bias", (64, 64), CLASSES).state_dict()
    message = refusal(tmp_path, "resnet18", arrays)
    unused = re.findall(r"array '([^']*)' in the file is not used", message)
    tracked = "num_batches_tracked"
    assert set(unused) == {name for name in set(arrays) - set(fewer) if tracked not in name}
    assert "found the arrays of resnet34, expected those of resnet18: the weights" in message


@pytest.mark.parametrize("key", ["0_w", "7_scale", "16_zp", "28_b"])
def test_a_missing_array_of_a_numbered_file_is_the_only_one_named(key):
    case = prepared("mobilenet_v1_075_192", "28_b")
    rules = list(case.rules)
    del case.arrays[key]
    assert [rule.sources for rule in case.rules] == [rule.sources for rule in rules]
    with pytest.raises(WeightsError, match=rf"\(1 problem\): no array '{key}' in the file$"):
        case.params()


def test_a_wider_members_arrays_are_refused_one_by_one(tmp_path):
    def arrays(name):
        oracle = oracles.build(name, "head.bias", (224, 224), CLASSES)
        return {key: torch.zeros_like(x).numpy() for key, x in oracle.state_dict().items()}

    wider = arrays("vit_small_patch16_224")
    message = refusal(tmp_path, "vit_tiny_patch16_224", wider)
    for key, array in arrays("vit_tiny_patch16_224").items():
        if array.shape != wider[key].shape:
            assert f"{key}: found shape " in message


# --- real weights on real photos ------------------------------------------------------------------

SHARED = os.environ.get("AMX_SHARED_DATA")
needs_data = pytest.mark.skipif(
    not SHARED or not Path(SHARED, "weights").is_dir(),
    reason="AMX_SHARED_DATA names no folder with weights and photos",
)
COMPARED = 60  # photos that PyTorch sees too


def shared(*parts: str) -> Path:
    assert SHARED is not None
    return Path(SHARED, *parts)


@cache
def photos() -> tuple[list[Image.Image], np.ndarray]:
    """The 300 ImageNet photos, and their classes."""
    folder = shared("imagenet_val_original")
    records = json.loads((folder / "annotations.json").read_text())
    paths = [folder / "images" / f"{record['id']}.JPEG" for record in records]
    return [read_photo(path) for path in paths], np.array([record["label"] for record in records])


@cache
def inputs(preprocess: Preprocess) -> np.ndarray:
    return np.stack([preprocess.normalize(preprocess.crop(photo)) for photo in photos()[0]])


def logits_of(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """One image at a time, which takes a CPU a third of the time that ``vmap`` does."""

    @jax.jit
    def run(params, images):
        return jax.lax.map(lambda image: classifier.apply(params, image)[0], images)

    return np.asarray(run(classifier.params, images))


def channels_first(images: np.ndarray) -> torch.Tensor:
    torch.set_num_threads(1)  # the test may not be alone
    return torch.tensor(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def oracle_logits(oracle: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([oracle(batch)[0] for batch in channels_first(images).split(20)]).numpy()


def assert_same_decisions(found: np.ndarray, expected: np.ndarray) -> None:
    """Measured: the logits differ by 2e-6 at most, and all decisions are the same."""
    assert relative_error(found, expected) <= 1e-5
    assert np.mean(found.argmax(-1) == expected.argmax(-1)) >= 0.98


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "accuracy"),
    [
        ("mobilenet_v2", "mobilenet_v2_1.0_224_quant", 0.640),
        ("mobilenet_v2", "mobilenet_v2_1.0_224_ptq", 0.650),
        ("mobilenet_v1_075_192", "mobilenet_v1_0.75_192_quant", 0.597),
        ("squeezenet1_1", "squeezenet_v1.1_fp16", 0.523),
    ],
)
def test_converted_weights_decide_as_the_graph_in_their_own_file(name, file, accuracy):
    """The oracle follows the layers that the file itself lists, so that it knows nothing of ours.

    The accuracies are measured, on 300 photos that were chosen for their small objects: on others
    0.722, –, 0.674 and 0.590 are recorded. EfficientNet-Lite0 loses as much, from 0.746 to 0.703.
    """
    path = shared("weights", f"{file}.npz")
    classifier = load_classifier(name, path)
    images = inputs(classifier.preprocess)
    found = logits_of(classifier, images)
    with np.load(path) as opened:
        arrays = dict(opened)
    compared = channels_first(images[:COMPARED])
    if name == "squeezenet1_1":
        expected = oracles.run_ncnn(arrays, compared.flip(1))  # it reads blue, green, red
    else:
        expected = oracles.run_tflite(arrays, compared)
    assert_same_decisions(found[:COMPARED], expected.numpy())
    background = int(classifier.labels[0] == "background")
    assert len(classifier.labels) == 1000 + background == arrays_head(arrays)
    right = found.argmax(-1) == photos()[1] + background
    assert abs(right.mean() - accuracy) <= 0.02


def arrays_head(arrays: dict[str, np.ndarray]) -> int:
    """How many classes the last bias of a file has."""
    return len(next(array for name, array in reversed(arrays.items()) if name[-1] == "b"))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "accuracy"),
    [
        (20, "cifar10_resnet20-12fca82f", 0.804),
        (32, "cifar10_resnet32-d509ac18", 0.840),
        (44, "cifar10_resnet44-014dd654", 0.821),
        (56, "cifar10_resnet56-4bfd9763", 0.825),
    ],
)
def test_accuracy_on_cifar_is_the_recorded_one_and_the_decisions_are_pytorchs(depth, file, accuracy):
    """Measured: the accuracy is the recorded one to the last of the 1,000 images."""
    path = shared("weights", f"{file}.npz")
    name = f"cifar_resnet{depth}"
    classifier = load_classifier(name, path)
    with np.load(shared("cifar10_mnist", "cifar10_test1000_from_jpeg.npz")) as test:
        images, labels, names = test["images"], test["labels"], tuple(test["classes"])
    assert classifier.labels == names
    images = classifier.preprocess.normalize(images)
    found = logits_of(classifier, images)
    oracle = oracles.build(name, "linear.bias", (32, 32), 10).eval()
    with np.load(path) as arrays:
        state = {key: torch.tensor(array) for key, array in arrays.items()}
    fits = oracle.load_state_dict(state, strict=False)
    assert not fits.unexpected_keys
    assert all("num_batches_tracked" in key for key in fits.missing_keys)
    assert_same_decisions(found[:COMPARED], oracle_logits(oracle, images[:COMPARED]))
    assert abs(np.mean(found.argmax(-1) == labels) - accuracy) <= 0.02


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accuracy"), [("efficientnet_lite1", 0.727), ("efficientnet_lite2", 0.740)]
)
def test_decisions_of_the_packaged_weights_are_the_packages(name, accuracy):
    """The accuracies are measured on the 300 photos; on 200 others 0.77 and 0.745 are recorded."""
    classifier = load_classifier(name)
    images = inputs(classifier.preprocess)
    found = logits_of(classifier, images)
    oracle = oracles.build(name, "_fc.bias", images.shape[1:3], 1000).eval()
    file = CLASSIFIERS[name].weights_file()
    assert file is not None
    oracle.load_state_dict(torch.load(file, weights_only=True))
    assert_same_decisions(found[:COMPARED], oracle_logits(oracle, images[:COMPARED]))
    assert abs(np.mean(found.argmax(-1) == photos()[1]) - accuracy) <= 0.02
