"""The optimisation of many images: a fixed number of slots, each with an image of its own.

An image enters a free slot, every call of :meth:`Optimizer.advance` moves all slots by a few steps, and
an image that meets its stopping rule leaves its slot to the next. Shapes never change, so nothing
compiles twice; and a slot's steps depend on nothing but its image.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import BLOCK, Classifier
from amx_jax.config import Config
from amx_jax.lift import Devices
from amx_jax.masks.composition import resize
from amx_jax.masks.generators import Generator, autoencoder, free_grid
from amx_jax.masks.hardening import hard_mask
from amx_jax.objective.decision import Decision, ask
from amx_jax.objective.objective import Reference
from amx_jax.optimize import step as one

BURST = 4  # steps in one call


class Optimized(NamedTuple):
    """The outcome for one image.

    Attributes:
        decision: what had to hold, of Python numbers.
        mask: the smallest hard mask that was sufficient at some step, bool ``(H, W)``; all true where
            there was none.
        logits: its logits at the same resolution, ``(H, W)``: an order of the pixels.
        steps: how many it took.
        failure: why the optimisation stopped early, or None.
    """

    decision: Decision
    mask: np.ndarray
    logits: np.ndarray
    steps: int
    failure: str | None


def make_generator(config: Config, channels: int) -> Generator:
    """The generator that the configuration names."""
    if config.generator == "autoencoder":
        return autoencoder(channels, config.grid, config.free_gain)
    return free_grid(config.grid, config.free_gain)


def image_keys(seed: int, name: Array | int) -> tuple[Array, Array, Array]:
    """The three keys of an image: of its optimisation, its certificate and its search's backgrounds.

    Args:
        seed: of the run.
        name: a uint32 that stands for the image, whatever its place in the run.
    """
    optimization, certificate, search = jax.random.split(
        jax.random.fold_in(jax.random.key(seed), name), 3
    )
    return optimization, certificate, search


class Optimizer:
    """The slots of one classifier and configuration.

    Args:
        classifier: f.
        config: how to search.
        devices: that share the slots.
        others: as of :func:`pure_functions`.

    Attributes:
        count: how many slots there are.
        free: those without an image, in the order in which they are best filled.
    """

    def __init__(
        self,
        classifier: Classifier,
        config: Config,
        devices: Devices,
        others: Array | None = None,
    ):
        self.classifier, self.config = classifier, config
        self.count = devices.slots(config.batch_size)
        self._devices = devices
        self._params = devices.replicate(classifier.params)
        self._make(*pure_functions(classifier, config, others=others))

    def _make(self, enter: Callable, advance: Callable) -> None:
        devices, side = self._devices, self.classifier.preprocess.size

        def put(
            params: Any, entering: tuple, index: Array, state: one.State | None, slots: tuple
        ) -> tuple:
            """On the device that holds the slot, and on no other, fill it."""
            mine, local = devices.owner(index, self.count)

            def fill() -> tuple:
                problem, begun = enter(params, *entering)
                entered = problem, begun if state is None else state
                update = jax.lax.dynamic_update_index_in_dim
                return jax.tree.map(lambda old, new: update(old, new, local, 0), slots, entered)

            return jax.lax.cond(mine, fill, lambda: slots)

        def enlarge(logits: Array) -> tuple[Array, Array]:
            return hard_mask(logits, (side, side)), resize(logits, (side, side))

        self._put = devices.spread(put, shared=4, donate=(4,))
        self._advance = devices.lift(advance, donate=(2,))
        self._enlarge = jax.jit(enlarge)
        self._shapes = shapes_of_one(self.classifier, enter)
        self._order = devices.in_turn(self.count)
        self.free = list(self._order)

    @cached_property
    def slots(self) -> tuple[one.Problem, one.State]:
        """Of every slot, on the devices; no memory before the first use."""
        problem, state = jax.tree.map(
            lambda leaf: jnp.zeros((self.count, *leaf.shape), leaf.dtype), self._shapes
        )
        # A slot that has taken all its steps stands still: it has no image.
        idle = jnp.full(self.count, self.config.steps, jnp.int32)
        return self._devices.split((problem, state._replace(number=idle)))

    def emptied(self) -> "Optimizer":
        """The same compiled functions with slots of their own, all free."""
        twin = copy.copy(self)
        twin.__dict__.pop("slots", None)
        twin.free = list(self._order)
        return twin

    def put(
        self,
        pixels: np.ndarray,
        target: int | None,
        name: int,
        rival: int | None = None,
        state: one.State | None = None,
    ) -> int:
        """Put an image into a free slot.

        Args:
            pixels: uint8 ``(H, W, C)``.
            target: class, or None for the classifier's top class.
            name: as for :func:`image_keys`.
            rival: the class that it is compared with, or None for what the head says.
            state: where its optimisation stood, as :meth:`states` said it; at the start by default.

        Returns:
            The slot.
        """
        slot = self.free.pop(0)
        asked = (np.int32(-1 if index is None else index) for index in (target, rival))
        entering = (pixels, *asked, np.uint32(name))
        self.slots = self._put(self._params, entering, np.int32(slot), state, self.slots)
        return slot

    def advance(self) -> np.ndarray:
        """Move every image by a few steps, fewer where it meets its stopping rule.

        Returns:
            The share of its steps that each slot's image has taken, ``(slots,)``; 1 where it is
            finished.
        """
        problem, state = self.slots
        state = self._advance(self._params, problem, state)
        self.slots = problem, state
        number, area, improved, mark, failed = jax.device_get(
            (state.number, state.area, state.improved, state.mark, state.failed)
        )
        shown = state._replace(number=number, area=area, improved=improved, mark=mark, failed=failed)
        done = np.asarray(one.finished(self.config, shown))
        return np.where(done, 1.0, number / self.config.steps)

    def states(self, slots: Iterable[int]) -> list[one.State]:
        """Where the optimisation of some slots stands, as NumPy arrays of one image each."""
        state = jax.device_get(self.slots[1])
        return [jax.tree.map(lambda leaf, i=slot: np.array(leaf[i]), state) for slot in slots]

    def pack(self, under_way: one.State | Optimized) -> list[np.ndarray]:
        """A state, or an outcome, as arrays that can be written anywhere."""
        return [np.asarray(leaf) for leaf in jax.tree.leaves(under_way)]

    def unpack(self, arrays: Sequence[np.ndarray]) -> one.State | Optimized | None:
        """What :meth:`pack` packed; None where that was of another classifier or configuration."""
        side = self.classifier.preprocess.size
        flags = np.zeros((side, side), bool), np.zeros((side, side), np.float32)
        outcome = Optimized(Decision(0, 0, 0.0), *flags, 0, None)
        for like in (self._shapes[1], outcome):
            leaves, structure = jax.tree.flatten(like)
            wanted = [(np.shape(leaf), np.result_type(leaf).kind) for leaf in leaves]
            if wanted == [(array.shape, array.dtype.kind) for array in arrays]:
                found = jax.tree.unflatten(structure, arrays)
                return found if isinstance(found, one.State) else _of_python(found)
        return None

    def compiled_text(self) -> str:
        """The compiled program of :meth:`advance`, for those who want to look at it."""
        return self._advance.lower(self._params, *self.slots).compile().as_text()

    def take(self, slot: int) -> Optimized:
        """The outcome of a slot's image; the slot is free again."""
        problem, state = self.slots
        decision, number, logits, failed, culprit = jax.device_get(
            (problem.reference.decision, state.number, state.logits, state.failed, state.culprit)
        )
        mask, enlarged = self._enlarge(logits[slot])
        names = one.culprits(self.config)
        failure = None
        if failed[slot] >= 0:
            failure = f"{names[culprit[slot]]} is not finite at step {failed[slot]}"
        self.free = sorted([*self.free, slot], key=self._order.index)
        return Optimized(
            Decision(*(value[slot].item() for value in decision)),
            np.array(mask),
            np.array(enlarged),
            int(number[slot]),
            failure,
        )


