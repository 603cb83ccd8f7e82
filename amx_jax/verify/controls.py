"""Controls of a certificate: what must not give the label.

A mask that keeps its photo's label says where the evidence is only if other places do not keep it too
(:func:`specificity`), and says that the pixels did it only if its outline alone does not
(:func:`shape_leakage`). Knows nothing of classifiers or of how masks are found.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.prune import cell_map

# (images, uint8 (H, W, C) each; masks, bool (H, W) each) -> the decision's margins (n,), for any n, on
# the stated colour: the label is there where a margin exceeds MARGIN. An all-true mask is the image.
Ask = Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]
Count = tuple[int, int]  # how many of how many trials

MOST_KEPT = 0.1  # share of wrong masks of one kind that may keep the label
MOST_LEAKED = 0.05  # share of trials of one kind in which a mask's shape may give the label
LEAST_STABLE = 0.5  # mean IoU of the masks of several seeds
# Draws for one wrong mask. The places of a mask that has more than one are visited equally often, so a
# draw gives the mask itself at most every second time: 32 in a row never happen.
RETRIES = 32


class Specificity(NamedTuple):
    """Whether it is this mask that keeps the label, and not any like it.

    Attributes:
        own: the mask keeps its photo's label.
        displaced: wrong masks of the same shape, ``(kept, trials)``.
        scattered: wrong masks of random cells, ``(kept, trials)``.
        holds: ``own``, there were wrong masks of both kinds, and of each at most a share ``MOST_KEPT``
            kept the label.
    """

    own: bool
    displaced: Count
    scattered: Count
    holds: bool


class Leakage(NamedTuple):
    """Whether a mask gives the label by its shape.

    Attributes:
        constants: images of two colours, ``(leaked, trials)``.
        photos: other photos through the mask, ``(leaked, trials)``.
        flagged: of either, more than a share ``MOST_LEAKED`` had the label.
    """

    constants: Count
    photos: Count
    flagged: bool


class Controls(NamedTuple):
    """What was controlled of one mask; None where it was not.

    Attributes:
        specificity: against wrong masks.
        leakage: of its shape.
        stability: mean IoU with the masks of other seeds, 0 … 1.
    """

    specificity: Specificity | None = None
    leakage: Leakage | None = None
    stability: float | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """What speaks against the mask, in words; empty where nothing does.

        Examples:
            >>> Controls(stability=0.1).flags
            ('other seeds find other masks (IoU 0.10)',)
        """
        flags = []
        if self.specificity is not None and not self.specificity.holds:
            wrong = self.specificity.displaced, self.specificity.scattered
            kept, trials = (sum(column) for column in zip(*wrong, strict=True))
            if not self.specificity.own:
                reason = "the mask itself loses the decision on the stated colour"
            elif not trials:
                reason = "no other mask is like it"
            else:
                reason = f"{kept} of {trials} wrong masks keep the decision too"
            flags.append(f"not specific: {reason}")
        if self.leakage is not None and self.leakage.flagged:
            leaks = {"two colours": self.leakage.constants, "other photos": self.leakage.photos}
            said = " and ".join(f"{hits} of {n} {what}" for what, (hits, n) in leaks.items() if hits)
            flags.append(f"the shape leaks: it gives {said} the decision")
        if self.stability is not None and self.stability < LEAST_STABLE:
            flags.append(f"other seeds find other masks (IoU {self.stability:.2f})")
        return tuple(flags)


def displaced(mask: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The same shape elsewhere: turned or mirrored, then rolled around.

    Each is one of the square's 8 symmetries and an offset in pixels along either axis, all equally
    likely, drawn again where it gives the mask itself. What leaves on one side comes in on the other:
    the area is the very same, and a shape may be cut by the border. Draws are independent: a place may
    come twice. It may also overlap the mask: of one that keeps a share a of the image, by a on average.

    Args:
        mask: bool ``(H, H)``.
        count: how many.
        rng: draws them.

    Returns:
        bool ``(H, H)`` each, none equal to the mask. None at all of a mask that looks the same
        everywhere, as an all-true or an empty one.

    Raises:
        ValueError: a mask that is not bool or not square.

    Examples:
        >>> corner = np.array([[True, False], [False, False]])
        >>> [int(other.sum()) for other in displaced(corner, 3, np.random.default_rng(0))]
        [1, 1, 1]
        >>> displaced(np.ones((2, 2), bool), 3, np.random.default_rng(0))
        []
    """
    mask = _square(mask)

    def draw() -> np.ndarray:
        turns, mirrored, *offsets = (int(rng.integers(n)) for n in (4, 2, *mask.shape))
        turned = np.rot90(mask.T if mirrored else mask, turns)
        return np.roll(turned, offsets, axis=(0, 1))

    return _wrong(mask, draw, count)


