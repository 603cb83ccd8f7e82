"""One step of one image: evaluate the hard mask, move the generator, keep the best mask so far.

Pure and free of batches: :mod:`amx_jax.optimize.loop` lifts it with ``vmap``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from amx_jax.config import Config
from amx_jax.masks.composition import blur, sample_background
from amx_jax.masks.generators import Generator, Params
from amx_jax.masks.hardening import (
    budget_threshold,
    hard_mask,
    soft_mask,
    straight_through_mask,
)
from amx_jax.objective.decision import MARGIN, margin
from amx_jax.objective.objective import Reference, evaluate_terms, weighted_sum

Classify = Callable[[Array], tuple[Array, dict[str, Array]]]
BLUR_SIGMA = 1 / 20  # of the input's side


class State(NamedTuple):
    """What changes from step to step; everything of one image.

    Attributes:
        params: of the mask generator.
        optimizer: Optax's state.
        budget: share of the grid that is kept.
        area: kept share of the pixels of the best mask so far; 1 while there is none.
        logits: ``(grid, grid)``, positive where the best mask keeps.
        failed: step at which a term or gradient was not finite, or −1.
        culprit: which one, an index into :func:`culprits`.
    """

    params: Params
    optimizer: Any
    budget: Array
    area: Array
    logits: Array
    failed: Array
    culprit: Array


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam; its rate falls from ``config.learning_rate`` to a tenth along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.1))


def culprits(config: Config) -> tuple[str, ...]:
    """The names of what can be not finite, in the order in which it is looked for."""
    weights = config.objective
    return (*(n for n in weights.__dataclass_fields__ if getattr(weights, n) != 0), "gradient")


def init(config: Config, generator: Generator, key: Array) -> State:
    """The state before the first step: a full budget and no mask yet."""
    params = generator.init(key)
    return State(
        params=params,
        optimizer=make_optimizer(config).init(params),
        budget=jnp.ones(()),
        area=jnp.ones(()),
        logits=jnp.ones((config.grid, config.grid)),
        # int32 as after a step: with weak integers the second step would compile anew.
        failed=jnp.full((), -1, jnp.int32),
        culprit=jnp.full((), -1, jnp.int32),
    )


def step(
    config: Config,
    generator: Generator,
    classify: Classify,
    limits: tuple[Array, Array, Array],
    reference: Reference,
    state: State,
    key: Array,
    number: Array,
) -> State:
    """Advance one image by one step.

    Args:
        config: static.
        generator: static.
        classify: f with its parameters bound, ``(H, W, C) -> (logits, activations)``.
        limits: background, lowest and highest value, each ``(C,)`` in the classifier's input space.
        reference: of the image.
        state: before the step.
        key: of this image's random backgrounds.
        number: of the step, from 0.

    Returns:
        The state after the step; unchanged if this image has failed.
    """
    image = reference.image
    shape = (image.shape[0], image.shape[1])
    background, low, high = limits
    sampled = background
    if config.objective.robustness:
        blurred = blur(image, BLUR_SIGMA * shape[0])
        sampled = sample_background(jax.random.fold_in(key, number), image, blurred, low, high)

    def objective(params: Params) -> tuple[Array, tuple]:
        logits = generator.apply(params, image)
        if config.budget:
            logits -= jax.lax.stop_gradient(budget_threshold(logits, state.budget))
        mask = straight_through_mask(logits, shape, config.temperature)
        soft = soft_mask(logits, config.temperature)
        values, scores = evaluate_terms(
            config.objective, classify, reference, mask, soft, background, sampled
        )
        return weighted_sum(config.objective, values), (values, scores, logits)

    gradient, (values, scores, logits) = jax.grad(objective, has_aux=True)(state.params)
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer, state.params)
    sufficient = margin(scores, reference.target) > MARGIN
    area = jnp.mean(hard_mask(logits, shape), dtype=jnp.float32)
    better = sufficient & (area < state.area)
    factor = jnp.where(sufficient, config.shrink, config.grow)
    least = 1.0 / config.grid**2

    checked = [*(jnp.isfinite(values[n]) for n in culprits(config)[:-1]), _all_finite(gradient)]
    finite = jnp.stack(checked)
    fails = (state.failed < 0) & ~finite.all()
    after = State(
        params=optax.apply_updates(state.params, updates),
        optimizer=optimizer,
        budget=jnp.clip(state.budget * factor, least, 1.0),
        area=jnp.where(better, area, state.area),
        logits=jnp.where(better, logits, state.logits),
        failed=jnp.full((), -1),
        culprit=jnp.full((), -1),
    )
    # A failed image stands still, so that nothing not finite enters its state.
    stopped = fails | (state.failed >= 0)
    kept = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), state, after)
    return kept._replace(
        failed=jnp.where(fails, number, state.failed),
        culprit=jnp.where(fails, jnp.argmin(finite), state.culprit),
    )


def _all_finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
