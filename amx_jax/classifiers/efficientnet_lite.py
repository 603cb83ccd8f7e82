"""EfficientNet-Lite in Flax NNX, and where its parameters lie in a PyTorch state dict.

Architecture: Tan and Le, "EfficientNet" (arXiv 1905.11946), Lite variant of the TensorFlow TPU
repository: ReLU6 instead of Swish, no squeeze-and-excitation, stem and head not scaled.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, DepthwiseConv, Linear, relu6
from amx_jax.classifiers.weights import Rule, fold_conv, fold_depthwise, linear_bias, linear_kernel


class Variant(NamedTuple):
    """Compound scaling of one member of the family and its input size in pixels."""

    width: float
    depth: float
    size: int


class Stage(NamedTuple):
    """Blocks of one resolution before scaling."""

    repeats: int
    side: int
    stride: int
    expansion: int
    features: int


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
}
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_FEATURES = 32
HEAD_FEATURES = 1280
BATCH_NORM_EPSILON = 1e-3


def scaled_stages(variant: Variant) -> list[Stage]:
    """The stages of one variant: widths rounded to multiples of 8, depths rounded up."""
    stages = []
    for index, stage in enumerate(STAGES):
        width = stage.features * variant.width
        features = max(8, int(width + 4) // 8 * 8)
        if features < 0.9 * width:  # rounding down must not lose more than 10 %
            features += 8
        fixed = index in (0, len(STAGES) - 1)  # Lite keeps the depth of the outer stages
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * variant.depth)
        stages.append(stage._replace(features=features, repeats=repeats))
    return stages


class InvertedResidual(nnx.Module):
    """Expand, depthwise, project; with a skip where input and output agree in shape."""

    def __init__(self, in_features: int, features: int, side: int, stride: int, expansion: int):
        hidden = in_features * expansion
        self.expand = Conv(in_features, hidden, 1) if expansion > 1 else None
        self.depthwise = DepthwiseConv(hidden, side, stride)
        self.project = Conv(hidden, features, 1)
        self.residual = stride == 1 and in_features == features

    def __call__(self, x: Array) -> Array:
        y = relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite(nnx.Module):
    """One image ``(size, size, 3)`` in (x − 127) / 128 to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``stage1`` … ``stage7`` (``(H, W, C)`` each), ``head`` ``(H, W, 1280)`` and
    ``pooled`` ``(1280,)``.
    """

    def __init__(self, variant: Variant, classes: int = 1000):
        self.stem = Conv(3, STEM_FEATURES, 3, stride=2)
        features = STEM_FEATURES
        stages = []
        for stage in scaled_stages(variant):
            blocks = []
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(features, stage.features, stage.side, stride, stage.expansion)
                )
                features = stage.features
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = Conv(features, HEAD_FEATURES, 1)
        self.classify = Linear(HEAD_FEATURES, classes)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        x = out["stem"] = relu6(self.stem(x))
        for index, blocks in enumerate(self.stages, start=1):
            for block in blocks:
                x = checkpoint_name(block(x), BLOCK)
            out[f"stage{index}"] = x
        x = out["head"] = relu6(self.head(x))
        x = out["pooled"] = jnp.mean(x, axis=(0, 1))
        return self.classify(x), out


def state_dict_rules(variant: Variant) -> Iterator[Rule]:
    """Where each parameter of :class:`EfficientNetLite` lies in the published PyTorch weights."""
    yield from fold_conv(("stem",), "_conv_stem", "_bn0", BATCH_NORM_EPSILON)
    number = 0
    for i, stage in enumerate(scaled_stages(variant)):
        for j in range(stage.repeats):
            target, source = ("stages", i, j), f"_blocks.{number}."
            norms = iter(("_bn0", "_bn1", "_bn2") if stage.expansion > 1 else ("_bn1", "_bn2"))
            if stage.expansion > 1:
                yield from fold_conv(
                    (*target, "expand"),
                    source + "_expand_conv",
                    source + next(norms),
                    BATCH_NORM_EPSILON,
                )
            yield from fold_depthwise(
                (*target, "depthwise"),
                source + "_depthwise_conv",
                source + next(norms),
                BATCH_NORM_EPSILON,
            )
            yield from fold_conv(
                (*target, "project"),
                source + "_project_conv",
                source + next(norms),
                BATCH_NORM_EPSILON,
            )
            number += 1
    yield from fold_conv(("head",), "_conv_head", "_bn1", BATCH_NORM_EPSILON)
    yield Rule(("classify", "kernel"), ("_fc.weight",), linear_kernel)
    yield Rule(("classify", "bias"), ("_fc.bias",), linear_bias)