def scattered(mask: np.ndarray, cell: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random cells of about the mask's area.

    Cells join in random order up to the number that comes nearest to the area: at least one, and not
    all of them. The areas differ by less than one cell; by nothing where the mask consists of whole
    cells and the side is a multiple of them.

    Args:
        mask: bool ``(H, H)``.
        cell: side of the squares, in pixels.
        count: how many.
        rng: draws them.

    Returns:
        bool ``(H, H)`` each, none equal to the mask; independent draws. None at all of an all-true or
        an empty mask: no other has their area.

    Raises:
        ValueError: a mask that is not bool or not square.

    Examples:
        >>> corner = np.array([[True, False], [False, False]])
        >>> [int(other.sum()) for other in scattered(corner, 1, 3, np.random.default_rng(0))]
        [1, 1, 1]
    """
    mask = _square(mask)
    if mask.all() or not mask.any():
        return []
    cells = cell_map((mask.shape[0], mask.shape[1]), cell)
    areas = np.bincount(cells.ravel())

    def draw() -> np.ndarray:
        order = rng.permutation(len(areas))
        nearest = np.argmin(np.abs(np.cumsum(areas[order]) - mask.sum())) + 1
        return np.isin(cells, order[: min(nearest, max(len(areas) - 1, 1))])

    return _wrong(mask, draw, count)


def specificity(
    ask: Ask, pixels: np.ndarray, mask: np.ndarray, cell: int, count: int, rng: np.random.Generator
) -> Specificity:
    """Whether the mask keeps its photo's label and wrong masks of its size do not.

    A mask without another place (all-true, empty) has no trials, and then it does not hold: what was
    never tested is not claimed. The larger the mask, the more a displaced one overlaps it, and the more
    it says of the photo, not of the mask, if many keep the label. The threshold is one for all
    classifiers: among few classes wrong masks have the label by chance (of two, every second), and
    hardly any mask is specific.

    Args:
        ask: the decision's margins, on the stated colour.
        pixels: the photo, uint8 ``(H, H, C)``.
        mask: bool ``(H, H)``.
        cell: side of the squares of the scattered masks, in pixels.
        count: wrong masks of each kind, at least 1; below 10 a single one that keeps the label is too
            many.
        rng: draws them.

    Returns:
        How many keep the label, and whether the mask is specific.

    Raises:
        ValueError: as of :func:`displaced`; no trials.

    Examples:
        >>> def ask(images, masks):  # sees nothing but the upper left pixel
        ...     return np.array([1.0 if mask[0, 0] else -1.0 for mask in masks])
        >>> photo, corner = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)
        >>> corner[0, 0] = True
        >>> specificity(ask, photo, corner, 1, 20, np.random.default_rng(0))
        Specificity(own=True, displaced=(0, 20), scattered=(0, 20), holds=True)
    """
    _at_least_one(count)
    elsewhere = displaced(mask, count, rng)
    masks = [mask, *elsewhere, *scattered(mask, cell, count, rng)]
    own, *wrong = _labelled(ask, [pixels] * len(masks), masks)
    kinds = wrong[: len(elsewhere)], wrong[len(elsewhere) :]
    first, second = ((sum(kept), len(kept)) for kept in kinds)
    few = [trials > 0 and kept <= MOST_KEPT * trials for kept, trials in (first, second)]
    return Specificity(own, first, second, own and all(few))


def shape_leakage(
    ask: Ask, mask: np.ndarray, others: np.ndarray, count: int, rng: np.random.Generator
) -> Leakage:
    """Whether the mask's shape gives the label without its photo.

    Two kinds of trials. *Constants*: an image of one random colour inside the mask and another outside,
    uniform over all colours, which holds nothing but the outline (nor that, where the mask is all-true
    or empty). A label that bare colours have leaks as well, shape or no shape: it needs no photo, and
    among few classes each has some colours. *Photos*: each
    other photo through the mask, on the stated colour; one whose own decision holds is of the class,
    may have the label by right, and is left out.

    With fewer than 20 trials of a kind one that leaks is enough for the flag, and none that leaks says
    little: 20 without one are still in keeping with a share of up to 17 %
    (:func:`amx_jax.verify.bounds.clopper_pearson`). A kind without trials raises no flag.

    Args:
        ask: the decision's margins, on the stated colour.
        mask: bool ``(H, H)``.
        others: other photos, uint8 ``(n, H, H, C)``; n may be 0. Each is a trial, or left out.
        count: images of two colours, at least 1.
        rng: draws them.

    Returns:
        How many had the label, and whether the shape is flagged.

    Raises:
        ValueError: a mask that is not bool or not square, photos of another size, no trials.

    Examples:
        >>> def ask(images, masks):  # the mean of what is seen, on black
        ...     return np.array([(x * m[..., None]).mean() - 127 for x, m in zip(images, masks)])
        >>> left, gray = np.eye(2, dtype=bool), np.full((5, 2, 2, 3), 100, np.uint8)
        >>> shape_leakage(ask, left, gray, 1, np.random.default_rng(0)).photos
        (0, 5)
    """
    mask = _square(mask)
    _at_least_one(count)
    if others.ndim != 4 or others.shape[1:3] != mask.shape:
        raise ValueError(f"others: found {others.shape}, expected (n, {mask.shape[0]}, …) as the mask")
    colours = rng.integers(256, size=(2, count, 1, 1, others.shape[-1]), dtype=np.uint8)
    constants = np.where(mask[..., None], *colours)
    whole = np.ones_like(mask)
    leaked = _labelled(ask, constants, [whole] * count)
    themselves = _labelled(ask, others, [whole] * len(others))
    foreign = [photo for photo, own in zip(others, themselves, strict=True) if not own]
    through = _labelled(ask, foreign, [mask] * len(foreign))
    first, second = ((sum(found), len(found)) for found in (leaked, through))
    flagged = any(hits > MOST_LEAKED * trials for hits, trials in (first, second))
    return Leakage(first, second, flagged)


def _wrong(mask: np.ndarray, draw: Callable[[], np.ndarray], count: int) -> list[np.ndarray]:
    """As many draws as asked that differ from the mask, or fewer where there are none."""
    found: list[np.ndarray] = []
    while len(found) < count:
        tries = (draw() for _ in range(RETRIES))
        other = next((drawn for drawn in tries if not np.array_equal(drawn, mask)), None)
        if other is None:
            break
        found.append(other)
    return found


def _labelled(ask: Ask, images: Iterable[np.ndarray], masks: list[np.ndarray]) -> list[bool]:
    return [bool(margin > MARGIN) for margin in ask(list(images), masks)] if masks else []


def _square(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise ValueError(f"mask: found {mask.dtype} {mask.shape}, expected bool and square")
    return mask


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ValueError(f"count: found {count}, expected at least 1")
