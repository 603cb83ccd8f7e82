"""Known attribution methods with one call, to compare with: ``METHODS["gradcam"].rank(…)``.

A ranking says of each pixel how important it is, and nothing about how many are enough.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from amx_jax.classifiers.classifier import Classifier, Params
from amx_jax.evaluate.cutting import last_image_stage
from amx_jax.evaluate.extremal import extremal_perturbation
from amx_jax.evaluate.gradients import grad_cam, integrated_gradients
from amx_jax.evaluate.perturbation import occlusion, rise
from amx_jax.objective.decision import Decision
from amx_jax.verify.prune import cell_map

STEPS, WINDOWS, MASKS = 32, 13, 512  # of integrated gradients, of occlusion on each axis, of RISE
AREAS, ASCENT = (0.05, 0.1, 0.2, 0.4), 800  # of extremal perturbations


def random_cells(key: Array, shape: tuple[int, int], cell: int) -> Array:
    """A ranking that knows nothing: square cells in random order.

    Args:
        key: a PRNG key.
        shape: ``(H, W)``.
        cell: side of a cell, in pixels; the last ones are cut off where it does not divide H and W.

    Returns:
        ``(H, W)`` float32, one of 0, 1, 2, … a cell.

    Examples:
        >>> random_cells(jax.random.key(0), (2, 4), cell=2)[0].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
        True
    """
    cells = cell_map(shape, cell)
    return jax.random.permutation(key, int(cells.max()) + 1).astype(jnp.float32)[cells]


def centre_square(shape: tuple[int, int]) -> Array:
    """A ranking that knows photographers: squares around the centre, −max(|Δ row|, |Δ column|).

    Args:
        shape: ``(H, W)``.

    Returns:
        ``(H, W)`` float32, at most 0.

    Examples:
        >>> centre_square((2, 4)).tolist()
        [[-1.5, -0.5, -0.5, -1.5], [-1.5, -0.5, -0.5, -1.5]]
    """
    row, column = (jnp.abs(jnp.arange(side) - (side - 1) / 2) for side in shape)
    return -jnp.maximum(row[:, None], column[None]).astype(jnp.float32)


# (classifier, params, image, decision, key, background) -> (H, W)
Rank = Callable[[Classifier, Params, Array, Decision, Array, Array], Array]


class Method(NamedTuple):
    """A ranking of pixels by one call, with its customary settings.

    Attributes:
        rank: ``(classifier, params, image, decision, key, background) -> (H, W)`` float32, larger is
            more important. A pure function of one image ``(H, W, C)``, to be compiled and mapped with
            the classifier fixed; ``key`` is a PRNG key, ``background`` ``(C,)`` in the input space.
        passes: what it costs at most, in passes through the classifier: 1 forward, 2 forward and back.
    """

    rank: Rank
    passes: int


def _grad_cam(classifier, params, image, decision, key, background):
    stage = last_image_stage(classifier.apply, params, image)
    return grad_cam(classifier.apply, params, image, decision, stage)


def _integrated_gradients(classifier, params, image, decision, key, background):
    return integrated_gradients(classifier.apply, params, image, decision, background, STEPS)


def _occlusion(classifier, params, image, decision, key, background):
    side = min(image.shape[:2])
    stride = max(side // (WINDOWS + 1), 1)  # windows of 32 pixels, 16 apart, of 224
    window = max(side - (WINDOWS - 1) * stride, 1)
    return occlusion(classifier.apply, params, image, decision, background, window, stride)


def _rise(classifier, params, image, decision, key, background):
    return rise(classifier.apply, params, image, decision, key, background, MASKS)


def _extremal(classifier, params, image, decision, key, background):
    side = min(image.shape[:2])
    step = max(side // 32, 1)  # 7 pixels of 224
    return extremal_perturbation(
        classifier.apply,
        params,
        image,
        decision,
        background,
        AREAS,
        ASCENT,
        step=step,
        sigma=3 * step,
        max_blur=20 / 224 * side,
    )


def _random(classifier, params, image, decision, key, background):
    return random_cells(key, image.shape[:2], max(min(image.shape[:2]) // 28, 1))


def _centre(classifier, params, image, decision, key, background):
    return centre_square(image.shape[:2])


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "gradcam": Method(_grad_cam, 2),
        "ig": Method(_integrated_gradients, 2 * STEPS),
        "occlusion": Method(_occlusion, WINDOWS**2 + 1),
        "rise": Method(_rise, MASKS),
        "extremal": Method(_extremal, 2 * len(AREAS) * ASCENT),
        "random": Method(_random, 0),
        "centre": Method(_centre, 0),
    }
)
