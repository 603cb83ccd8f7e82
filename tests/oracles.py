"""Plain PyTorch classifiers, the oracles of ours: modules with the very names of published weights.

Written from the papers and from the names in the files. Each takes a batch, channels first, and returns
``(logits, {stage: activation})`` with our names of the stages; in the form of evaluation only.
"""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

Out = tuple[Tensor, dict[str, Tensor]]


def pad_same(x: Tensor, side: int, stride: int) -> Tensor:
    """The zeros of TensorFlow's SAME rule around a batch."""
    widths = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        widths += [total // 2, total - total // 2]
    return functional.pad(x, widths)


class Conv(nn.Conv2d):
    """Without bias; padded by half the kernel, or by TensorFlow's SAME rule."""

    def __init__(self, in_features, features, side, stride=1, same=False, groups=1):
        padding = 0 if same else side // 2
        super().__init__(in_features, features, side, stride, padding, groups=groups, bias=False)
        self.same = same

    def forward(self, x):
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]) if self.same else x)


# --- residual networks: torchvision, and for CIFAR akamaster/pytorch_resnet_cifar10 ---------------


class ResidualBlock(nn.Module):
    def __init__(self, in_features, width, stride, bottleneck, cifar):
        super().__init__()
        features = 4 * width if bottleneck else width
        if bottleneck:
            shapes = [(in_features, width, 1, 1), (width, width, 3, stride), (width, features, 1, 1)]
        else:
            shapes = [(in_features, width, 3, stride), (width, width, 3, 1)]
        self.steps = range(1, len(shapes) + 1)
        for n, shape in zip(self.steps, shapes, strict=True):
            self.add_module(f"conv{n}", Conv(*shape))
            self.add_module(f"bn{n}", nn.BatchNorm2d(shape[1]))
        self.downsample = None
        if (stride > 1 or in_features != features) and not cifar:
            self.downsample = nn.Sequential(
                Conv(in_features, features, 1, stride), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        y = x
        for n in self.steps:
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y if n == 1 else y.relu()))
        if self.downsample is not None:
            x = self.downsample(x)
        elif x.shape != y.shape:  # the paper's option A
            zeros = (y.shape[1] - x.shape[1]) // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros, zeros))
        return (x + y).relu()


class ResNet(nn.Module):
    def __init__(self, blocks, classes, bottleneck=False, cifar=False):
        super().__init__()
        self.cifar, self.stages = cifar, range(1, len(blocks) + 1)
        width = features = 16 if cifar else 64
        self.conv1 = Conv(3, width, 3) if cifar else Conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, count in zip(self.stages, blocks, strict=True):
            built = []
            for n in range(count):
                stride = 2 if stage > 1 and n == 0 else 1
                built.append(ResidualBlock(features, width, stride, bottleneck, cifar))
                features = 4 * width if bottleneck else width
            self.add_module(f"layer{stage}", nn.Sequential(*built))
            width *= 2
        self.add_module("linear" if cifar else "fc", nn.Linear(features, classes))

    def forward(self, x) -> Out:
        out = {}
        x = out["stem"] = self.bn1(self.conv1(x)).relu()
        if not self.cifar:
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = out[f"layer{stage}"] = getattr(self, f"layer{stage}")(x)
        x = out["pooled"] = x.mean((2, 3))
        return (self.linear if self.cifar else self.fc)(x), out


RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
CIFAR_RESNETS = {
    "cifar_resnet20": (3, 3, 3),
    "cifar_resnet32": (5, 5, 5),
    "cifar_resnet44": (7, 7, 7),
    "cifar_resnet56": (9, 9, 9),
}


# --- mobile networks in timm's layout -------------------------------------------------------------


