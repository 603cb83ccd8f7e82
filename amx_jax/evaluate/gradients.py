"""Attribution by gradients: in an inner activation (Grad-CAM) or along a path of images."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Apply, Params
from amx_jax.errors import ClassifierError
from amx_jax.evaluate.cutting import cut
from amx_jax.masks.composition import resize
from amx_jax.objective.decision import Decision


def score(logits: Array, decision: Decision) -> Array:
    """What is attributed to pixels: z_t, or z_t − z_r where the target is compared with a rival r.

    Args:
        logits: ``(classes,)``.
        decision: what is explained.

    Returns:
        A scalar.

    Examples:
        >>> logits = jnp.array([1.0, 3.0, 2.5])
        >>> float(score(logits, Decision(1))), float(score(logits, Decision(1, rival=2)))
        (3.0, 0.5)
    """
    rival = jnp.where(jnp.asarray(decision.rival) >= 0, logits[decision.rival], 0)
    return logits[decision.target] - rival


def grad_cam(apply: Apply, params: Params, image: Array, decision: Decision, stage: str) -> Array:
    """Grad-CAM: ReLU(Σ_k α_k A_k), enlarged; α_k = the mean over (i, j) of ∂score / ∂A_ijk.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: normalised, ``(H, W, C)``.
        decision: what is explained.
        stage: whose activation ``(h, w, channels)`` is A.

    Returns:
        ``(H, W)`` float32, at least 0; larger is more important.

    Raises:
        ClassifierError: as :func:`cut`; an activation that is no image ``(h, w, channels)``.

    Examples:
        >>> def apply(params, image):
        ...     features = jax.nn.relu(image)
        ...     return features.sum(axis=(0, 1)), {"features": features}
        >>> image = jnp.array([[[1.0, 9.0], [0.0, 9.0]]])
        >>> grad_cam(apply, None, image, Decision(0), "features").tolist()
        [[1.0, 0.0]]

    Reference:
        Selvaraju et al., *Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization*, `arXiv 1610.02391 <https://arxiv.org/abs/1610.02391>`_
    """
    height, width, _ = image.shape
    activation, rest = cut(apply, params, image, stage)
    if activation.ndim != 3:
        raise ClassifierError(
            f"stage {stage}: found an activation {activation.shape}, expected an image (h, w, channels)"
        )
    gradient = jax.grad(lambda activation: score(rest(activation), decision))(activation)
    weights = jnp.mean(gradient.astype(jnp.float32), axis=(0, 1))
    heat = jnp.einsum("ijk,k->ij", activation.astype(jnp.float32), weights, precision="highest")
    return resize(jax.nn.relu(heat), (height, width))


def integrated_gradients(
    apply: Apply,
    params: Params,
    image: Array,
    decision: Decision,
    baseline: Array,
    steps: int = 32,
) -> Array:
    """Integrated gradients: ``Σ_c |(x − b)_c · ∫₀¹ ∂score / ∂x_c (b + α(x − b)) dα|``.

    The integral by Gauss and Legendre's rule, exact for polynomials in α of degree 2 · steps − 1. The
    sum over channels is of absolute values: a pixel that speaks against the target is important, too.

    Args:
        apply: ``(params, image) -> (logits, {stage: activation})`` of one image.
        params: its parameters.
        image: x, normalised, ``(H, W, C)``.
        decision: what is explained.
        baseline: b, anything that broadcasts to x, in the same space.
        steps: points of the rule; each costs a forward and a backward pass.

    Returns:
        ``(H, W)`` float32, at least 0; larger is more important.

    Examples:
        >>> def apply(params, image):
        ...     return (image**2).sum(axis=(0, 1)), {}
        >>> image = jnp.array([[[1.0], [3.0]]])
        >>> heat = integrated_gradients(apply, None, image, Decision(0), jnp.zeros(1), steps=2)
        >>> heat.round(4).tolist()  # the parts of score(x) − score(b) = 10
        [[1.0, 9.0]]

    Reference:
        Sundararajan, Taly and Yan, *Axiomatic Attribution for Deep Networks*,
        `arXiv 1703.01365 <https://arxiv.org/abs/1703.01365>`_
    """
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [−1, 1]
    slope = jax.grad(lambda image: score(apply(params, image)[0], decision))

    def add(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        point, weight = at
        return total + weight * slope(baseline + point * (image - baseline)), None

    rule = (jnp.asarray((points + 1) / 2, image.dtype), jnp.asarray(weights / 2, image.dtype))
    mean_slope, _ = jax.lax.scan(add, jnp.zeros_like(image), rule)
    return jnp.sum(jnp.abs((image - baseline) * mean_slope), axis=-1).astype(jnp.float32)
