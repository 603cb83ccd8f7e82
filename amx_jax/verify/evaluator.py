"""Forward passes on masked images, in batches of one fixed shape.

One shape means one compilation, and the same bits for a mask whatever else is in the batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Classifier
from amx_jax.masks.composition import BACKGROUND_KINDS, blur, compose, constant_colour, white_noise
from amx_jax.objective.decision import MARGIN, margin

# Blurred backgrounds of the certificate: sigma from 1/50 to 1/8 of the input's side.
MILDEST, STRONGEST = 1 / 50, 1 / 8


class Evaluator:
    """The classifier on masked versions of some images.

    Args:
        classifier: f.
        background: red, green and blue of the removed pixels, 0 … 255.
        batch_size: images in one forward pass.
    """

    def __init__(self, classifier: Classifier, background: tuple[int, int, int], batch_size: int):
        self.classifier, self.batch_size = classifier, batch_size
        normalize = classifier.preprocess.normalize
        colour = jnp.asarray(normalize(np.asarray(background, np.float32)))
        low, high = (jnp.asarray(normalize(np.float32(value))) for value in (0, 255))

        def plain(params, images: Array, targets: Array, owner: Array, mask: Array):
            logits, _ = classifier.apply(params, compose(images[owner], mask, colour))
            target = targets[owner]
            return margin(logits, target), jax.nn.softmax(logits)[target]

        def on_background(
            kind: str, params, image: Array, target: Array, mask: Array, key: Array
        ) -> Array:
            if kind == "colour":
                background = constant_colour(key, image.shape, low, high)
            elif kind == "noise":
                background = white_noise(key, image.shape, low, high)
            else:
                sigma = image.shape[0] * jax.random.uniform(key, (), minval=MILDEST, maxval=STRONGEST)
                background = blur(image, sigma)
            logits, _ = classifier.apply(params, compose(image, mask, background))
            return margin(logits, target) > MARGIN

        self._plain = jax.jit(jax.vmap(plain, in_axes=(None, None, None, 0, 0)))
        self._on_background = {
            kind: jax.jit(jax.vmap(partial(on_background, kind), in_axes=(None, None, None, None, 0)))
            for kind in BACKGROUND_KINDS
        }

    def judge(
        self, images: Array, targets: Array, owners: np.ndarray, masks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The target's margin and probability on masked images.

        Args:
            images: normalised, ``(n, H, W, C)``; the same n at each call, or it compiles anew.
            targets: ``(n,)``.
            owners: which image each mask belongs to, ``(k,)``.
            masks: bool ``(k, H, W)``.

        Returns:
            Margins and probabilities, ``(k,)`` each.
        """
        margins, probabilities = np.zeros((2, len(masks)), np.float32)
        for start in range(0, len(masks), self.batch_size):
            part = slice(start, start + self.batch_size)
            count = len(masks[part])
            owner = np.pad(owners[part], (0, self.batch_size - count))
            mask = np.pad(masks[part], ((0, self.batch_size - count), (0, 0), (0, 0)))
            found = self._plain(self.classifier.params, images, targets, owner, mask)
            margins[part], probabilities[part] = (np.asarray(values)[:count] for values in found)
        return margins, probabilities

    def robustness(
        self, image: Array, target: Array, mask: np.ndarray, key: Array, trials: int
    ) -> dict[str, tuple[int, int]]:
        """How many random backgrounds of each kind keep the target the top class.

        Colours are uniform over the input range, noise is independent in every pixel and channel,
        blurs are of the photo itself with sigma uniform from 1/50 to 1/8 of its side.

        Args:
            image: normalised, ``(H, W, C)``.
            target: the class t.
            mask: bool ``(H, W)``.
            key: of the backgrounds.
            trials: backgrounds of each kind.

        Returns:
            ``{kind: (kept, trials)}``.
        """
        rounds = -(-trials // self.batch_size)
        result = {}
        for kind, evaluate in self._on_background.items():
            key, kind_key = jax.random.split(key)
            keys = jax.random.split(kind_key, rounds * self.batch_size)
            kept = [
                evaluate(self.classifier.params, image, target, mask, some)
                for some in keys.reshape(rounds, self.batch_size)
            ]
            result[kind] = (int(np.concatenate(kept)[:trials].sum()), trials)
        return result