class TimmBlock(nn.Module):
    """Expand (unless by 1), depthwise, project; V1's has a ReLU6 at its end and no skip."""

    def __init__(self, in_features, features, side, stride, expansion, same, epsilon, v1):
        super().__init__()
        hidden = in_features * expansion
        depthwise = Conv(hidden, hidden, side, stride, same, groups=hidden)
        steps = [("conv_dw", depthwise), ("conv_pw", Conv(hidden, features, 1))]
        if expansion > 1:
            steps = [
                ("conv_pw", Conv(in_features, hidden, 1)),
                ("conv_dw", depthwise),
                ("conv_pwl", Conv(hidden, features, 1)),
            ]
        for n, (name, conv) in enumerate(steps, start=1):
            self.add_module(name, conv)
            self.add_module(f"bn{n}", nn.BatchNorm2d(conv.out_channels, eps=epsilon))
        self.names = [name for name, _ in steps]
        self.v1, self.skip = v1, stride == 1 and in_features == features and not v1

    def layers(self):
        """Each convolution and its norm, in order."""
        for n, name in enumerate(self.names, start=1):
            yield getattr(self, name), getattr(self, f"bn{n}")

    def forward(self, x):
        y = x
        for n, (conv, norm) in enumerate(self.layers(), start=1):
            y = norm(conv(y))
            if n < len(self.names) or self.v1:
                y = functional.relu6(y)
        return x + y if self.skip else y


class TimmMobileNet(nn.Module):
    """MobileNet V1 and V2 and EfficientNet-Lite.

    ``stages``: for each, the expansion, features, repeats, stride and kernel side.
    """

    def __init__(self, stages, classes, stem=32, head=1280, same=False, epsilon=1e-5, v1=False):
        super().__init__()
        self.conv_stem = Conv(3, stem, 3, 2, same)
        self.bn1 = nn.BatchNorm2d(stem, eps=epsilon)
        built, before = [], stem
        for expansion, features, repeats, stride, side in stages:
            blocks = []
            for n in range(repeats):
                step = stride if n == 0 else 1
                blocks.append(TimmBlock(before, features, side, step, expansion, same, epsilon, v1))
                before = features
            built.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*built)
        if head:
            self.conv_head = Conv(before, head, 1)
            self.bn2 = nn.BatchNorm2d(head, eps=epsilon)
        self.classifier = nn.Linear(head or before, classes)

    def forward(self, x) -> Out:
        out = {}
        x = out["stem"] = functional.relu6(self.bn1(self.conv_stem(x)))
        for n, blocks in enumerate(self.blocks, start=1):
            x = out[f"stage{n}"] = blocks(x)
        if hasattr(self, "conv_head"):
            x = out["head"] = functional.relu6(self.bn2(self.conv_head(x)))
        x = out["pooled"] = x.mean((2, 3))
        return self.classifier(x), out


# Table 1 of arXiv 1704.04861: features, repeats, stride.
V1_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
# Table 2 of arXiv 1801.04381: expansion, features, repeats, stride; all kernels are 3 × 3.
V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The published EfficientNet-Lites: features and repeats of their seven stages.
LITES = {
    "efficientnet_lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "efficientnet_lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
    "efficientnet_lite3": ((24, 32, 48, 96, 136, 232, 384), (1, 3, 3, 5, 5, 6, 1)),
    "efficientnet_lite4": ((24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1)),
}


def mobilenet_v1(width, classes, same=False) -> TimmMobileNet:
    stages = [(1, int(features * width), n, stride, 3) for features, n, stride in V1_STAGES]
    return TimmMobileNet(stages, classes, stem=int(32 * width), head=0, same=same, v1=True)


def mobilenet_v2(classes, same=False) -> TimmMobileNet:
    return TimmMobileNet([(*stage, 3) for stage in V2_STAGES], classes, same=same)


def timm_lite(name, classes) -> TimmMobileNet:
    expansions, strides, sides = (1, *[6] * 6), (1, 2, 2, 2, 1, 2, 1), (3, 3, 5, 3, 5, 5, 3)
    stages = zip(expansions, *LITES[name], strides, sides, strict=True)
    return TimmMobileNet(stages, classes, same=True, epsilon=1e-3)


class PackagedLite(EfficientNet):
    """The implementation of the package ``efficientnet_lite_pytorch``, stage by stage."""

    def forward(self, x) -> Out:
        out = {}
        x = out["stem"] = self._swish(self._bn0(self._conv_stem(x)))
        widths: list[int] = []  # the seven stages have seven widths
        for block in self._blocks:
            x = block(x)
            if x.shape[1] not in widths:
                widths.append(x.shape[1])
            out[f"stage{len(widths)}"] = x
        x = out["head"] = self._swish(self._bn1(self._conv_head(x)))
        x = out["pooled"] = x.mean((2, 3))
        return self._fc(x), out


# --- MobileNetV2 in torchvision's layout ----------------------------------------------------------


def conv_norm_relu6(in_features, features, side, stride=1, groups=1) -> nn.Sequential:
    conv = Conv(in_features, features, side, stride, groups=groups)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


