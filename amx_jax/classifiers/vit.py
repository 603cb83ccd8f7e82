"""Vision transformers in Flax NNX, and where their parameters lie in timm's files.

Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929); Touvron et al., DeiT
(arXiv 2012.12877), whose undistilled models differ from it in weights alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from amx_jax.classifiers.classifier import BLOCK
from amx_jax.classifiers.layers import LayerNorm, Linear, gelu
from amx_jax.classifiers.weights import Path, Rule, layer_norm, linear, unchanged


class Variant(NamedTuple):
    """Features of a token, and heads of the attention."""

    features: int
    heads: int


SIZES = {"tiny": Variant(192, 3), "small": Variant(384, 6), "base": Variant(768, 12)}
VARIANTS = {
    f"{family}_{size}_patch16_224": variant
    for family in ("vit", "deit")
    for size, variant in SIZES.items()
}
PATCH, DEPTH = 16, 12


class Attention(nnx.Module):
    """Multi-head self-attention over tokens ``(n, features)``."""

    def __init__(self, features: int, heads: int):
        self.heads = heads
        self.qkv = Linear(features, 3 * features)
        self.project = Linear(features, features)

    def __call__(self, x: Array) -> Array:
        count, features = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(count, 3, self.heads, -1), 0, 2)
        scores = jax.nn.softmax(q @ k.swapaxes(1, 2) * (features / self.heads) ** -0.5)
        return self.project((scores @ v).swapaxes(0, 1).reshape(count, features))


class Block(nnx.Module):
    """Attention and two linear layers with GELU between, each behind a layer norm, with skips."""

    def __init__(self, features: int, heads: int):
        self.norm1, self.norm2 = LayerNorm(features), LayerNorm(features)
        self.attention = Attention(features, heads)
        self.widen = Linear(features, 4 * features)
        self.narrow = Linear(4 * features, features)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(gelu(self.widen(self.norm2(x))))


class VisionTransformer(nnx.Module):
    """One image ``(side, side, 3)`` to ``(logits, {stage: activation})``.

    Stages: ``block1`` … ``block12``, tokens ``(1 + (side / 16)², features)``, the class token first,
    and ``class`` ``(features,)``.
    """

    def __init__(self, variant: Variant, side: int, classes: int):
        features = variant.features
        self.embed = Linear(PATCH**2 * 3, features)
        self.class_token = nnx.Param(jnp.zeros((features,)))
        self.positions = nnx.Param(jnp.zeros((1 + (side // PATCH) ** 2, features)))
        self.blocks = nnx.List([Block(features, variant.heads) for _ in range(DEPTH)])
        self.norm = LayerNorm(features)
        self.classify = Linear(features, classes)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        out = {}
        rows, columns, _ = (size // PATCH for size in x.shape)
        patches = x.reshape(rows, PATCH, columns, PATCH, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        x = jnp.concatenate([self.class_token[...][None], self.embed(patches)])
        x = x + self.positions[...]
        for index, block in enumerate(self.blocks, start=1):
            x = out[f"block{index}"] = checkpoint_name(block(x), BLOCK)
        x = out["class"] = self.norm(x[0])
        return self.classify(x), out


def _embed_kernel(weight: np.ndarray) -> np.ndarray:
    """``(features, 3, 16, 16)`` to ``(16 · 16 · 3, features)``."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _one(array: np.ndarray) -> np.ndarray:
    return array.squeeze(0)


def state_dict_rules() -> Iterator[Rule]:
    """Where each parameter of :class:`VisionTransformer` lies in timm's weights."""
    yield Rule(("embed", "kernel"), ("patch_embed.proj.weight",), _embed_kernel)
    yield Rule(("embed", "bias"), ("patch_embed.proj.bias",), unchanged)
    yield Rule(("class_token",), ("cls_token",), lambda array: array.squeeze((0, 1)))
    yield Rule(("positions",), ("pos_embed",), _one)
    for i in range(DEPTH):
        target: Path = ("blocks", i)
        name = f"blocks.{i}"
        for part, source in (
            (("attention", "qkv"), "attn.qkv"),
            (("attention", "project"), "attn.proj"),
            (("widen",), "mlp.fc1"),
            (("narrow",), "mlp.fc2"),
        ):
            yield from linear((*target, *part), f"{name}.{source}")
        for norm in ("norm1", "norm2"):
            yield from layer_norm((*target, norm), f"{name}.{norm}")
    yield from layer_norm(("norm",), "norm")
    yield from linear(("classify",), "head")
