"""The autoencoder of ``amx_jax.masks.generators``, for several images with parameters of their own."""

from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 4  # pixels of the autoencoder's input to one cell of the grid, along each axis
STRIDES = (1, 2, 2)  # of the encoder

Params = dict[str, Tensor]


def from_jax(params: Any) -> Params:
    """Parameters of our autoencoder (or their gradient) in PyTorch's layout.

    Args:
        params: of ``amx_jax.masks.generators.autoencoder``; each leaf's first axis is the image.

    Returns:
        ``{path: tensor}``: kernels ``(n, out, in, 3, 3)``, all else as it was.
    """
    converted = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
        array = np.asarray(leaf)
        if name.endswith("kernel"):
            array = array.transpose(0, 4, 3, 1, 2)
        converted[name] = torch.tensor(array)  # a copy: ours steps in place
    return converted


def to_patches(images: Tensor, grid: int) -> Tensor:
    """Images ``(n, C, H, W)`` as the autoencoder's input, ``(n, 16 C, grid, grid)``."""
    side = PATCH * grid
    small = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
    patches = small.unflatten(3, (grid, PATCH)).unflatten(2, (grid, PATCH))
    return patches.permute(0, 3, 5, 1, 2, 4).flatten(1, 3).contiguous()


def convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """SAME convolution of each image with a kernel of its own.

    As one grouped convolution. Measured for the whole autoencoder, forward and back, batch 8, two
    threads: 1.1 ms an image; ``torch.func.vmap`` of the convolution 1.3; slices, concatenation and
    ``bmm`` 2.0; ``F.unfold`` and ``bmm`` 3.1; a loop over the images 3.0.

    Args:
        x: ``(n, C, H, W)``.
        kernel: ``(n, D, C, 3, 3)``.
        stride: step between outputs.

    Returns:
        ``(n, D, ceil(H / stride), ceil(W / stride))``.
    """
    n, _, height, width = x.shape
    x, kernel = x.flatten(0, 1)[None], kernel.flatten(0, 1)
    rows, columns = (max((-(-size // stride) - 1) * stride + 3 - size, 0) for size in (height, width))
    if rows == columns == 2:
        y = F.conv2d(x, kernel, stride=stride, padding=1, groups=n)
    else:
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        y = F.conv2d(x, kernel, stride=stride, groups=n)
    return y.unflatten(1, (n, -1))[0]


def double(x: Tensor) -> Tensor:
    """Each pixel as 2 × 2, ``(n, C, H, W)`` to ``(n, C, 2 H, 2 W)``.

    Not ``F.interpolate(mode="nearest")``, which is as fast: with it, ``torch.compile`` (2.13 on a CPU)
    makes the gradients of all that comes before wrong by a factor of a hundred.
    """
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)


def block(params: Params, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """SAME convolution, instance norm, ReLU."""
    x = F.instance_norm(convolve(x, params[f"{name}.kernel"], stride))
    return F.relu(x + params[f"{name}.bias"][:, :, None, None])


def autoencoder(params: Params, patches: Tensor, free_gain: float) -> Tensor:
    """Logits ``(n, grid, grid)`` of the patches ``(n, 16 C, grid, grid)``."""
    skips, x = [], patches
    for index, stride in enumerate(STRIDES):
        x = block(params, f"encode.{index}", x, stride)
        skips.append(x)
    skips.pop()
    for index in range(len(STRIDES) - 1):
        skip = skips.pop()
        wider = double(x)[..., : skip.shape[2], : skip.shape[3]]
        x = block(params, f"decode.{index}", torch.cat([wider, skip], dim=1))
    head = params["head"].mT  # (n, 1, features)
    return (head @ x.flatten(2)).view_as(params["free"]) + free_gain * params["free"]
