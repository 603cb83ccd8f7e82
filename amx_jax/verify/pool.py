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
    said: list[tuple[float, float]]  # margin and probability of every candidate judged so far
    candidates: list[Any] = field(default_factory=list)  # of the present wave
    heard: int = 0  # how many of the answers are of earlier waves

    @property
    def answered(self) -> int:
        """How many candidates of the present wave have an answer."""
        return min(len(self.said) - self.heard, len(self.candidates))


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
        self._said: dict[Hashable, list[tuple[float, float]]] = {}

    def add(self, owner: Hashable, search: Search, said: Sequence[Sequence[float]] = ()) -> None:
        """Begin a search, or go on with one.

        Args:
            owner: what the judge is told of its candidates, and :meth:`advance` of its outcome.
            search: not begun.
            said: what :meth:`said` returned of the same search elsewhere: nobody is asked that again.
        """
        self._said[owner] = [(margin, probability) for margin, probability in said]
        self._go_on(owner, _Active(search, self._said[owner]), None)

    def said(self, owner: Hashable) -> np.ndarray:
        """The answers that a search has had, ``(k, 2)``: margins and probabilities."""
        return np.array(self._said[owner]).reshape(-1, 2)

    def forget(self, owner: Hashable) -> None:
        """Drop the answers of a search that has ended."""
        del self._said[owner]

    def __len__(self) -> int:
        """How many searches have no outcome yet."""
        return len(self._active) + len(self._done)

    @property
    def waiting(self) -> int:
        """How many candidates wait to be judged."""
        return sum(len(a.candidates) - a.answered for a in self._active.values())

    def advance(self) -> list[tuple[Any, Any]]:
        """Judge one batch, of the oldest searches first.

        Returns:
            Owner and outcome of each search that ended.
        """
        owners: list[Hashable] = []
        masks: list[Any] = []
        for owner, active in self._active.items():
            some = active.candidates[active.answered :][: self._batch_size - len(masks)]
            owners += [owner] * len(some)
            masks += some
        if masks:
            judged = self._judge(owners, masks)
            for owner, margin, probability in zip(owners, *judged, strict=True):
                self._said[owner].append((margin, probability))
            for owner in dict.fromkeys(owners):
                active = self._active[owner]
                if active.answered == len(active.candidates):
                    self._go_on(owner, active, self._answers(active))
        done, self._done = self._done, []
        return done

    def drain(self) -> Iterator[tuple[Any, Any]]:
        """Judge until every search has ended."""
        while len(self):
            yield from self.advance()

    def _go_on(self, owner: Hashable, active: _Active, answers: Judged | None) -> None:
        """Give a search its answers, and those to what it asks next as far as they are known."""
        # In its place in the order: the oldest search ends first.
        self._active[owner] = active
        try:
            while True:
                send = active.search.send
                active.candidates = send(answers) if answers is not None else next(active.search)
                if active.answered < len(active.candidates):
                    return
                answers = self._answers(active)  # of an empty wave, none
        except StopIteration as stop:
            del self._active[owner]
            self._done.append((owner, stop.value))

    def _answers(self, active: _Active) -> Judged:
        """Those to the present wave, which is then a past one."""
        wave = active.said[active.heard :][: len(active.candidates)]
        active.heard += len(wave)
        active.candidates = []
        values = np.array(wave).reshape(-1, 2)
        return Judged(values[:, 0], values[:, 1])
