"""Forward passes on masked images, in batches of one fixed shape.

One shape means one compilation, and the same bits for a mask whatever else is in the batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Classifier
from amx_jax.lift import Devices
from amx_jax.masks.composition import BACKGROUND_KINDS, blur, compose, constant_colour, white_noise
from amx_jax.objective.decision import MARGIN, Decision, margin, probability
from amx_jax.verify.pool import Judged

# Blurred backgrounds of the certificate: sigma from 1/50 to 1/8 of the input's side.
MILDEST, STRONGEST = 1 / 50, 1 / 8


class Evaluator:
    """The classifier on masked images, always in full float32 precision.

    Args:
        classifier: f.
        background: red, green and blue of the removed pixels, 0 … 255.
        batch_size: masks in one forward pass, rounded up to what the devices share evenly.
        devices: that share them.
    """

    def __init__(
        self,
        classifier: Classifier,
        background: tuple[int, int, int],
        batch_size: int,
        devices: Devices,
    ):
        self.batch_size = devices.slots(batch_size)
        self._params = devices.replicate(classifier.params)
        normalize = classifier.preprocess.normalize
        colour, low, high = classifier.preprocess.limits(background)

        def classify(params: Any, image: Array, mask: Array, behind: Array, decision: Decision):
            # An accelerator's default would round to bfloat16 or TF32.
            with jax.default_matmul_precision("highest"):
                logits, _ = classifier.apply(params, compose(image, mask, behind))
            return (
                margin(logits, decision),
                probability(classifier.head, logits, decision.target),
            )

        def plain(params, pixels: Array, decision: Decision, mask: Array, used: Array):
            def judge() -> tuple[Array, Array]:
                image = normalize(pixels.astype(jnp.float32))
                return classify(params, image, mask, colour, decision)

            return jax.lax.cond(used, judge, lambda: (jnp.zeros(()), jnp.zeros(())))

        def on_background(
            kind: str, params, pixels: Array, decision: Decision, mask: Array, key: Array
        ):
            image = normalize(pixels.astype(jnp.float32))
            key = jax.random.wrap_key_data(key)
            if kind == "colour":
                behind = constant_colour(key, image.shape, low, high)
            elif kind == "noise":
                behind = white_noise(key, image.shape, low, high)
            else:
                sigma = image.shape[0] * jax.random.uniform(key, (), minval=MILDEST, maxval=STRONGEST)
                behind = blur(image, sigma)
            return classify(params, image, mask, behind, decision)[0] > MARGIN

        self._plain = devices.lift(plain)
        self._on_background = {
            kind: devices.lift(partial(on_background, kind), shared=4) for kind in BACKGROUND_KINDS
        }

    def judge(
        self,
        pixels: Sequence[np.ndarray],
        decisions: Sequence[Decision | int],
        masks: Sequence[np.ndarray],
    ) -> Judged:
        """The decision's margin and the target's probability on masked images.

        Args:
            pixels: for each mask its image, uint8 ``(H, W, C)``.
            decisions: for each mask what must hold; a number t stands for *t is the top class*.
            masks: bool ``(H, W)`` each, at most ``batch_size`` of them.
        """
        count = len(masks)
        if not count:
            return Judged(np.zeros(0, np.float32), np.zeros(0, np.float32))
        index = [*range(count), *[0] * (self.batch_size - count)]
        found = self._plain(
            self._params,
            np.stack([pixels[i] for i in index]),
            _stacked([decisions[i] for i in index]),
            np.stack([masks[i] for i in index]),
            np.arange(self.batch_size) < count,
        )
        margins, probabilities = (np.asarray(values)[:count] for values in found)
        return Judged(margins, probabilities)

    def robustness(
        self, pixels: np.ndarray, decision: Decision | int, mask: np.ndarray, key: Array, trials: int
    ) -> dict[str, tuple[int, int]]:
        """On how many random backgrounds of each kind the decision holds.

        Colours are uniform over the input range, noise is independent in every pixel and channel,
        blurs are of the photo itself with sigma uniform from 1/50 to 1/8 of its side.

        Args:
            pixels: uint8 ``(H, W, C)``.
            decision: what must hold, likewise.
            mask: bool ``(H, W)``.
            key: of the backgrounds.
            trials: backgrounds of each kind.

        Returns:
            ``{kind: (kept, trials)}``.
        """
        rounds = -(-trials // self.batch_size)
        result = {}
        asked = Decision(*(values[0] for values in _stacked([decision])))
        for kind, evaluate in self._on_background.items():
            key, kind_key = jax.random.split(key)
            keys = np.asarray(jax.random.key_data(jax.random.split(kind_key, rounds * self.batch_size)))
            kept = [
                evaluate(self._params, pixels, asked, mask, some)
                for some in keys.reshape(rounds, self.batch_size, -1)
            ]
            result[kind] = (int(np.concatenate(kept)[:trials].sum()), trials)
        return result


def _stacked(decisions: Sequence[Decision | int]) -> Decision:
    """One decision of arrays ``(n,)``, always of the same types."""
    types = (np.int32, np.int32, np.float32)
    each = [asked if isinstance(asked, Decision) else Decision(asked) for asked in decisions]
    columns = zip(*each, strict=True)
    return Decision(*(np.array(v, dtype) for v, dtype in zip(columns, types, strict=True)))