def _of_python(found: Optimized) -> Optimized:
    """The same with numbers in place of arrays without axes."""
    decision = Decision(*(np.asarray(value).item() for value in found.decision))
    return found._replace(decision=decision, steps=int(found.steps))


def shapes_of_one(classifier: Classifier, enter: Callable) -> tuple[one.Problem, one.State]:
    """What ``enter`` of :func:`pure_functions` returns for one image, as shapes without data."""
    image = jax.ShapeDtypeStruct(classifier.preprocess.shape, jnp.uint8)
    index, name = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.uint32))
    return jax.eval_shape(enter, classifier.params, image, index, index, name)


def look(
    classifier: Classifier, threshold: float, params: Any, pixels: Array, target: Array, rival: Array
) -> Reference:
    """What the classifier says of an image, and the decision that is asked about.

    Args:
        classifier: f; static.
        threshold: of a sigmoid head; static.
        params: of f.
        pixels: uint8 ``(H, W, C)``.
        target: class, or −1 for the top class.
        rival: the class it is compared with, or −1 for what the head says.

    Returns:
        The image normalised, the decision, the logits and all activations.
    """
    image = classifier.preprocess.normalize(pixels.astype(jnp.float32))
    with jax.default_matmul_precision("highest"):
        logits, activations = classifier.apply(params, image)
    decision = ask(classifier.head, threshold, logits, target, rival)
    return Reference(image, decision, logits, activations)


