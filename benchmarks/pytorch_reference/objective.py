"""The objective of ``amx_jax.objective`` for a batch: every term a vector with one value an image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from amx_jax.config import Weights
from benchmarks.pytorch_reference.classifier import Classifier


class Images(NamedTuple):
    """What does not change from step to step; every tensor's first axis is the image.

    Attributes:
        contrast: x − b, normalised, ``(n, 3, H, W)``.
        patches: the autoencoder's input.
        target: the classes t, ``(n,)``.
        log_p: log f(x), ``(n, classes)``.
        activations: f_l(x) of the matched stages, in their order.
        scales: ‖f_l(x)‖², 1 where it is zero, ``(n,)`` each.
    """

    contrast: Tensor
    patches: Tensor
    target: Tensor
    log_p: Tensor
    activations: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]


def budget_threshold(logits: Tensor, budget: Tensor) -> Tensor:
    """The logit above which a share ``budget`` of each grid lies, ``(n,)``."""
    ordered = logits.flatten(1).sort(dim=1).values
    dropped = torch.floor((1 - budget) * ordered.shape[1]).long()
    threshold = ordered.gather(1, (dropped - 1).clamp_min(0)[:, None])[:, 0]
    return torch.where(dropped > 0, threshold, ordered[:, 0] - 1)


def straight_through_mask(logits: Tensor, side: int, temperature: float) -> Tensor:
    """Where the enlarged logits ``(n, h, w)`` are positive, as 0.0 and 1.0, with the soft gradient.

    Returns:
        ``(n, side, side)``.
    """
    enlarged = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
    soft = torch.sigmoid(enlarged / temperature)
    return (enlarged > 0).to(soft.dtype) + (soft - soft.detach())


def total_variation(mask: Tensor) -> Tensor:
    """Σ |∂m| over the root of the number of elements, ``(n,)``."""
    total = mask.diff(dim=1).abs().sum((1, 2)) + mask.diff(dim=2).abs().sum((1, 2))
    return total / (mask.shape[1] * mask.shape[2]) ** 0.5


def objective(
    weights: Weights,
    stages: tuple[str, ...],
    classify: Classifier,
    background: Tensor,
    images: Images,
    mask: Tensor,
    soft: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms whose weight is not zero.

    Args:
        weights: robustness and necessity must be 0.
        stages: the matched ones.
        classify: f.
        background: b, ``(3, 1, 1)``.
        images: of the batch.
        mask: the masks the classifier sees, ``(n, H, W)``.
        soft: the masks the priors see, ``(n, h, w)``.

    Returns:
        The objective ``(n,)`` and f(e) ``(n, classes)``.
    """
    scores, activations = classify(torch.addcmul(background, mask[:, None], images.contrast))
    log_q = F.log_softmax(scores, dim=1)
    total = scores.new_zeros(len(scores))
    if weights.activation:
        distances = [
            (activations[stage] - reference).square().sum((1, 2, 3)) / scale
            for stage, reference, scale in zip(stages, images.activations, images.scales, strict=True)
        ]
        total = total + weights.activation * torch.stack(distances).mean(0)
    if weights.kl:
        divergence = F.kl_div(log_q, images.log_p, reduction="none", log_target=True).sum(1)
        total = total + weights.kl * divergence
    if weights.cross_entropy:
        total = total + weights.cross_entropy * F.nll_loss(log_q, images.target, reduction="none")
    if weights.area:
        total = total + weights.area * soft.mean((1, 2))
    if weights.binarization:
        total = total + weights.binarization * (soft * (1 - soft)).mean((1, 2))
    if weights.total_variation:
        total = total + weights.total_variation * total_variation(soft)
    return total, scores