class TorchvisionInvertedResidual(nn.Module):
    def __init__(self, in_features, features, stride, expansion):
        super().__init__()
        hidden = in_features * expansion
        steps = [conv_norm_relu6(in_features, hidden, 1)] if expansion > 1 else []
        steps += [conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden)]
        self.conv = nn.Sequential(*steps, Conv(hidden, features, 1), nn.BatchNorm2d(features))
        self.skip = stride == 1 and in_features == features

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class TorchvisionMobileNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        features, before, self.ends = [conv_norm_relu6(3, 32, 3, 2)], 32, [0]
        for expansion, width, repeats, stride in V2_STAGES:
            for n in range(repeats):
                step = stride if n == 0 else 1
                features.append(TorchvisionInvertedResidual(before, width, step, expansion))
                before = width
            self.ends.append(len(features) - 1)
        self.ends.append(len(features))
        self.features = nn.Sequential(*features, conv_norm_relu6(before, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, classes))

    def forward(self, x) -> Out:
        out = {}
        names = dict(zip(self.ends, ["stem", *(f"stage{n}" for n in range(1, 8)), "head"], strict=True))
        for n, layer in enumerate(self.features):
            x = layer(x)
            if n in names:
                out[names[n]] = x
        x = out["pooled"] = x.mean((2, 3))
        return self.classifier(x), out


# --- SqueezeNet 1.1 -------------------------------------------------------------------------------


