"""What *holds* means for a mask: on which backgrounds, on how many of them, and of which part.

A notion turns the question *is this mask good enough?* into views of it, a background each, and asks
about few of them: the hardest first, no more once too many have failed, and none twice. Pruning and the
certificate ask through the same object, so they mean the same.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from amx_jax.config import Config
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Judged, Search

Goal = Literal["sufficient", "necessary", "complete"]
SCREEN = 12  # the hardest backgrounds, enough to say which squares are worth a whole test
STRICTER = 5  # the search may fail on this many times fewer backgrounds than the claim allows
ROUNDS = 3  # searches of one photo, each on twice the backgrounds of the one before


class View(NamedTuple):
    """A mask on one of the search's random backgrounds; a bare mask stands for the stated colour.

    Attributes:
        mask: bool ``(H, W)``.
        trial: number of the background.
    """

    mask: np.ndarray
    trial: int


class Notion:
    """When a mask of one image holds, and the order in which it is tried.

    - *plain*: on the stated colour.
    - *robust*: on all but a few of K random backgrounds; as they are a sample, fewer may fail here than
      a share δ, and the certificate judges by other backgrounds.
    - *worst*: on each of K backgrounds.

    Where ``goal`` is *necessary*, the complement must lose the decision; where *complete*, the mask
    must keep and the complement lose it on the same background. With τ above 0 the target's probability
    must besides reach τ·p(x).

    Args:
        config: ``notion``, ``delta``, ``backgrounds``, ``goal`` and ``confidence`` (τ).
        probability: p(x); matters where τ is above 0.

    Attributes:
        trials: the backgrounds' numbers, hardest first as far as is known; none for *plain*.
        allowed: on how many of them a mask may fail.

    Examples:
        >>> from amx_jax.verify.pool import Judged, Pool
        >>> def judge(owners, views):  # holds wherever at least half of the pixels are kept
        ...     return Judged(*2 * (np.array([view.mask.mean() - 0.4 for view in views]),))
        >>> notion, pool = Notion(Config(notion="worst", backgrounds=9)), Pool(judge, batch_size=4)
        >>> pool.add("photo", notion.test([np.eye(2, dtype=bool), np.zeros((2, 2), bool)]))
        >>> [(_, scores)] = pool.drain()
        >>> scores.round(1).tolist(), notion.views
        ([0.1, -0.4], 10)
    """

    def __init__(self, config: Config, probability: float = 1.0):
        self.goal: Goal = config.goal
        self.plain = config.notion == "plain"
        self._least = config.confidence * probability
        self._share = config.delta / STRICTER if config.notion == "robust" else 0.0
        self.trials = [] if self.plain else list(range(config.backgrounds))
        self.views = 0
        self._told: dict[tuple[bytes, int], float] = {}  # by mask and background

    def forget(self) -> None:
        """Ask anew from here on: a certificate takes no answer from the search."""
        self._told.clear()

    @property
    def allowed(self) -> int:
        return int(self._share * len(self.trials) + 1e-9)

    @property
    def exact(self) -> bool:
        """Whether :meth:`screen` is as good as :meth:`test`."""
        return self.plain or len(self.trials) <= SCREEN

    def extend(self) -> None:
        """Twice as many backgrounds, the new ones first: nothing was fitted to them yet."""
        count = len(self.trials)
        self.trials = [*range(count, 2 * count), *self.trials]

    def screen(self, masks: Sequence[np.ndarray]) -> Search[np.ndarray]:
        """Scores as of :meth:`test` on the hardest backgrounds alone: who fails here fails there."""
        return (yield from self._scores(masks, self.trials[:SCREEN]))

    def test(self, masks: Sequence[np.ndarray]) -> Search[np.ndarray]:
        """How well each mask holds.

        Args:
            masks: bool ``(H, W)`` each.

        Yields:
            Views, or on the stated colour masks; expects what the classifier says of them.

        Returns:
            A score for each; it holds where the score exceeds ``MARGIN``. It is the margin on the
            background that decides: the hardest but ``allowed``, of those that were tried.
        """
        return (yield from self._scores(masks, self.trials))

    def _scores(self, masks, trials):
        if self.plain:
            return (yield from self._ask(list(masks)))
        values: list[list[float]] = [[] for _ in masks]
        packed = (np.packbits(mask).tobytes() for mask in masks)
        names = [hashlib.blake2b(bits, digest_size=16).digest() for bits in packed]
        # The fewest that can refuse a candidate; then twice as many, and so on.
        alive, start, size = list(range(len(masks))), 0, self.allowed + 1
        while alive and start < len(trials):
            chunk = trials[start : start + size]
            asked = [(i, t) for i in alive for t in chunk if (names[i], t) not in self._told]
            found = yield from self._ask([View(masks[i], trial) for i, trial in asked])
            for (i, trial), value in zip(asked, found.tolist(), strict=True):
                self._told[names[i], trial] = value
            for i in alive:
                values[i] += [self._told[names[i], trial] for trial in chunk]
            alive = [i for i in alive if np.sum(np.array(values[i]) <= MARGIN) <= self.allowed]
            start, size = start + size, 2 * size
        self._learn(trials, values)
        return np.array([np.sort(v)[min(self.allowed, len(v) - 1)] for v in values])

    def _learn(self, trials: Sequence[int], values: Sequence[Sequence[float]]) -> None:
        """The hardest backgrounds first: those that refused most candidates, for they mostly refuse the
        next as well; then those with the least margin for the last candidate that met all.
        """
        full = [v for v in values if len(v) == len(self.trials)]
        if full:
            self.trials = [trials[i] for i in np.argsort(full[-1], kind="stable")]
        refused = Counter(
            trial
            for v in values
            for trial, value in zip(trials, v, strict=False)
            if value <= MARGIN and np.sum(np.array(v) <= MARGIN) > self.allowed
        )
        first = [trial for trial, _ in refused.most_common()]
        self.trials = [*first, *(trial for trial in self.trials if trial not in refused)]

    def _ask(self, views: list) -> Search[np.ndarray]:
        kept = lost = None
        if self.goal != "necessary":
            self.views += len(views)
            kept = yield views
        if self.goal != "sufficient":
            self.views += len(views)
            lost = yield [v._replace(mask=~v.mask) if isinstance(v, View) else ~v for v in views]
        return self.scores(kept, lost)

    def scores(self, kept: Judged | None, lost: Judged | None = None) -> np.ndarray:
        """What the goal makes of masks on backgrounds: above ``MARGIN`` where it is met.

        Args:
            kept: what the classifier says of the masks; not needed where the goal is *necessary*.
            lost: of their complements; not needed where it is *sufficient*.

        Returns:
            The least of the margin, of what is above τ·p(x), and of minus the complement's margin.
        """
        parts = []
        if kept is not None:
            parts.append(kept.margins)
            if self._least:
                with np.errstate(divide="ignore"):
                    # At τ = 1 the photo itself must pass: an equal probability is above by 2 MARGIN.
                    parts.append(np.log(kept.probabilities) - np.log(self._least) + 2 * MARGIN)
        if lost is not None:
            parts.append(-lost.margins)
        return np.min(parts, axis=0)
