"""ConvNeXt in Flax NNX, and where its parameters lie in torchvision's and timm's files.

Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, DepthwiseConv, LayerNorm, Linear, gelu
from amx_jax.classifiers.weights import (
    Path,
    Rule,
    conv,
    depthwise_kernel,
    layer_norm,
    linear,
    unchanged,
)


class Variant(NamedTuple):
    """Blocks and features of each stage."""

    blocks: tuple[int, int, int, int]
    features: tuple[int, int, int, int]


VARIANTS = {
    "convnext_tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
}


class Block(nnx.Module):
    """A depthwise 7 × 7 convolution, layer norm, and two linear layers with GELU between; a skip."""

    def __init__(self, features: int):
        self.depthwise = DepthwiseConv(features, 7, padding=3, capped=False)
        self.norm = LayerNorm(features)
        self.widen = Linear(features, 4 * features)
        self.narrow = Linear(4 * features, features)

    def __call__(self, x: Array) -> Array:
        return x + self.narrow(gelu(self.widen(self.norm(self.depthwise(x)))))


class Downsample(nnx.Module):
    """Layer norm and a 2 × 2 convolution with stride 2."""

    def __init__(self, in_features: int, features: int):
        self.norm = LayerNorm(in_features)
        self.conv = Conv(in_features, features, 2, stride=2, padding=0)

    def __call__(self, x: Array) -> Array:
        return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """One image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``stage1`` … ``stage4`` (``(H', W', C)`` each) and ``pooled`` ``(C,)``.
    """

    def __init__(self, variant: Variant, classes: int):
        features = variant.features
        self.stem = Conv(3, features[0], 4, stride=4, padding=0)
        self.stem_norm = LayerNorm(features[0])
        self.downsamples = nnx.List([Downsample(*pair) for pair in pairwise(features)])
        self.stages = nnx.List(
            [
                nnx.List([Block(width) for _ in range(count)])
                for count, width in zip(variant.blocks, features, strict=True)
            ]
        )
        self.norm = LayerNorm(features[-1])
        self.classify = Linear(features[-1], classes)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        x = out["stem"] = self.stem_norm(self.stem(x))
        for index, blocks in enumerate(self.stages):
            if index:
                x = self.downsamples[index - 1](x)
            for block in blocks:
                x = checkpoint_name(block(x), BLOCK)
            out[f"stage{index + 1}"] = x
        x = out["pooled"] = self.norm(jnp.mean(x, axis=(0, 1)))
        return self.classify(x), out


class _Names(NamedTuple):
    """What a library calls the parts of a ConvNeXt."""

    stem: str
    stem_norm: str
    downsample: str  # of stage {i}
    block: str  # {j} of stage {i}
    depthwise: str
    norm: str
    widen: str
    narrow: str
    scale: str
    head_norm: str
    head: str


TORCHVISION = _Names(
    "features.0.0", "features.0.1", "features.{even}", "features.{odd}.{j}.", "block.0", "block.2",
    "block.3", "block.5", "layer_scale", "classifier.0", "classifier.2",
)  # fmt: skip
TIMM = _Names(
    "stem.0", "stem.1", "stages.{i}.downsample", "stages.{i}.blocks.{j}.", "conv_dw", "norm",
    "mlp.fc1", "mlp.fc2", "gamma", "head.norm", "head.fc",
)  # fmt: skip


def state_dict_rules(variant: Variant, names: _Names) -> Iterator[Rule]:
    """Where each parameter of :class:`ConvNeXt` lies in a library's weights."""
    yield from conv(("stem",), names.stem)
    yield from layer_norm(("stem_norm",), names.stem_norm)
    for i, count in enumerate(variant.blocks):
        place = {"i": i, "even": 2 * i, "odd": 2 * i + 1}
        if i:
            name = names.downsample.format(**place)
            yield from layer_norm(("downsamples", i - 1, "norm"), f"{name}.0")
            yield from conv(("downsamples", i - 1, "conv"), f"{name}.1")
        for j in range(count):
            target: Path = ("stages", i, j)
            name = names.block.format(j=j, **place)
            depthwise = name + names.depthwise
            yield Rule((*target, "depthwise", "kernel"), (f"{depthwise}.weight",), depthwise_kernel)
            yield Rule((*target, "depthwise", "bias"), (f"{depthwise}.bias",), unchanged)
            yield from layer_norm((*target, "norm"), name + names.norm)
            yield from linear((*target, "widen"), name + names.widen)
            scale, narrow = name + names.scale, name + names.narrow
            yield Rule((*target, "narrow", "kernel"), (f"{narrow}.weight", scale), _scaled_kernel)
            yield Rule((*target, "narrow", "bias"), (f"{narrow}.bias", scale), _scaled)
    yield from layer_norm(("norm",), names.head_norm)
    yield from linear(("classify",), names.head)


def _scaled(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The layer's scale of each feature, ``(C,)`` or ``(C, 1, 1)``, folded into its rows."""
    if scale.size != len(array):
        raise ValueError("shapes differ")
    return array * scale.astype(np.float64).reshape(-1, *[1] * (array.ndim - 1))


def _scaled_kernel(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return _scaled(weight, scale).T
