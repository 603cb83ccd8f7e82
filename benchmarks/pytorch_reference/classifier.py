"""EfficientNet-Lite for gradients in its input: frozen, batch norms folded, named stages."""

import itertools

import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.model import MBConvBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _ReLU6(torch.autograd.Function):
    """ReLU6 whose gradient is taken from its result, so that nothing else need be kept.

    For ``F.relu6`` Inductor writes a mask of bools, one at a time. Measured for the step at batch 8:
    20 against 42 ms an image compiled, 20 against 23 as it is.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = x.clamp(0, 6)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0.0, 6.0)


relu6 = _ReLU6.apply


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A SAME convolution of the package and its batch norm, as one stock convolution."""
    fused = fuse_conv_bn_eval(conv, norm)
    padding = getattr(conv.static_padding, "padding", (0, 0, 0, 0))  # left, right, top, bottom
    before, after = padding[:2]
    weight = fused.weight
    if after > before:
        # A zero row and column in front make the padding even, and no padded copy of the input is
        # written. Measured for the step at batch 8: 18 against 27 ms an image compiled, 23 against 25
        # as it is.
        weight = F.pad(weight, (after - before, 0, after - before, 0))
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        weight.shape[-1],
        conv.stride,  # type: ignore[arg-type]
        padding=after,
        groups=conv.groups,
    )
    folded.weight, folded.bias = nn.Parameter(weight.detach()), fused.bias
    return folded


class Block(nn.Module):
    """Expand, depthwise, project; with a skip where input and output agree in shape."""

    def __init__(self, block: MBConvBlock):
        super().__init__()
        options = block._block_args
        self.expand = fold(block._expand_conv, block._bn0) if options.expand_ratio > 1 else None
        self.depthwise = fold(block._depthwise_conv, block._bn1)
        self.project = fold(block._project_conv, block._bn2)
        self.features = options.output_filters
        self.skip = self.depthwise.stride[0] == 1 and options.input_filters == options.output_filters

    def forward(self, x: Tensor) -> Tensor:
        """``(n, C, H, W)`` to ``(n, C', H', W')``."""
        y = relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(relu6(self.depthwise(y)))
        return x + y if self.skip else y


class Classifier(nn.Module):
    """Images ``(n, 3, H, W)`` to logits ``(n, classes)`` and ``{stage: activation}``.

    Args:
        model: as ``benchmarks.recheck.load_model`` loads it.
    """

    def __init__(self, model: EfficientNet):
        super().__init__()
        self.stem = fold(model._conv_stem, model._bn0)
        blocks = [Block(block) for block in model._blocks]
        stages = itertools.groupby(blocks, lambda block: block.features)  # seven stages, seven widths
        self.stages = nn.ModuleList(nn.Sequential(*stage) for _, stage in stages)
        self.head = fold(model._conv_head, model._bn1)
        self.classify = nn.Linear(model._fc.in_features, model._fc.out_features)
        self.classify.load_state_dict(model._fc.state_dict())
        self.requires_grad_(False)
        # Measured at batch 8: 26 against 34 ms an image, forward and back; no slower at batch 1.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Our stages: ``stem``, ``stage1`` … ``stage7``, ``head``."""
        out = {}
        x = out["stem"] = relu6(self.stem(x))
        for number, stage in enumerate(self.stages, start=1):
            x = out[f"stage{number}"] = stage(x)
        x = out["head"] = relu6(self.head(x))
        return self.classify(x.mean((2, 3))), out
