"""How the mask of one photo came to be: looked at while it is explained, not computed again."""

from typing import NamedTuple

import numpy as np

from amx_jax.errors import ConfigError
from amx_jax.explainer import Explainer, Photo, Stream
from amx_jax.explanation import Explanation, Unexplained
from amx_jax.masks.hardening import hard_mask
from amx_jax.optimize.loop import BURST, Optimized


class Frame(NamedTuple):
    """A mask on the way to an explanation.

    Attributes:
        name: ``step`` and how many steps the optimiser had taken; ``top share`` where the search began
            with another mask than its last; ``pruned``; where nothing was pruned, ``final``.
        mask: bool ``(H, W)``: the smallest sufficient one of those steps (where the notion is not plain
            the last that held), all true while there is none; or the mask of that name.
    """

    name: str
    mask: np.ndarray


class Evolution(NamedTuple):
    """An explanation and the masks that led to it.

    Attributes:
        frames: in order; the mask of the last is the explanation's.
        explanation: the same, to the bit, as without looking.
    """

    frames: list[Frame]
    explanation: Explanation | Unexplained


def evolution(
    explainer: Explainer,
    photo: Photo,
    every: int = BURST,
    target: int | str | None = None,
    rival: int | str | None = None,
) -> Evolution:
    """Explain a photo and keep the optimiser's hard mask every so many steps.

    Args:
        explainer: whose method is ``amx``.
        photo: as of :meth:`amx_jax.Explainer.__call__`.
        every: steps between two masks. The optimiser can be looked at after every fourth step; where
            that does not divide ``every``, the masks are of the next step at which it can.
        target: class, or None for the top class.
        rival: class that it is compared with, or None.

    Raises:
        ConfigError: a method that takes no steps, or ``every`` below 1.

    Examples:
        >>> from amx_jax import Config, load_classifier
        >>> explainer = Explainer(load_classifier(), Config(steps=6, trials=2, cell=28, batch_size=1))
        >>> frames, explanation = evolution(explainer, np.full((224, 224, 3), 127, np.uint8))
        >>> [frame.name for frame in frames]
        ['step 0', 'step 4', 'step 6', 'pruned']
    """
    config = explainer.config
    if config.method != "amx":
        raise ConfigError(f"method: found {config.method}, expected amx; only it takes steps")
    if every < 1:
        raise ConfigError(f"every: found {every}, expected at least 1")
    side = explainer.classifier.preprocess.size
    frames = [Frame("step 0", np.ones((side, side), bool))]
    seen = 0
    optimized: Optimized | None = None

    def look(phase: str, work: float) -> None:
        nonlocal seen, optimized
        if optimized is not None:
            return
        # Of the repetitions by other seeds the first is the explanation.
        arrays = stream.under_way().get((0, 0))
        found = stream._optimizer.unpack(arrays) if arrays and stream._optimizer else None
        if isinstance(found, Optimized):
            optimized = found
            frames.append(Frame(f"step {found.steps}", found.mask))
        elif found is not None and int(found.number) >= seen + every:
            seen = int(found.number)
            frames.append(Frame(f"step {seen}", np.asarray(hard_mask(found.logits, (side, side)))))

    stream = Stream(explainer, [photo], [target], look, [rival])
    [(_, explanation)] = stream
    if isinstance(explanation, Explanation):
        if not np.array_equal(explanation.optimized_mask, frames[-1].mask):
            frames.append(Frame("top share", explanation.optimized_mask))
        frames.append(Frame("pruned" if config.prune else "final", explanation.mask))
    return Evolution(frames, explanation)
