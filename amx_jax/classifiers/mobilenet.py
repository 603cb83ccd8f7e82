"""MobileNet V1 and V2 in Flax NNX, and where their parameters lie in published files.

Howard et al., "MobileNets" (arXiv 1704.04861); Sandler et al., "MobileNetV2" (arXiv 1801.04381).
TensorFlow's files expect its SAME padding, PyTorch's a padding of half the kernel.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, DepthwiseConv, Linear, Padding, relu6
from amx_jax.classifiers.weights import Path, Rule, fold_conv, fold_depthwise, linear, unchanged


class Stage(NamedTuple):
    """Blocks of one resolution; an expansion of 1 leaves out a block's first convolution."""

    repeats: int
    side: int
    stride: int
    expansion: int
    features: int


# Of V2; its stem and head have the features of EfficientNet-Lite's.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(3, 3, 2, 6, 32),
    Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96),
    Stage(3, 3, 2, 6, 160),
    Stage(1, 3, 1, 6, 320),
)
STEM_FEATURES, HEAD_FEATURES = 32, 1280
# Repeats, stride and features of V1's stages at full width.
V1_STAGES = ((1, 1, 64), (2, 2, 128), (2, 2, 256), (6, 2, 512), (2, 2, 1024))
NUMBERED = re.compile(r"(\d+)_(?:w|scale|zp|b)", re.ASCII)  # an array of a TensorFlow Lite file


def around(side: int, same: bool) -> Padding:
    """TensorFlow's padding of a kernel, or PyTorch's."""
    return "same" if same else side // 2


class InvertedResidual(nnx.Module):
    """Expand, depthwise, project; with a skip where input and output agree in shape."""

    def __init__(
        self,
        in_features: int,
        features: int,
        side: int,
        stride: int,
        expansion: int,
        same: bool = True,
    ):
        hidden = in_features * expansion
        self.expand = Conv(in_features, hidden, 1) if expansion > 1 else None
        self.depthwise = DepthwiseConv(hidden, side, stride, around(side, same))
        self.project = Conv(hidden, features, 1)
        self.residual = stride == 1 and in_features == features

    def __call__(self, x: Array) -> Array:
        y = relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class _Staged(nnx.Module):
    """What both versions do with their parts: a stem, stages of blocks, perhaps a head, a mean."""

    stem: Conv
    stages: nnx.List
    head: Conv | None
    classify: Linear

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        x = out["stem"] = relu6(self.stem(x))
        for index, blocks in enumerate(self.stages, start=1):
            for block in blocks:
                x = checkpoint_name(block(x), BLOCK)
            out[f"stage{index}"] = x
        if self.head is not None:
            x = out["head"] = relu6(self.head(x))
        x = out["pooled"] = jnp.mean(x, axis=(0, 1))
        return self.classify(x), out


class InvertedResiduals(_Staged):
    """MobileNetV2 and its descendants: one image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``stage1`` … (``(H', W', C)`` each), ``head`` ``(H', W', 1280)`` and ``pooled``
    ``(1280,)``.
    """

    def __init__(self, stages: Sequence[Stage], classes: int, same: bool):
        self.stem = Conv(3, STEM_FEATURES, 3, stride=2, padding=around(3, same))
        features = STEM_FEATURES
        built = []
        for stage in stages:
            blocks = []
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(
                        features, stage.features, stage.side, stride, stage.expansion, same
                    )
                )
                features = stage.features
            built.append(nnx.List(blocks))
        self.stages = nnx.List(built)
        self.head = Conv(features, HEAD_FEATURES, 1)
        self.classify = Linear(HEAD_FEATURES, classes)


class Separable(nnx.Module):
    """A depthwise and a 1 × 1 convolution, ReLU6 after each."""

    def __init__(self, in_features: int, features: int, stride: int, same: bool):
        self.depthwise = DepthwiseConv(in_features, 3, stride, around(3, same))
        self.pointwise = Conv(in_features, features, 1)

    def __call__(self, x: Array) -> Array:
        return relu6(self.pointwise(self.depthwise(x)))


class MobileNetV1(_Staged):
    """One image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``stage1`` … ``stage5`` (``(H', W', C)`` each) and ``pooled`` ``(C,)``.
    """

    def __init__(self, width: float, classes: int, same: bool):
        features = round(STEM_FEATURES * width)
        self.stem = Conv(3, features, 3, stride=2, padding=around(3, same))
        stages = []
        for repeats, stride, full in V1_STAGES:
            blocks = []
            for index in range(repeats):
                blocks.append(
                    Separable(features, round(full * width), stride if index == 0 else 1, same)
                )
                features = round(full * width)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = None
        self.classify = Linear(features, classes)