def pure_functions(
    classifier: Classifier, config: Config, burst: int = BURST, others: Array | None = None
) -> tuple[Callable, Callable]:
    """What happens to one image, as pure functions.

    Args:
        classifier: f.
        config: how to search.
        burst: steps that ``advance`` takes, at most.
        others: other photos for backgrounds that show them, normalised ``(n, H, W, C)``.

    Returns:
        ``enter(params, pixels, target, rival, name) -> (problem, state)``, where a target of −1 stands
        for the classifier's top class and a rival of −1 for what the head says, and
        ``advance(params, problem, state) -> state``.
    """
    preprocess = classifier.preprocess
    generator = make_generator(config, preprocess.channels)
    limits = preprocess.limits(config.background)

    def cast(leaf: Array) -> Array:
        return leaf.astype(config.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    apply = classifier.apply
    if config.remat:
        apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(BLOCK))
    stages = (config.stages or classifier.stages or ()) if config.objective.activation else ()

    def enter(
        params: Any, pixels: Array, target: Array, rival: Array, name: Array
    ) -> tuple[one.Problem, one.State]:
        reference = look(classifier, config.threshold, params, pixels, target, rival)
        reference = reference._replace(activations={s: reference.activations[s] for s in stages})
        init_key, step_key = jax.random.split(image_keys(config.seed, name)[0])
        return (
            one.pose(config, generator, reference, step_key),
            one.init(config, generator, init_key),
        )

    def advance(params: Any, problem: one.Problem, state: one.State) -> one.State:
        params = jax.tree.map(cast, params)

        def classify(image: Array) -> tuple[Array, dict[str, Array]]:
            logits, activations = apply(params, cast(image))
            return logits.astype(jnp.float32), activations

        def step(problem: one.Problem, state: one.State) -> one.State:
            return one.step(
                config, generator, classify, limits, problem, state, classifier.head, others
            )

        def more(carry: tuple[Array, one.State]) -> Array:
            return (carry[0] < burst) & ~one.finished(config, carry[1])

        def once(carry: tuple[Array, one.State]) -> tuple[Array, one.State]:
            return carry[0] + 1, step(problem, carry[1])

        return jax.lax.while_loop(more, once, (jnp.zeros((), jnp.int32), state))[1]

    return enter, advance
