"""The most probable classes of a photo and of what was kept of it, for people to compare."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from amx_jax.classifiers.classifier import Classifier
from amx_jax.masks.composition import compose
from amx_jax.objective.decision import probability

COUNT = 5
Ranked = dict[str, list[dict[str, Any]]]


class Top:
    """The classifier's ranking before and after, by one program, in full float32 precision.

    Args:
        classifier: f.
        background: red, green and blue of the removed pixels, 0 … 255.

    Examples:
        >>> from amx_jax import Preprocess
        >>> brightness = Classifier(
        ...     apply=lambda params, image: 9 * jnp.stack([0.5 - image.mean(), image.mean()]),
        ...     params=(),
        ...     preprocess=Preprocess(size=2, resize=2, mean=0.0, scale=255.0),
        ...     labels=("dark", "bright"),
        ... )
        >>> white, nothing = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2), bool)
        >>> found = Top(brightness, (0, 0, 0))(white, nothing)
        >>> [found[seen][0]["name"] for seen in ("image", "explanation")]
        ['bright', 'dark']
    """

    def __init__(self, classifier: Classifier, background: tuple[int, int, int]):
        self._labels, self._params = classifier.labels, classifier.params
        colour, _, _ = classifier.preprocess.limits(background)

        def one(params, image, mask):
            with jax.default_matmul_precision("highest"):
                logits, _ = classifier.apply(params, compose(image, mask, colour))
            return probability(classifier.head, logits, jnp.arange(logits.shape[0]))

        def both(params, pixels, mask):
            image = classifier.preprocess.normalize(pixels.astype(jnp.float32))
            masks = jnp.stack([jnp.ones_like(mask), mask])
            return jax.lax.map(lambda seen: one(params, image, seen), masks)

        self._ask = jax.jit(both)

    def __call__(self, pixels: np.ndarray, mask: np.ndarray) -> Ranked:
        """Classify a photo and its kept pixels.

        Args:
            pixels: uint8 ``(H, W, C)``.
            mask: bool ``(H, W)``, true where kept.

        Returns:
            For ``image`` and ``explanation`` the five classes, or as many as there are, that are the
            most probable: ``index``, ``name`` and ``probability``.
        """
        found = np.asarray(self._ask(self._params, pixels, mask))
        return {
            seen: [
                {"index": i, "name": self._labels[i], "probability": float(probabilities[i])}
                for i in np.argsort(-probabilities, kind="stable")[:COUNT].tolist()
            ]
            for seen, probabilities in zip(("image", "explanation"), found, strict=True)
        }