def torchvision_rules() -> Iterator[Rule]:
    """Where each parameter of MobileNetV2 lies in torchvision's weights."""
    yield from fold_conv(("stem",), "features.0.0", "features.0.1")
    number = 1
    for i, stage in enumerate(STAGES):
        for j in range(stage.repeats):
            target: Path = ("stages", i, j)
            name, place = f"features.{number}.conv", 0
            if stage.expansion > 1:
                yield from fold_conv((*target, "expand"), f"{name}.0.0", f"{name}.0.1")
                place = 1
            yield from fold_depthwise((*target, "depthwise"), f"{name}.{place}.0", f"{name}.{place}.1")
            yield from fold_conv((*target, "project"), f"{name}.{place + 1}", f"{name}.{place + 2}")
            number += 1
    yield from fold_conv(("head",), f"features.{number}.0", f"features.{number}.1")
    yield from linear(("classify",), "classifier.1")


def timm_rules(stages: Sequence[Stage], epsilon: float) -> Iterator[Rule]:
    """Where each parameter of :class:`InvertedResiduals` lies in timm's weights."""
    yield from fold_conv(("stem",), "conv_stem", "bn1", epsilon)
    for i, stage in enumerate(stages):
        for j in range(stage.repeats):
            target: Path = ("stages", i, j)
            name = f"blocks.{i}.{j}"
            parts = [("depthwise", "conv_dw"), ("project", "conv_pwl")]
            if stage.expansion > 1:
                parts.insert(0, ("expand", "conv_pw"))
            else:
                parts[1] = ("project", "conv_pw")
            for n, (part, source) in enumerate(parts, start=1):
                fold = fold_depthwise if part == "depthwise" else fold_conv
                yield from fold((*target, part), f"{name}.{source}", f"{name}.bn{n}", epsilon)
    yield from fold_conv(("head",), "conv_head", "bn2", epsilon)
    yield from linear(("classify",), "classifier")


def v1_timm_rules() -> Iterator[Rule]:
    """Where each parameter of :class:`MobileNetV1` lies in timm's weights."""
    yield from fold_conv(("stem",), "conv_stem", "bn1")
    for i, (repeats, _, _) in enumerate(V1_STAGES):
        for j in range(repeats):
            target: Path = ("stages", i, j)
            name = f"blocks.{i}.{j}"
            yield from fold_depthwise((*target, "depthwise"), f"{name}.conv_dw", f"{name}.bn1")
            yield from fold_conv((*target, "pointwise"), f"{name}.conv_pw", f"{name}.bn2")
    yield from linear(("classify",), "classifier")


def numbered_rules(names: Iterable[str]) -> Iterator[Rule]:
    """Where each parameter of V2 lies in the arrays of a TensorFlow Lite file, by layer number.

    Args:
        names: ``{n}_w``, ``{n}_scale``, ``{n}_zp`` and ``{n}_b``: of layer n, in the order of the
            network, the quantised weights w, their scale and zero point, and the bias; the weights are
            (w − zp) · scale.
    """
    targets: list[Path] = [("stem",)]
    for i, stage in enumerate(STAGES):
        parts = ("expand", "depthwise", "project")[0 if stage.expansion > 1 else 1 :]
        targets += [("stages", i, j, part) for j in range(stage.repeats) for part in parts]
    yield from _numbered(names, [*targets, ("head",), ("classify",)])


def v1_numbered_rules(names: Iterable[str]) -> Iterator[Rule]:
    """The same of V1."""
    targets: list[Path] = [("stem",)]
    for i, (repeats, _, _) in enumerate(V1_STAGES):
        parts = ("depthwise", "pointwise")
        targets += [("stages", i, j, part) for j in range(repeats) for part in parts]
    yield from _numbered(names, [*targets, ("classify",)])


def _numbered(names: Iterable[str], targets: Sequence[Path]) -> Iterator[Rule]:
    numbers = sorted({int(match[1]) for match in map(NUMBERED.fullmatch, names) if match})
    # Where the file has fewer layers the names of what is missing have to be made up.
    numbers += range(max(numbers, default=-1) + 1, max(numbers, default=-1) + 1 + len(targets))
    for target, number in zip(targets, numbers, strict=False):
        layout = {"depthwise": _tflite_depthwise, "classify": _tflite_linear}
        kernel = layout.get(str(target[-1]), _tflite_conv)
        sources = (f"{number}_w", f"{number}_scale", f"{number}_zp")
        yield Rule((*target, "kernel"), sources, kernel)
        yield Rule((*target, "bias"), (f"{number}_b",), unchanged)


def _dequantised(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    if zero.shape != scale.shape or scale.shape not in ((1,), (weight.shape[axis],)):
        raise ValueError("shapes differ")
    shape = [1] * weight.ndim
    shape[axis] = -1
    # float64: the difference of two bytes would wrap
    return (weight.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)


def _tflite_conv(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return _dequantised(weight, scale, zero, axis=0).transpose(1, 2, 3, 0)


def _tflite_depthwise(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return _dequantised(weight, scale, zero, axis=3).squeeze(0)


def _tflite_linear(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return _dequantised(weight, scale, zero, axis=0).squeeze((1, 2)).T