class Fire(nn.Module):
    def __init__(self, in_features, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(in_features, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


class SqueezeNet(nn.Module):
    """In torchvision's layout."""

    def __init__(self, classes):
        super().__init__()

        def pool():
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(),
            pool(), Fire(64, 16, 64), Fire(128, 16, 64),
            pool(), Fire(128, 32, 128), Fire(256, 32, 128),
            pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU())

    def forward(self, x) -> Out:
        out, number = {}, 2
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                out["stem"] = x
            elif isinstance(layer, Fire):
                out[f"fire{number}"] = x
                number += 1
        x = out["conv10"] = self.classifier(x)
        return x.mean((2, 3)), out


class CaffeSqueezeNet(nn.Module):
    """The authors' own: it reads blue, green, red (we give it the reverse) and pads conv10 by one."""

    def __init__(self, classes):
        super().__init__()
        self.convolutions = nn.ModuleDict({"conv1": nn.Conv2d(3, 64, 3, 2)})
        before = 64
        for number, squeezed in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
            for name, shape, padding in (
                ("squeeze1x1", (before, squeezed, 1), 0),
                ("expand1x1", (squeezed, 4 * squeezed, 1), 0),
                ("expand3x3", (squeezed, 4 * squeezed, 3), 1),
            ):
                self.convolutions[f"fire{number}/{name}"] = nn.Conv2d(*shape, padding=padding)
            before = 8 * squeezed
        self.convolutions["conv10"] = nn.Conv2d(before, classes, 1, padding=1)

    def forward(self, x) -> Out:
        def convolve(name, x):
            return self.convolutions[name](x).relu()

        out = {}
        x = out["stem"] = convolve("conv1", x.flip(1))
        for number in range(2, 10):
            fire = f"fire{number}"
            if number in (2, 4, 6):
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = convolve(f"{fire}/squeeze1x1", x)
            expanded = [convolve(f"{fire}/{name}", x) for name in ("expand1x1", "expand3x3")]
            x = out[fire] = torch.cat(expanded, 1)
        x = out["conv10"] = convolve("conv10", x)
        return x.mean((2, 3)), out


# --- ConvNeXt -------------------------------------------------------------------------------------


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a batch of images."""

    def __init__(self, features):
        super().__init__(features, eps=1e-6)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class TorchvisionConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width), Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(),
            nn.Linear(4 * width, width), Permute(0, 3, 1, 2),
        )  # fmt: skip
        self.layer_scale = nn.Parameter(torch.empty(width, 1, 1))

    def forward(self, x):
        return x + self.layer_scale * self.block(x)


class TimmConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x):
        y = self.norm(self.conv_dw(x).movedim(1, -1))
        y = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](y)))
        return x + (self.gamma * y).movedim(-1, 1)


def downsample(before, after) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, 2))


class TorchvisionConvNeXt(nn.Module):
    def __init__(self, blocks, widths, classes):
        super().__init__()
        features = [nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0]))]
        for n, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            if n:
                features.append(downsample(widths[n - 1], width))
            features.append(nn.Sequential(*(TorchvisionConvNeXtBlock(width) for _ in range(count))))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            ChannelNorm(widths[-1]), nn.Flatten(1), nn.Linear(widths[-1], classes)
        )

    def forward(self, x) -> Out:
        found = []
        for layer in self.features:
            x = layer(x)
            found.append(x)
        out = {"stem": found[0]} | {f"stage{n + 1}": found[2 * n + 1] for n in range(4)}
        pooled = x.mean((2, 3), keepdim=True)
        out["pooled"] = self.classifier[0](pooled).flatten(1)
        return self.classifier(pooled), out


class TimmConvNeXt(nn.Module):
    def __init__(self, blocks, widths, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0]))
        stages = []
        for n, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = nn.Module()
            stage.downsample = downsample(widths[n - 1], width) if n else nn.Identity()
            stage.blocks = nn.Sequential(*(TimmConvNeXtBlock(width) for _ in range(count)))
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        self.head = nn.ModuleDict(
            {"norm": ChannelNorm(widths[-1]), "fc": nn.Linear(widths[-1], classes)}
        )

    def forward(self, x) -> Out:
        out = {}
        x = out["stem"] = self.stem(x)
        for n, stage in enumerate(self.stages, start=1):
            x = out[f"stage{n}"] = stage.blocks(stage.downsample(x))
        x = out["pooled"] = self.head["norm"](x.mean((2, 3), keepdim=True)).flatten(1)
        return self.head["fc"](x), out


CONVNEXTS = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}


# --- vision transformers in timm's layout ---------------------------------------------------------


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def attend(self, x):
        """One head after the other."""
        q, k, v = (part.chunk(self.heads, -1) for part in self.attn["qkv"](x).chunk(3, -1))
        found = []
        for n in range(self.heads):
            scores = torch.einsum("bid,bjd->bij", q[n], k[n]) / q[n].shape[-1] ** 0.5
            found.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), v[n]))
        return self.attn["proj"](torch.cat(found, -1))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self, width, heads, side, classes):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (side // 16) ** 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(12)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x) -> Out:
        out = {}
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for n, block in enumerate(self.blocks, start=1):
            x = out[f"block{n}"] = block(x)
        x = out["class"] = self.norm(x)[:, 0]
        return self.head(x), out


VITS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


# --- VGG in torchvision's layout ------------------------------------------------------------------


class VGG(nn.Module):
    def __init__(self, counts, norm, hidden, classes):
        super().__init__()
        features: list[nn.Module] = []
        before = 3
        for count, width in zip(counts, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                features.append(nn.Conv2d(before, width, 3, padding=1))
                features += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
                before = width
            features.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x) -> Out:
        out: dict[str, Tensor] = {}
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                out[f"block{len(out) + 1}"] = x
            x = layer(x)
        x = functional.adaptive_avg_pool2d(x, 7).flatten(1)
        for n, layer in enumerate(self.classifier):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                out["fc1" if n == 1 else "fc2"] = x
        return x, out


VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


# --- which of them, and their weights -------------------------------------------------------------


def build(name: str, head: str, size: tuple[int, int], classes: int, hidden: int = 4096) -> nn.Module:
    """The oracle of an entry of the zoo, for images of one size.

    ``head``: what the file calls the array that tells its layout; ``hidden``: of VGG's fully connected
    layers.
    """
    if name in RESNETS:
        blocks, bottleneck = RESNETS[name]
        return ResNet(blocks, classes, bottleneck)
    if name in CIFAR_RESNETS:
        return ResNet(CIFAR_RESNETS[name], classes, cifar=True)
    if name in LITES and head == "_fc.bias":
        return PackagedLite.from_name(
            name.replace("_", "-"), num_classes=classes, image_size=list(size)
        )
    if name in LITES:
        return timm_lite(name, classes)
    if name.startswith("mobilenet_v1"):
        return mobilenet_v1(0.75 if "075" in name else 1.0, classes, same=is_tensorflow(head))
    if name == "mobilenet_v2" and head == "classifier.1.bias":
        return TorchvisionMobileNetV2(classes)
    if name == "mobilenet_v2":
        return mobilenet_v2(classes, same=is_tensorflow(head))
    if name == "squeezenet1_1":
        return (CaffeSqueezeNet if head == "conv10/b" else SqueezeNet)(classes)
    if name in CONVNEXTS:
        layout = TorchvisionConvNeXt if head == "classifier.2.bias" else TimmConvNeXt
        return layout(*CONVNEXTS[name], classes)
    if name.startswith(("vit", "deit")):
        return VisionTransformer(*VITS[name.split("_")[1]], size[0], classes)
    depth, _, norm = name.partition("_")
    return VGG(VGGS[depth], norm == "bn", hidden, classes)


def is_tensorflow(head: str) -> bool:
    """Whether a file's arrays have numbers for names."""
    return head[0].isdigit()


def first_number(head: str) -> int:
    """Of the first layer: the converter of TensorFlow 2 gives 0 to the input."""
    return int(head == "64_b")


@torch.no_grad()
def randomise(model: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Random values in every array, such that each activation is of order 1 and each array matters.

    The statistics of the batch norms are those of their layer on ``images``, each channel's scattered
    around them: any others grow or vanish with the depth.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like, scale):
        return scale * torch.randn(like.shape, generator=generator)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for name, array in model.named_parameters():
        if name.endswith(("cls_token", "pos_embed")):
            array.copy_(normal(array, 0.5))
        elif name.endswith(("gamma", "layer_scale")):
            array.copy_(uniform(array, 0.3, 1.0))
        elif array.ndim > 1:
            array.copy_(normal(array, ((2 if array.ndim == 4 else 1) / array[0].numel()) ** 0.5))
        else:  # up to 2.5, for ReLU6 to have something to cut off
            array.copy_(uniform(array, 0.5, 2.5) if name.endswith("weight") else normal(array, 0.3))

    def calibrate(norm, inputs):
        scale = inputs[0].square().mean().sqrt()
        norm.running_mean.copy_(normal(norm.running_mean, 0.3 * scale))
        norm.running_var.copy_(uniform(norm.running_var, 0.5, 1.5) * scale**2)

    hooks = [
        module.register_forward_pre_hook(calibrate)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    model.eval()(images)
    for hook in hooks:
        hook.remove()


def file_names(model: nn.Module) -> list[str]:
    """What the arrays of the model's state dict are called in a file."""
    names = list(model.state_dict())
    if isinstance(model, CaffeSqueezeNet):
        kinds = {"weight": "w", "bias": "b"}
        parts = [name.removeprefix("convolutions.").split(".") for name in names]
        names = [f"{layer}/{kinds[kind]}" for layer, kind in parts]
    return names


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """What a file with the model's weights holds."""
    arrays = (array.numpy() for array in model.state_dict().values())
    return dict(zip(file_names(model), arrays, strict=True))


def tflite_layers(
    model: TimmMobileNet, first: int
) -> Iterator[tuple[int, nn.Module, nn.Module | None]]:
    """The layers that have weights, with the number that each has in a TensorFlow Lite file.

    An addition has a number as well, and so has the pooling.
    """
    yield first, model.conv_stem, model.bn1
    number = first + 1
    for blocks in model.blocks:
        for block in blocks:
            for conv, norm in block.layers():
                yield number, conv, norm
                number += 1
            number += block.skip
    if hasattr(model, "conv_head"):
        yield number, model.conv_head, model.bn2
        number += 1
    yield number + 1, model.classifier, None


@torch.no_grad()
def quantise(model: TimmMobileNet, first: int, per_channel: bool) -> dict[str, np.ndarray]:
    """The arrays of a TensorFlow Lite file; the model, in float64, is given the very same weights.

    In bytes by layer, or in signed bytes by channel: as TensorFlow 1 and 2 convert them.
    """
    arrays = {}
    for number, layer, norm in tflite_layers(model, first):
        weight = layer.weight.reshape(*layer.weight.shape, *[1] * (4 - layer.weight.ndim))
        bias = layer.bias
        if norm is not None:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = weight * scale[:, None, None, None]
            bias = norm.bias - norm.running_mean * scale
        depthwise = norm is not None and layer.groups > 1
        ordered = weight.permute((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)).numpy()
        axis = 3 if depthwise else 0
        others = tuple(n for n in range(4) if n != axis)
        if per_channel:
            step = np.abs(ordered).max(others) / 127
            zero = np.zeros(step.shape, np.int32)
        else:
            step = np.array([np.ptp(ordered) / 255])
            zero = np.round(-ordered.min() / step).astype(np.int32)
        step = step.astype(np.float32)
        along = [-1 if n == axis else 1 for n in range(4)]
        quantised = np.round(ordered / step.reshape(along)) + zero.reshape(along)
        kind = np.int8 if per_channel else np.uint8
        quantised = quantised.clip(np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        bias = bias.numpy().astype(np.float32)
        arrays |= {
            f"{number}_w": quantised,
            f"{number}_scale": step,
            f"{number}_zp": zero,
            f"{number}_b": bias,
        }
        exact = torch.tensor(
            (quantised.astype(np.int64) - zero.reshape(along)) * step.astype(np.float64).reshape(along)
        )
        exact = exact.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        layer.weight.copy_(exact.reshape(layer.weight.shape))
        if norm is None:
            layer.bias.copy_(torch.tensor(bias))
        else:
            norm.weight.fill_(1), norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps)
            norm.bias.copy_(torch.tensor(bias))
    return arrays


# --- what a file says of itself -------------------------------------------------------------------


def in_batches(run):
    """A function of arrays and images, 20 images at a time: every activation of a batch is kept."""

    def batched(arrays: Mapping[str, np.ndarray], images: Tensor) -> Tensor:
        return torch.cat([run(arrays, batch) for batch in images.split(20)])

    return batched


@in_batches
@torch.no_grad()
def run_tflite(arrays: Mapping[str, np.ndarray], images: Tensor) -> Tensor:
    """Logits by the graph in a file that was converted from TensorFlow Lite, dequantised."""
    graph = json.loads(str(arrays["graph"]))
    values = {graph["input"]: images}
    for step in graph["layers"]:
        inputs = [values[n] for n in np.atleast_1d(step["inp"])]
        if step["op"] == "ADD":
            found = inputs[0] + inputs[1]
        elif step["op"] == "GAP":
            found = inputs[0].mean((2, 3), keepdim=True)
        elif step["op"] == "SOFTMAX":
            return inputs[0].flatten(1)
        elif step["op"] == "ID":
            found = inputs[0]
        else:
            depthwise = step["op"] == "DEPTHWISE_CONV_2D"
            weight, scale, zero, bias = (
                arrays[f"{step['layer']}_{kind}"] for kind in ("w", "scale", "zp", "b")
            )
            axis = [-1 if n == step["qdim"] else 1 for n in range(4)]
            weight = (weight.astype(np.int32) - zero.reshape(axis)) * scale.reshape(axis)
            weight = torch.tensor(weight, dtype=images.dtype)
            weight = weight.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
            assert step["pad"] == "SAME"
            found = functional.conv2d(
                pad_same(inputs[0], weight.shape[2], step["stride"]),
                weight,
                torch.tensor(bias, dtype=images.dtype),
                step["stride"],
                groups=len(weight) if depthwise else 1,
            )
            if step["act"] is not None:
                found = {"relu6": functional.relu6}[step["act"]](found)
        values[step["out"]] = found
    raise AssertionError("the graph has no softmax at its end")


@in_batches
@torch.no_grad()
def run_ncnn(arrays: Mapping[str, np.ndarray], images: Tensor) -> Tensor:
    """Logits by the graph in a file that was converted from ncnn; images in blue, green, red."""
    values: dict[str, Tensor] = {}
    for step in json.loads(str(arrays["graph"])):
        inputs = [values[name] for name in step["inp"]]
        options = {int(key): int(value) for key, value in step["p"].items()}
        if step["op"] == "Input":
            found = images
        elif step["op"] == "Split":
            found = inputs[0]
        elif step["op"] == "Concat":
            found = torch.cat(inputs, 1)
        elif step["op"] == "Softmax":
            return inputs[0].flatten(1)
        elif step["op"] == "Pooling" and options.get(4):
            assert options[0] == 1  # means
            found = inputs[0].mean((2, 3), keepdim=True)
        elif step["op"] == "Pooling":
            found = functional.max_pool2d(inputs[0], options[1], options[2], ceil_mode=True)
        else:
            weight, bias = (
                torch.tensor(arrays[f"{step['name']}/{kind}"], dtype=images.dtype) for kind in "wb"
            )
            assert options[9] == 1  # a ReLU follows
            found = functional.conv2d(
                inputs[0], weight, bias, options.get(3, 1), options.get(4, 0)
            ).relu()
        values |= dict.fromkeys(step["out"], found)
    raise AssertionError("the graph has no softmax at its end")
