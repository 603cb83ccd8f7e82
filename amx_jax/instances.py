"""One explanation for each instance: disjoint masks, each of which alone keeps the decision.

A 1-minimal mask is a few pixels of the most telling object, and what is left of that object may still
decide; so leaving out the pixels of one mask does not lead to the next object. Windows do: squares of
several sizes are shown alone, and of those that keep the decision the smallest are taken, none
overlapping another. Each then gets the search and the certificate of a whole photo, with masks that
keep pixels of its window only.

A small window can keep the class by chance, as what is left of the photo says little of any class. So
one counts as an instance only where the classifier is about as sure of it as of the photo
(``sure``): of the masks found in all windows that keep the class, half lie in one object, with that
two in three, and fewer objects have one (benchmarks/README.md).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np

from amx_jax.config import SURE
from amx_jax.errors import ConfigError
from amx_jax.explainer import Explainer, Photo
from amx_jax.explanation import Explanation, Unexplained
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Judged

SIDES = (0.25, 0.375, 0.5, 0.75)  # of the windows, as shares of the input's side
STEPS = 4  # windows begin at every fourth part of their side


class Window(NamedTuple):
    """A square of the classifier's input.

    Attributes:
        top: first row.
        left: first column.
        side: in pixels.
    """

    top: int
    left: int
    side: int

    def mask(self, size: int) -> np.ndarray:
        """Bool ``(size, size)``, true inside."""
        mask = np.zeros((size, size), bool)
        mask[self.top : self.top + self.side, self.left : self.left + self.side] = True
        return mask

    def overlaps(self, other: "Window") -> bool:
        """Whether they share a pixel."""
        apart = (
            self.top >= other.top + other.side
            or other.top >= self.top + self.side
            or self.left >= other.left + other.side
            or other.left >= self.left + self.side
        )
        return not apart


def windows(size: int, cell: int) -> list[Window]:
    """Squares of several sizes all over the input, the smallest first.

    Args:
        size: side of the input, in pixels.
        cell: side of the pruning cell; edges lie on its multiples or on the input's border, so that no
            cell is in two windows.

    Examples:
        >>> found = windows(224, 8)
        >>> len(found), found[0], found[-1]
        (278, Window(top=0, left=0, side=56), Window(top=56, left=56, side=168))
    """
    found = []
    for share in SIDES:
        side = min(max(round(share * size / cell), 1), size // cell) * cell
        stride = max(round(side / STEPS / cell), 1) * cell
        starts = sorted({*range(0, size - side, stride), (size - side) // cell * cell})
        found += [Window(top, left, side) for top in starts for left in starts]
    return found


def apart(found: Sequence[Window], judged: Judged, taken: Sequence[Window] = ()) -> Iterator[Window]:
    """Windows that keep the decision and do not overlap: small ones first, then the most probable.

    Args:
        found: the windows.
        judged: what the classifier says of each, shown alone.
        taken: those that they may not overlap either.

    Examples:
        >>> large, small = Window(0, 0, 8), Window(0, 4, 4)
        >>> list(apart([large, small], Judged(np.array([2.0, 1.0]), np.array([0.9, 0.5]))))
        [Window(top=0, left=4, side=4)]
    """
    taken = list(taken)
    holding = [i for i in range(len(found)) if judged.margins[i] > MARGIN]
    for i in sorted(holding, key=lambda i: (found[i].side, -judged.probabilities[i])):
        if not any(found[i].overlaps(other) for other in taken):
            taken.append(found[i])
            yield found[i]


class Part(NamedTuple):
    """What of a photo is explained by itself.

    Attributes:
        target: the class.
        window: where; None for the whole photo.
    """

    target: int
    window: Window | None


def parts(
    explainer: Explainer,
    pixels: np.ndarray,
    target: int | str | None = None,
    rival: int | str | None = None,
    most: int = 0,
    classes: int = 1,
    sure: float = SURE,
) -> list[Part]:
    """Where a photo shows a class, as often as windows apart from each other say so.

    Args:
        explainer: of the classifier.
        pixels: its input, uint8 ``(size, size, channels)``.
        target: the class, or None for the most probable ones.
        rival: class that each is compared with, as of :meth:`Explainer.__call__`.
        most: parts of each class, at most; 0 for all.
        classes: how many of the most probable classes, where no target is given.
        sure: the least probability of the class in a window, as a share of that in the photo. Where a
            rival is named, only which of the two is the more probable counts.

    Returns:
        Disjoint parts; the whole photo alone where no window is one of the first class.
    """
    size = explainer.classifier.preprocess.size
    squares = windows(size, explainer.cell)
    masks = [*(square.mask(size) for square in squares), np.ones((size, size), bool)]
    asked = [target] if target is not None else explainer.top(pixels)[:classes]
    found: list[Part] = []
    for name in asked:
        decision = explainer.decision(pixels, name, rival)
        judged = explainer.judge([pixels] * len(masks), decision, masks)
        taken = [part.window for part in found if part.window]
        *shown, whole = judged.probabilities
        probability = dict(zip(squares, shown, strict=True))
        least = sure * whole if rival is None else 0.0
        # Not the other way about: a larger window, in place of those that are not sure, shows more
        # than one object.
        new = (window for window in apart(squares, judged, taken) if probability[window] >= least)
        found += [Part(decision.target, window) for window in islice(new, most or None)]
        if not found:
            return [Part(decision.target, None)]
    return found


class Instance(NamedTuple):
    """One of a photo's explanations.

    Attributes:
        explanation: of the part.
        window: of which it keeps pixels; None for the whole photo.
    """

    explanation: Explanation | Unexplained
    window: Window | None


def explain_instances(
    explainer: Explainer,
    images: Iterable[Photo],
    targets: Iterable[int | str | None] | None = None,
    on_progress: Callable[[str, float], None] = lambda phase, work: None,
    rivals: Iterable[int | str | None] | None = None,
    most: int = 0,
    classes: int = 1,
    sure: float = SURE,
) -> Iterator[list[Instance]]:
    """Explain each photo by disjoint masks, each of which alone keeps the decision.

    Args:
        explainer: that explains them.
        images: as of :meth:`Explainer.stream`.
        targets: likewise.
        on_progress: likewise; counts photos.
        rivals: likewise.
        most: masks of each class, at most; 0 for all there are.
        classes: how many of the most probable classes are explained where no target is given.
        sure: the least probability of the class in a window that shows an instance, as a share of that
            in the photo; at 0 there are more masks, of which fewer lie in one object.

    Yields:
        For each photo its explanations: those whose certificate says that the mask holds; where none
        does, the one that was tried first. Where no window shows an instance, one of the whole photo.

    Raises:
        ConfigError: the goal is not *sufficient*: a part is not to be necessary for the whole.

    Examples:
        >>> from amx_jax import Config, load_classifier
        >>> explainer = Explainer(load_classifier(), Config(steps=3, trials=2, cell=28, batch_size=1))
        >>> gray = np.full((224, 224, 3), 127, np.uint8)
        >>> [[first, *_]] = explain_instances(explainer, [gray], most=1, sure=0)
        >>> first.window.side, first.explanation.certificate.sufficient
        (56, True)
    """
    if explainer.config.goal != "sufficient":
        raise ConfigError(
            f"goal: found {explainer.config.goal}, expected sufficient: a photo with several instances "
            "keeps its class without any one of them"
        )
    planned: deque[list[Part]] = deque()
    # What the image that was just drawn is asked.
    now: tuple[Part, int | str | None] = Part(0, None), None

    def images_of_parts() -> Iterator[np.ndarray]:
        nonlocal now
        asked = targets or repeat(None), rivals or repeat(None)
        for image, target, rival in zip(images, *asked, strict=False):
            pixels = explainer.input(image)
            planned.append(parts(explainer, pixels, target, rival, most, classes, sure))
            for part in planned[-1]:
                now = part, rival
                yield pixels

    def each(what: Callable[[], object]) -> Iterator:
        while True:
            yield what()

    def show(phase: str, work: float) -> None:
        on_progress(phase, work * len(planned) / max(sum(map(len, planned)), 1))

    size = explainer.classifier.preprocess.size
    stream = explainer.stream(
        images_of_parts(),
        each(lambda: now[0].target),
        show,
        each(lambda: now[1]),
        each(lambda: now[0].window and now[0].window.mask(size)),
    )
    found: list[Instance] = []
    for explanation in stream:
        found.append(Instance(explanation, planned[0][len(found)].window))
        if len(found) == len(planned[0]):
            planned.popleft()
            yield [one for one in found if _holds(one.explanation)] or found[:1]
            found = []


def _holds(explanation: Explanation | Unexplained) -> bool:
    return isinstance(explanation, Explanation) and explanation.certificate.holds
