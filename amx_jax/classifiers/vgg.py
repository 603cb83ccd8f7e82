"""VGG in Flax NNX, with and without batch norm, and where its parameters lie in torchvision's files.

Simonyan and Zisserman, "Very deep convolutional networks" (arXiv 1409.1556), configurations A, B and D.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, Linear, adaptive_mean, max_pool, relu
from amx_jax.classifiers.weights import Rule, conv, fold_conv, linear, unchanged


class Variant(NamedTuple):
    """Convolutions of each block, and whether a batch norm follows each."""

    convolutions: tuple[int, ...]
    norm: bool


DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
VARIANTS = {
    name + suffix: Variant(depths, norm)
    for name, depths in DEPTHS.items()
    for suffix, norm in (("", False), ("_bn", True))
}
FEATURES = (64, 128, 256, 512, 512)
HIDDEN, POOLED = 4096, 7


class VGG(nnx.Module):
    """One image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``block1`` … ``block5``, before each block's pooling, ``(H', W', C)``; ``fc1`` and ``fc2``
    ``(4096,)``.
    """

    def __init__(self, variant: Variant, classes: int):
        blocks, in_features = [], 3
        for count, features in zip(variant.convolutions, FEATURES, strict=True):
            block = []
            for _ in range(count):
                block.append(Conv(in_features, features, 3, padding=1))
                in_features = features
            blocks.append(nnx.List(block))
        self.blocks = nnx.List(blocks)
        self.fc1 = Linear(POOLED**2 * in_features, HIDDEN)
        self.fc2 = Linear(HIDDEN, HIDDEN)
        self.classify = Linear(HIDDEN, classes)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        for index, block in enumerate(self.blocks, start=1):
            for convolution in block:
                x = checkpoint_name(relu(convolution(x)), BLOCK)
            out[f"block{index}"] = x
            x = max_pool(x, 2, 2)
        x = out["fc1"] = relu(self.fc1(adaptive_mean(x, POOLED).ravel()))
        x = out["fc2"] = relu(self.fc2(x))
        return self.classify(x), out


def _first_linear(weight: np.ndarray) -> np.ndarray:
    """``(4096, C · 7 · 7)`` to ``(7 · 7 · C, 4096)``: PyTorch flattens channels first."""
    side = POOLED
    return weight.reshape(len(weight), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(weight))


def state_dict_rules(variant: Variant) -> Iterator[Rule]:
    """Where each parameter of :class:`VGG` lies in torchvision's weights."""
    number = 0  # of torchvision's modules: convolutions, norms, rectifiers and poolings
    for i, count in enumerate(variant.convolutions):
        for j in range(count):
            target, name = ("blocks", i, j), f"features.{number}"
            if variant.norm:
                yield from fold_conv(target, name, f"features.{number + 1}", biased=True)
            else:
                yield from conv(target, name)
            number += 3 if variant.norm else 2
        number += 1
    yield Rule(("fc1", "kernel"), ("classifier.0.weight",), _first_linear)
    yield Rule(("fc1", "bias"), ("classifier.0.bias",), unchanged)
    yield from linear(("fc2",), "classifier.3")
    yield from linear(("classify",), "classifier.6")
