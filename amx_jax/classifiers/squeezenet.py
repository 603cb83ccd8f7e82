"""SqueezeNet 1.1 in Flax NNX, and where its parameters lie in torchvision's and Caffe's files.

Iandola et al., "SqueezeNet" (arXiv 1602.07360); 1.1 is its authors' cheaper revision.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import Conv, max_pool, relu
from amx_jax.classifiers.weights import Path, Rule, conv, conv_kernel, unchanged

STEM_FEATURES = 64
# Features that each fire module squeezes to, and half of what it expands to; fire2 … fire9.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
POOLED_BEFORE = (0, 2, 4)  # the places of the fires that follow a pooling
TORCHVISION = (3, 4, 6, 7, 9, 10, 11, 12)  # the fires' places in its list of features


class Fire(nnx.Module):
    """Squeeze with 1 × 1, expand with 1 × 1 and 3 × 3 side by side."""

    def __init__(self, in_features: int, squeezed: int, expanded: int):
        self.squeeze = Conv(in_features, squeezed, 1)
        self.expand1x1 = Conv(squeezed, expanded, 1)
        self.expand3x3 = Conv(squeezed, expanded, 3, padding=1)

    def __call__(self, x: Array) -> Array:
        x = relu(self.squeeze(x))
        return jnp.concatenate([relu(self.expand1x1(x)), relu(self.expand3x3(x))], axis=-1)


class SqueezeNet(nnx.Module):
    """One image ``(H, W, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``stem``, ``fire2`` … ``fire9`` and ``conv10``, ``(H', W', C)`` each. Caffe's version pads
    the last convolution by a pixel, torchvision's does not.
    """

    def __init__(self, classes: int, head_padding: int = 0):
        self.stem = Conv(3, STEM_FEATURES, 3, stride=2, padding=0)
        fires, in_features = [], STEM_FEATURES
        for squeezed, expanded in FIRES:
            fires.append(Fire(in_features, squeezed, expanded))
            in_features = 2 * expanded
        self.fires = nnx.List(fires)
        self.classify = Conv(in_features, classes, 1, padding=head_padding)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        x = out["stem"] = relu(self.stem(x))
        for index, fire in enumerate(self.fires):
            if index in POOLED_BEFORE:
                x = max_pool(x, 3, 2, ceil=True)
            x = out[f"fire{index + 2}"] = checkpoint_name(fire(x), BLOCK)
        x = out["conv10"] = relu(self.classify(x))
        return jnp.mean(x, axis=(0, 1)), out


def state_dict_rules() -> Iterator[Rule]:
    """Where each parameter of :class:`SqueezeNet` lies in torchvision's weights."""
    yield from conv(("stem",), "features.0")
    for index, place in enumerate(TORCHVISION):
        for part in ("squeeze", "expand1x1", "expand3x3"):
            yield from conv(("fires", index, part), f"features.{place}.{part}")
    yield from conv(("classify",), "classifier.1")


def _from_bgr(weight: np.ndarray) -> np.ndarray:
    return conv_kernel(weight[:, ::-1])


def caffe_rules() -> Iterator[Rule]:
    """Where they lie in the authors' own Caffe weights, as ``name/w`` and ``name/b``."""
    names: dict[Path, str] = {("classify",): "conv10"}
    for index in range(len(FIRES)):
        for part in ("squeeze", "expand1x1", "expand3x3"):
            name = "squeeze1x1" if part == "squeeze" else part
            names["fires", index, part] = f"fire{index + 2}/{name}"
    yield Rule(("stem", "kernel"), ("conv1/w",), _from_bgr)
    yield Rule(("stem", "bias"), ("conv1/b",), unchanged)
    for target, name in names.items():
        yield Rule((*target, "kernel"), (f"{name}/w",), conv_kernel)
        yield Rule((*target, "bias"), (f"{name}/b",), unchanged)
