"""Residual networks in Flax NNX, and where their parameters lie in PyTorch state dicts.

He et al., "Deep residual learning for image recognition" (arXiv 1512.03385): for ImageNet as
torchvision and timm lay them out (the stride of a bottleneck in its 3 × 3 convolution), and for CIFAR
as section 4.2 says, with shortcuts that have no parameters.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, Linear, max_pool, relu
from amx_jax.classifiers.weights import Path, Rule, fold_conv, linear


class Variant(NamedTuple):
    """Blocks of each stage, and whether they are bottlenecks."""

    blocks: tuple[int, ...]
    bottleneck: bool = False


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2)),
    "resnet34": Variant((3, 4, 6, 3)),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
}
CIFAR_VARIANTS = {f"cifar_resnet{6 * n + 2}": Variant((n, n, n)) for n in (3, 5, 7, 9)}
WIDTH, CIFAR_WIDTH = 64, 16
EXPANSION = 4  # of a bottleneck


class BasicBlock(nnx.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, in_features: int, width: int, stride: int, projected: bool):
        self.conv1 = Conv(in_features, width, 3, stride, padding=1)
        self.conv2 = Conv(width, width, 3, padding=1)
        self.shortcut = Conv(in_features, width, 1, stride, padding=0) if projected else None
        self.stride, self.grown = stride, width - in_features

    def __call__(self, x: Array) -> Array:
        y = self.conv2(relu(self.conv1(x)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.grown:  # every other pixel, and channels of zeros on either side
            x = jnp.pad(
                x[:: self.stride, :: self.stride],
                ((0, 0), (0, 0), (self.grown // 2, self.grown - self.grown // 2)),
            )
        return relu(x + y)


class Bottleneck(nnx.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions and a shortcut."""

    def __init__(self, in_features: int, width: int, stride: int, projected: bool):
        features = EXPANSION * width
        self.conv1 = Conv(in_features, width, 1)
        self.conv2 = Conv(width, width, 3, stride, padding=1)
        self.conv3 = Conv(width, features, 1)
        self.shortcut = Conv(in_features, features, 1, stride, padding=0) if projected else None

    def __call__(self, x: Array) -> Array:
        y = self.conv3(relu(self.conv2(relu(self.conv1(x)))))
        return relu((x if self.shortcut is None else self.shortcut(x)) + y)


def _stages(
    variant: Variant, width: int, projecting: bool
) -> Iterator[list[tuple[int, int, int, bool]]]:
    """For each block of each stage: features in, width, stride, and whether the shortcut projects."""
    expansion = EXPANSION if variant.bottleneck else 1
    in_features = width
    for index, count in enumerate(variant.blocks):
        blocks = []
        for number in range(count):
            stride = 2 if index and number == 0 else 1
            changes = stride > 1 or in_features != expansion * width
            blocks.append((in_features, width, stride, projecting and changes))
            in_features = expansion * width
        yield blocks
        width *= 2


class ResNet(nnx.Module):
    """One image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``layer1`` … (``(H', W', C)`` each) and ``pooled`` ``(C,)``.
    """

    def __init__(self, variant: Variant, classes: int, cifar: bool = False):
        block: Callable[..., nnx.Module] = Bottleneck if variant.bottleneck else BasicBlock
        self.cifar = cifar
        width = CIFAR_WIDTH if cifar else WIDTH
        self.stem = Conv(3, width, 3, padding=1) if cifar else Conv(3, width, 7, 2, padding=3)
        stages = list(_stages(variant, width, projecting=not cifar))
        self.layers = nnx.List([nnx.List([block(*b) for b in blocks]) for blocks in stages])
        features = width * 2 ** (len(stages) - 1) * (EXPANSION if variant.bottleneck else 1)
        self.classify = Linear(features, classes)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        x = out["stem"] = relu(self.stem(x))
        if not self.cifar:
            x = max_pool(x, 3, 2, padding=1)
        for index, blocks in enumerate(self.layers, start=1):
            for block in blocks:
                x = checkpoint_name(block(x), BLOCK)
            out[f"layer{index}"] = x
        x = out["pooled"] = jnp.mean(x, axis=(0, 1))
        return self.classify(x), out


def state_dict_rules(variant: Variant, cifar: bool = False) -> Iterator[Rule]:
    """Where each parameter of :class:`ResNet` lies in the published PyTorch weights."""
    yield from fold_conv(("stem",), "conv1", "bn1")
    stages = _stages(variant, CIFAR_WIDTH if cifar else WIDTH, projecting=not cifar)
    for i, blocks in enumerate(stages):
        for j, (_, _, _, projected) in enumerate(blocks):
            target: Path = ("layers", i, j)
            source = f"layer{i + 1}.{j}."
            for n in range(1, 4 if variant.bottleneck else 3):
                yield from fold_conv((*target, f"conv{n}"), f"{source}conv{n}", f"{source}bn{n}")
            if projected:
                names = (f"{source}downsample.0", f"{source}downsample.1")
                yield from fold_conv((*target, "shortcut"), *names)
    yield from linear(("classify",), "linear" if cifar else "fc")
