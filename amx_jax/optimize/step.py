"""One step of one image: evaluate the hard mask, move the generator, keep the best mask so far.

Pure and free of batches: :mod:`amx_jax.lift` makes batches of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from amx_jax.config import Config, Weights
from amx_jax.masks.backgrounds import Scene, draw
from amx_jax.masks.generators import Generator, Params
from amx_jax.masks.hardening import (
    annealed_mask,
    budget_threshold,
    hard_mask,
    soft_mask,
    straight_through_mask,
)
from amx_jax.objective.decision import MARGIN, Head, margin
from amx_jax.objective.objective import Reference, evaluate_terms, weighted_sum

Classify = Callable[[Array], tuple[Array, dict[str, Array]]]
START = 0.75  # the first budget: nearly every photo can spare a quarter, and the others get it back
MULTIPLIERS = 1e-3, 1e3  # the area's, least and most: from farther away it would not be back in time
NO_TERM = Weights(**dict.fromkeys(Weights.__dataclass_fields__, 0.0))


class Problem(NamedTuple):
    """What stays the same from step to step; everything of one image.

    Attributes:
        reference: what the explanation is measured against.
        seen: the generator's view of the image.
        key: data of the PRNG key of the random backgrounds, uint32.
    """

    reference: Reference
    seen: Array
    key: Array


class State(NamedTuple):
    """What changes from step to step; everything of one image.

    Attributes:
        number: steps taken.
        params: of the mask generator.
        optimizer: Optax's state.
        budget: share of the grid that is kept; where ``config.dual`` is above 0, what multiplies the
            weight of the area instead, from 1 on.
        area: kept share of the pixels of the best mask so far; 1 while there is none.
        logits: ``(grid, grid)``, positive where the best mask keeps; while there is none those of the
            last step, raised to be positive everywhere.
        improved: the step after which the area last fell by ``config.progress`` since then.
        mark: the area at that step.
        failed: step at which a term or gradient was not finite, or −1.
        culprit: which one, an index into :func:`culprits`.
    """

    number: Array
    params: Params
    optimizer: Any
    budget: Array
    area: Array
    logits: Array
    improved: Array
    mark: Array
    failed: Array
    culprit: Array


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam; its rate falls from ``config.learning_rate`` to a tenth along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.1))


def culprits(config: Config) -> tuple[str, ...]:
    """The names of what can be not finite, in the order in which it is looked for."""
    weights = config.objective
    return (*(n for n in weights.__dataclass_fields__ if getattr(weights, n) != 0), "gradient")


def pose(config: Config, generator: Generator, reference: Reference, key: Array) -> Problem:
    """The problem of one image.

    Args:
        config: static.
        generator: static.
        reference: of the image.
        key: of its random backgrounds.
    """
    return Problem(reference, generator.see(reference.image), jax.random.key_data(key))


def init(config: Config, generator: Generator, key: Array) -> State:
    """The state before the first step: no mask yet."""
    params = generator.init(key)
    # Not Python numbers: with weak types the second step would compile anew.
    zero, one, none = jnp.zeros((), jnp.int32), jnp.ones(()), jnp.full((), -1, jnp.int32)
    return State(
        number=zero,
        params=params,
        optimizer=make_optimizer(config).init(params),
        budget=one if config.dual else START * one,
        area=one,
        logits=jnp.ones((config.grid, config.grid)),
        improved=zero,
        mark=one,
        failed=none,
        culprit=none,
    )


def finished(config: Config, state: State) -> Array:
    """The stopping rule of one image.

    It has taken ``config.steps`` steps; or it has a sufficient mask, and in ``config.patience`` steps
    the area has not fallen by the share ``config.progress``; or a value was not finite.
    """
    stuck = (state.area < 1) & (state.number - state.improved >= config.patience)
    return (state.number >= config.steps) | (state.failed >= 0) | (stuck & (config.patience > 0))


def step(
    config: Config,
    generator: Generator,
    classify: Classify,
    limits: tuple[Array, Array, Array],
    problem: Problem,
    state: State,
    head: Head = "softmax",
    others: Array | None = None,
) -> State:
    """Advance one image by one step.

    Where the notion is not plain the explanation stands on a random background, another in each step,
    of one of ``config.kinds``; so does, on one of its own, what the robustness term sees.

    Of an annealed mask the hard one of the same logits is judged, kept and reported: one forward pass
    more.

    With ``config.dual`` = η above 0 the step ascends in the multiplier λ of the area, the dual of
    *least area subject to the notion*: λ grows by 1 + η while the hard mask holds, and falls by that
    where it breaks, by (1 + η)^(1/δ − 1) where a share δ may: Platt and Barr (1988), with factors in
    place of sums.

    Args:
        config: static.
        generator: static.
        classify: f with its parameters bound, ``(H, W, C) -> (logits, activations)``.
        limits: background, lowest and highest value, each ``(C,)`` in the classifier's input space.
        problem: of the image.
        state: before the step.
        head: static; how logits become probabilities.
        others: other photos for backgrounds that show them, ``(n, H, W, C)``.

    Returns:
        The state after the step; where a value was not finite, the state before it but for ``number``,
        ``failed`` and ``culprit``.
    """
    reference, image = problem.reference, problem.reference.image
    shape = (image.shape[0], image.shape[1])
    background, low, high = limits
    annealed = config.hardening == "annealed"
    plain = config.notion == "plain"
    key = jax.random.fold_in(jax.random.wrap_key_data(problem.key), state.number)

    def drawn(key: Array) -> Array:
        kind_key, key = jax.random.split(key)
        kind = jax.random.randint(kind_key, (), 0, len(config.kinds))
        photos = jnp.zeros((0, *image.shape)) if others is None else others
        return draw(config.kinds, kind, key, Scene(image, low, high, photos))

    sampled = drawn(key) if config.objective.robustness else background
    if not plain:
        background = drawn(jax.random.fold_in(key, 1))

    def objective(params: Params) -> tuple[Array, tuple]:
        logits = generator.apply(params, problem.seen)
        if config.budget:
            logits -= jax.lax.stop_gradient(budget_threshold(logits, state.budget))
        if annealed:
            mask = annealed_mask(logits, shape, config.temperature, state.number, config.steps)
        else:
            mask = straight_through_mask(logits, shape, config.temperature)
        soft = soft_mask(logits, config.temperature)
        values, scores = evaluate_terms(
            config.objective, classify, reference, mask, soft, background, sampled, head
        )
        weighed = values | {"area": state.budget * values["area"]} if config.dual else values
        return weighted_sum(config.objective, weighed), (values, scores, logits)

    gradient, (values, scores, logits) = jax.grad(objective, has_aux=True)(state.params)
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer, state.params)
    if annealed:
        hard = hard_mask(logits, shape).astype(jnp.float32)
        _, scores = evaluate_terms(NO_TERM, classify, reference, hard, hard, background, sampled, head)
    sufficient = margin(scores, reference.decision) > MARGIN
    holds, breaks = config.shrink, config.grow
    least, most = 1.0 / config.grid**2, 1.0
    if config.dual:
        holds, breaks = 1 + config.dual, 1 / (1 + config.dual)
        least, most = MULTIPLIERS
    if not plain:  # a share delta of the steps' backgrounds may fail where it settles
        breaks = holds ** (1 - 1 / config.delta)
    area = jnp.mean(hard_mask(logits, shape), dtype=jnp.float32)
    # One lucky background says little: the last mask that held, not the smallest.
    better = sufficient & ((area < state.area) if plain else True)
    # Without a mask that held all pixels stay, in the order that has been learnt so far.
    everywhere = logits - jnp.min(logits) + 1
    progressed = better & (area <= (1 - config.progress) * state.mark)
    factor = jnp.where(sufficient, holds, breaks)
    number = state.number + 1

    checked = [*(jnp.isfinite(values[n]) for n in culprits(config)[:-1]), _all_finite(gradient)]
    finite = jnp.stack(checked)
    fails = ~finite.all()
    after = State(
        number=number,
        params=optax.apply_updates(state.params, updates),
        optimizer=optimizer,
        budget=jnp.clip(state.budget * factor, least, most),
        area=jnp.where(better, area, state.area),
        logits=jnp.where(better, logits, jnp.where(state.area < 1, state.logits, everywhere)),
        improved=jnp.where(progressed, number, state.improved),
        mark=jnp.where(progressed, area, state.mark),
        failed=state.failed,
        culprit=state.culprit,
    )
    # Nothing that is not finite enters the state.
    kept = jax.tree.map(lambda old, new: jnp.where(fails, old, new), state, after)
    return kept._replace(
        number=number,
        failed=jnp.where(fails, state.number, state.failed),
        culprit=jnp.where(fails, jnp.argmin(finite), state.culprit),
    )


def _all_finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
