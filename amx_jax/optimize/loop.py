"""The optimisation of a batch: one compiled step, vmapped over images, called from Python.

A Python loop and not ``lax.scan``: XLA:CPU runs the convolutions inside a loop several times slower
(143 against 704 ms a step).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Classifier
from amx_jax.config import Config
from amx_jax.masks.composition import resize
from amx_jax.masks.generators import Generator, autoencoder, free_grid
from amx_jax.masks.hardening import hard_mask
from amx_jax.objective.objective import Reference
from amx_jax.optimize import step as one

SYNCHRONIZE = 8  # steps


class Optimized(NamedTuple):
    """The outcome for a batch; every array's first axis is the image.

    Attributes:
        masks: the smallest hard mask that was sufficient at some step, bool ``(n, H, W)``; all true
            where there was none.
        logits: its logits at the same resolution, ``(n, H, W)``: an order of the pixels.
        found: whether there was one, ``(n,)``.
        failures: for each image why its optimisation stopped, or None.
    """

    masks: np.ndarray
    logits: np.ndarray
    found: np.ndarray
    failures: list[str | None]


def make_generator(config: Config, channels: int) -> Generator:
    """The generator that the configuration names."""
    if config.generator == "autoencoder":
        return autoencoder(channels, config.grid, config.free_gain)
    return free_grid(config.grid, config.free_gain)


class Optimizer:
    """The compiled functions of one classifier and configuration.

    Every call of one batch size runs the same compiled step, and an image's result depends on no
    other image in the batch.
    """

    def __init__(self, classifier: Classifier, config: Config):
        self.classifier, self.config = classifier, config
        self.stages = config.stages or classifier.stages
        low, high = (
            np.broadcast_to(classifier.preprocess.normalize(np.float32(value)), 3) for value in (0, 255)
        )
        background = classifier.preprocess.normalize(np.asarray(config.background, np.float32))
        limits = (jnp.asarray(background), jnp.asarray(low), jnp.asarray(high))
        generator = make_generator(config, channels=3)

        def refer(params, image: Array, target: Array) -> Reference:
            logits, activations = classifier.apply(params, image)
            matched = {s: activations[s] for s in self.stages} if config.objective.activation else {}
            return Reference(image, target, logits, matched)

        def advance(
            params, reference: Reference, state: one.State, key: Array, number: Array
        ) -> one.State:
            classify = partial(classifier.apply, params)
            return one.step(config, generator, classify, limits, reference, state, key, number)

        def enlarge(logits: Array) -> tuple[Array, Array]:
            shape = (classifier.preprocess.size,) * 2
            return hard_mask(logits, shape), resize(logits, shape)

        self._refer = jax.jit(jax.vmap(refer, in_axes=(None, 0, 0)))
        self._init = jax.jit(jax.vmap(partial(one.init, config, generator)))
        self._advance = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0, 0, None)), donate_argnums=2)
        self._enlarge = jax.jit(jax.vmap(enlarge))

    def __call__(
        self,
        images: Array,
        targets: Array,
        keys: Array,
        on_step: Callable[[int], None] = lambda number: None,
    ) -> Optimized:
        """Optimise the masks of a batch.

        Args:
            images: normalised, ``(n, H, W, C)``.
            targets: classes, ``(n,)``.
            keys: PRNG keys, ``(n,)``.
            on_step: called with the number of finished steps.

        Returns:
            The outcome.
        """
        params = self.classifier.params
        references = self._refer(params, images, targets)
        init_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        state = self._init(init_keys)
        for number in range(self.config.steps):
            state = self._advance(params, references, state, step_keys, number)
            if number % SYNCHRONIZE == 0:  # or the loop would run ahead of the device
                state.area.block_until_ready()
            on_step(number + 1)
        masks, logits = self._enlarge(state.logits)
        names = one.culprits(self.config)
        failures = [
            f"{names[culprit]} is not finite at step {failed}" if failed >= 0 else None
            for failed, culprit in zip(state.failed.tolist(), state.culprit.tolist(), strict=True)
        ]
        return Optimized(np.array(masks), np.array(logits), np.asarray(state.area) < 1, failures)
