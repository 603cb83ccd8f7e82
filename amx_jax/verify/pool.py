"""Many searches at once: their candidates share full batches.

A search is a coroutine for one image. It yields a list of candidate masks, any number of them, receives
what the classifier says of each, and at last returns its outcome. It knows nothing of classifiers,
batches or other searches, so its outcome depends on its own image only.
"""

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np


class Judged(NamedTuple):
    """What the classifier says of some masks, ``(k,)`` each.

    Attributes:
        margins: of the target, see :func:`amx_jax.objective.decision.margin`.
        probabilities: of the target.
    """

    margins: np.ndarray
    probabilities: np.ndarray


T = TypeVar("T")
Search = Generator[list[Any], Judged, T]
# (owner of each candidate, candidates) -> what the classifier says of them
Judge = Callable[[Sequence[Any], Sequence[Any]], Judged]


@dataclass
class _Active:
    search: Search
    candidates: list[Any]
    margins: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)


class Pool:
    """Searches under way.

    Args:
        judge: asks the classifier.
        batch_size: candidates that it is asked about at once, at most.
    """

    def __init__(self, judge: Judge, batch_size: int):
        self._judge, self._batch_size = judge, batch_size
        self._active: dict[Hashable, _Active] = {}
        self._done: list[tuple[Hashable, Any]] = []

    def add(self, owner: Hashable, search: Search) -> None:
        """Begin a search.

        Args:
            owner: what the judge is told of its candidates, and :meth:`advance` of its outcome.
            search: not begun.
        """
        self._send(owner, search, None)

    def __len__(self) -> int:
        """How many searches have no outcome yet."""
        return len(self._active) + len(self._done)

    @property
    def waiting(self) -> int:
        """How many candidates wait to be judged."""
        return sum(len(a.candidates) - len(a.margins) for a in self._active.values())

    def advance(self) -> list[tuple[Any, Any]]:
        """Judge one batch, of the oldest searches first.

        Returns:
            Owner and outcome of each search that ended.
        """
        owners: list[Hashable] = []
        masks: list[Any] = []
        for owner, active in self._active.items():
            some = active.candidates[len(active.margins) :][: self._batch_size - len(masks)]
            owners += [owner] * len(some)
            masks += some
        if masks:
            judged = self._judge(owners, masks)
            for owner, margin, probability in zip(owners, *judged, strict=True):
                self._active[owner].margins.append(margin)
                self._active[owner].probabilities.append(probability)
            for owner in dict.fromkeys(owners):
                active = self._active[owner]
                if len(active.margins) == len(active.candidates):
                    values = Judged(np.array(active.margins), np.array(active.probabilities))
                    self._send(owner, active.search, values)
        done, self._done = self._done, []
        return done

    def drain(self) -> Iterator[tuple[Any, Any]]:
        """Judge until every search has ended."""
        while len(self):
            yield from self.advance()

    def _send(self, owner: Hashable, search: Search, values: Judged | None) -> None:
        try:
            candidates = search.send(values) if values is not None else next(search)
            while not candidates:  # nothing asked, nothing to wait for
                candidates = search.send(Judged(np.zeros(0), np.zeros(0)))
        except StopIteration as stop:
            self._active.pop(owner, None)
            self._done.append((owner, stop.value))
        else:
            # In its place in the order: the oldest search ends first.
            self._active[owner] = _Active(search, candidates)
