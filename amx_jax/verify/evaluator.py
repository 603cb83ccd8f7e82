"""Forward passes on masked images, in batches of one fixed shape.

One shape means one compilation, and the same bits for a mask whatever else is in the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Classifier
from amx_jax.lift import Devices
from amx_jax.masks.backgrounds import Scene, draw
from amx_jax.masks.composition import compose
from amx_jax.objective.decision import Decision, margin, probability
from amx_jax.verify.pool import Judged


class Evaluator:
    """The classifier on masked images, always in full float32 precision.

    Args:
        classifier: f.
        background: red, green and blue of the removed pixels, 0 … 255.
        batch_size: masks in one forward pass, rounded up to what the devices share evenly.
        devices: that share them.
        kinds: of random backgrounds.
        others: other photos for backgrounds that show them, uint8 ``(n, H, W, C)``: those in even
            places appear in the search, the others in the certificate.

    Attributes:
        of_search: those that the search may see, in the input space, ``(⌈n/2⌉, H, W, C)``.
    """

    def __init__(
        self,
        classifier: Classifier,
        background: tuple[int, int, int],
        batch_size: int,
        devices: Devices,
        kinds: Sequence[str] = ("colour", "noise", "blur"),
        others: np.ndarray | None = None,
    ):
        self.batch_size = devices.slots(batch_size)
        self._order = devices.in_turn(self.batch_size)
        self.kinds = tuple(kinds)
        self._params = devices.replicate(classifier.params)
        normalize = classifier.preprocess.normalize
        colour, low, high = classifier.preprocess.limits(background)
        if others is None:
            others = np.zeros((0, *classifier.preprocess.shape), np.uint8)
        self.of_search, of_certificate = (
            jnp.asarray(normalize(some.astype(np.float32))) for some in (others[::2], others[1::2])
        )

        def classify(
            params: Any,
            pixels: Array,
            decision: Decision,
            mask: Array,
            behind: Callable[[Array], Array],
        ):
            image = normalize(pixels.astype(jnp.float32))
            seen = compose(image, mask, behind(image))
            # An accelerator's default would round to bfloat16 or TF32.
            with jax.default_matmul_precision("highest"):
                logits, _ = classifier.apply(params, seen)
            return (
                margin(logits, decision),
                probability(classifier.head, logits, decision.target),
            )

        def where_used(used: Array, judge: Callable[[], tuple[Array, Array]]):
            return jax.lax.cond(used, judge, lambda: (jnp.zeros(()), jnp.zeros(())))

        def stated(image: Array) -> Array:
            return jnp.broadcast_to(colour, image.shape).astype(image.dtype)

        def drawn(others: Array, kind: Array, key: Array, image: Array) -> Array:
            scene = Scene(image, low, high, others)
            return draw(self.kinds, kind, jax.random.wrap_key_data(key), scene)

        def plain(params, pixels: Array, decision: Decision, mask: Array, used: Array):
            return where_used(used, lambda: classify(params, pixels, decision, mask, stated))

        def in_search(
            params, pixels: Array, decision: Decision, mask: Array, kind: Array, key: Array, used: Array
        ):
            """On a random background, or on the stated colour where ``kind`` is below 0."""

            def behind(image: Array) -> Array:
                # Only this depends on the kind: vmap computes both sides of a cond.
                return jax.lax.cond(kind >= 0, partial(drawn, self.of_search, kind, key), stated, image)

            return where_used(used, lambda: classify(params, pixels, decision, mask, behind))

        def unseen(params, pixels: Array, decision: Decision, mask: Array, kind: Array, key: Array):
            behind = partial(drawn, of_certificate, kind, key)
            return classify(params, pixels, decision, mask, behind)

        self._plain = devices.lift(plain)
        self._in_search = devices.lift(in_search)
        self._unseen = devices.lift(unseen, shared=4)

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
        return self._fill(self._plain, pixels, decisions, masks)

    def judge_views(
        self,
        pixels: Sequence[np.ndarray],
        decisions: Sequence[Decision | int],
        masks: Sequence[np.ndarray],
        kinds: Sequence[int],
        keys: Sequence[np.ndarray],
    ) -> Judged:
        """The same, each mask on a random background of the search.

        Args:
            pixels: as above.
            decisions: as above.
            masks: as above.
            kinds: for each mask the index of its background's kind; −1 for the stated colour.
            keys: for each the data of its background's PRNG key, uint32.
        """
        more = np.asarray(kinds, np.int32), np.asarray(keys, np.uint32)
        return self._fill(self._in_search, pixels, decisions, masks, *more)

    def _fill(self, program, pixels, decisions, masks, *more) -> Judged:
        """Run a program on a batch that the masks need not fill."""
        count = len(masks)
        if not count:
            return Judged(np.zeros(0, np.float32), np.zeros(0, np.float32))
        slots = self._order[:count]
        index = np.zeros(self.batch_size, int)
        index[slots] = np.arange(count)
        used = np.zeros(self.batch_size, bool)
        used[slots] = True
        found = program(
            self._params,
            np.stack([pixels[i] for i in index]),
            _stacked([decisions[i] for i in index]),
            np.stack([masks[i] for i in index]),
            *(values[index] for values in more),
            used,
        )
        margins, probabilities = (np.asarray(values)[slots] for values in found)
        return Judged(margins, probabilities)

    def unseen(
        self, pixels: np.ndarray, decision: Decision | int, mask: np.ndarray, key: Array, trials: int
    ) -> dict[str, Judged]:
        """What the classifier says of a mask on random backgrounds that no search has seen.

        Args:
            pixels: uint8 ``(H, W, C)``.
            decision: what must hold, likewise.
            mask: bool ``(H, W)``.
            key: of the backgrounds.
            trials: backgrounds of each kind.

        Returns:
            ``{kind: margins and probabilities (trials,)}``.
        """
        total = len(self.kinds) * trials
        kinds = np.arange(total, dtype=np.int32) // trials
        keys = np.asarray(jax.random.key_data(_split(key, len(self.kinds), trials)))
        padded = np.arange(-(-total // self.batch_size) * self.batch_size) % total
        asked = Decision(*(values[0] for values in _stacked([decision])))
        found = []
        for index in padded.reshape(-1, self.batch_size):
            found.append(self._unseen(self._params, pixels, asked, mask, kinds[index], keys[index]))
        margins, probabilities = (np.concatenate(some)[:total] for some in zip(*found, strict=True))
        parts = margins.reshape(-1, trials), probabilities.reshape(-1, trials)
        return {
            kind: Judged(*one) for kind, one in zip(self.kinds, zip(*parts, strict=True), strict=True)
        }


def _split(key: Array, kinds: int, trials: int) -> Array:
    """Keys ``(kinds · trials,)``: more trials, or more kinds, change none of the others."""
    each = (jax.random.split(jax.random.fold_in(key, kind), trials) for kind in range(kinds))
    return jnp.concatenate(list(each))


def _stacked(decisions: Sequence[Decision | int]) -> Decision:
    """One decision of arrays ``(n,)``, always of the same types."""
    types = (np.int32, np.int32, np.float32)
    each = [asked if isinstance(asked, Decision) else Decision(asked) for asked in decisions]
    columns = zip(*each, strict=True)
    return Decision(*(np.array(v, dtype) for v, dtype in zip(columns, types, strict=True)))
