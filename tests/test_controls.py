"""The controls of a certificate: planted classifiers of which it is known what gives the label."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from amx_jax.lift import Devices
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.controls import (
    MOST_KEPT,
    MOST_LEAKED,
    RETRIES,
    displaced,
    scattered,
    shape_leakage,
    specificity,
)
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.prune import components

SIDE, CELL, GRAY = 24, 4, 127


def rng(seed=0):
    return np.random.default_rng(seed)


def rectangle(top, left, bottom, right, side=SIDE):
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return mask


PATCH = rectangle(4, 12, 12, 16)  # 8 × 4 pixels, two cells
RING = rectangle(4, 4, 20, 20) & ~rectangle(8, 8, 16, 16)
PHOTO = rng(1).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
OTHERS = rng(2).integers(256, size=(40, SIDE, SIDE, 3), dtype=np.uint8)


def planted(has_label):
    """A classifier that is known: has the image, composed on gray, the label?"""

    def ask(images, masks):
        seen = [np.where(m[..., None], x, GRAY) for x, m in zip(images, masks, strict=True)]
        return np.array([1.0 if has_label(x) else -1.0 for x in seen])

    return ask


def shows_the_patch(image):
    """The label is the photo's content at one place."""
    return (image == PHOTO)[PATCH].all()


def shows_some_pixels(image):
    """The label is that anything at all is there."""
    return (image != GRAY).any()


def has_a_ring(image):
    """The label is an outline: neighbours differ across the border of the ring and nowhere else."""
    return all(
        (np.diff(image.astype(int), axis=axis) != 0).any(-1).tolist()
        == np.diff(RING, axis=axis).tolist()
        for axis in (0, 1)
    )


def has_the_silhouette_of_a_ring(image):
    """The label is a silhouette: what is not gray is the ring, whatever it shows."""
    return ((image != GRAY).any(-1) == RING).all()


# --- displaced ------------------------------------------------------------------------------------


def places(mask):
    """Every one of its places on the torus, by brute force: coordinates moved one by one."""
    side = len(mask)
    points = np.argwhere(mask).tolist()
    found = set()
    for mirror, swap, down, right in itertools.product(
        (1, -1), (False, True), range(side), range(side)
    ):
        for mirror_too in (1, -1):
            moved = []
            for i, j in points:
                i, j = (j, i) if swap else (i, j)
                moved.append(((mirror * i + down) % side, (mirror_too * j + right) % side))
            found.add(frozenset(moved))
    return found


def pixels_of(mask):
    return frozenset(map(tuple, np.argwhere(mask).tolist()))


SMALL = {
    "asymmetric": rectangle(0, 0, 4, 1, side=6) | rectangle(0, 1, 1, 3, side=6),
    "square": rectangle(1, 1, 3, 3, side=4),
    "stripes": np.indices((4, 4))[0] % 2 == 0,
    "checkerboard": np.indices((4, 4)).sum(0) % 2 == 0,
    "all but one": ~rectangle(0, 0, 1, 1, side=4),
}


@pytest.mark.parametrize("name", SMALL)
def test_displaced_masks_reach_every_place_of_the_shape_but_its_own_and_no_other(name):
    mask = SMALL[name]
    before = mask.copy()
    found = displaced(mask, 3000, rng())
    assert len(found) == 3000
    assert {pixels_of(other) for other in found} == places(mask) - {pixels_of(mask)}
    np.testing.assert_array_equal(mask, before)


def test_a_shape_without_symmetry_has_eight_places_an_offset():
    assert len(places(SMALL["asymmetric"])) == 8 * 6**2


def test_places_are_equally_likely():
    found = displaced(SMALL["square"], 15_000, rng())  # 16 places, one of them its own
    counts = np.unique([pixels.ravel() for pixels in found], axis=0, return_counts=True)[1]
    assert len(counts) == 15
    assert ((counts - 1000) ** 2 / 1000).sum() < 36  # chi-square of 14 degrees, p = 0.001


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_that_looks_the_same_everywhere_has_no_other_place(value):
    mask = np.full((SIDE, SIDE), value)
    assert displaced(mask, 5, rng()) == scattered(mask, CELL, 5, rng()) == []


def test_a_checkerboard_has_one_other_place_and_all_displaced_masks_are_it():
    """The hardest case for the retries: every second draw is the mask itself."""
    mask = SMALL["checkerboard"]
    assert 2.0**-RETRIES * 1000 < 1e-6
    assert all((other == ~mask).all() for other in displaced(mask, 1000, rng()))


def test_overlap_with_the_mask_is_its_area_on_average():
    shares = [(other & RING).sum() / RING.sum() for other in displaced(RING, 2000, rng())]
    assert np.mean(shares) == pytest.approx(RING.mean(), abs=0.02)


# --- scattered ------------------------------------------------------------------------------------


def masks_of_any_area():
    smooth = ndimage.gaussian_filter(rng().normal(size=(6, SIDE, SIDE)), (0, 3, 3))
    blobs = [blob > level for blob, level in zip(smooth, np.linspace(-0.2, 0.2, 6), strict=True)]
    return [*blobs, PATCH, RING, rectangle(0, 0, 1, 1), ~rectangle(0, 0, 1, 1)]


@pytest.mark.parametrize("cell", [1, CELL, 5, 7])  # 24 is no multiple of 5 or 7
def test_scattered_masks_are_whole_cells_of_the_masks_area_to_within_one(cell):
    for mask in masks_of_any_area():
        found = scattered(mask, cell, 20, rng())
        assert len(found) == 20
        for other in found:
            assert abs(int(other.sum()) - int(mask.sum())) < cell**2
            assert 0 < other.sum() < other.size
            assert not np.array_equal(other, mask)
            for top, left in itertools.product(range(0, SIDE, cell), repeat=2):
                assert len(np.unique(other[top : top + cell, left : left + cell])) == 1


def test_scattered_masks_of_whole_cells_have_the_very_same_area_and_every_cell_its_turn():
    found = scattered(PATCH, CELL, 2000, rng())
    assert {int(other.sum()) for other in found} == {int(PATCH.sum())}
    share = np.mean(found, axis=0)
    assert abs(share - 2 / 36).max() < 0.02


def test_scattered_masks_are_in_more_pieces_than_the_shape():
    found = scattered(RING, CELL, 50, rng())
    assert np.mean([components(other) for other in found]) > 2 > components(RING)


# --- specificity ----------------------------------------------------------------------------------


def test_a_classifier_of_one_patch_is_specific():
    found = specificity(planted(shows_the_patch), PHOTO, PATCH, CELL, 100, rng())
    assert found == (True, (0, 100), (0, 100), True)


def test_a_classifier_that_any_pixel_satisfies_is_not():
    found = specificity(planted(shows_some_pixels), PHOTO, PATCH, CELL, 100, rng())
    assert found == (True, (100, 100), (100, 100), False)


def test_a_mask_beside_the_patch_does_not_keep_its_own_label():
    found = specificity(planted(shows_the_patch), PHOTO, np.roll(PATCH, 1, 0), CELL, 100, rng())
    assert not found.own and not found.holds


def test_kept_masks_are_those_that_contain_the_patch():
    """A mask much larger than what is needed: wrong ones contain it too, and are counted."""
    large = ~rectangle(0, 0, 4, 4)
    found = specificity(planted(shows_the_patch), PHOTO, large, CELL, 200, rng(3))
    counting = rng(3)  # the same draws
    for count, masks in (
        (found.displaced, displaced(large, 200, counting)),
        (found.scattered, scattered(large, CELL, 200, counting)),
    ):
        assert count == (sum(other[PATCH].all() for other in masks), 200)
        assert count[0] > 100
    assert found.own and not found.holds


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("trials", [10, 20, 30, 70])
def test_a_tenth_of_either_kind_may_keep_the_label_and_not_one_more(kind, trials):
    assert MOST_KEPT == 0.1
    for kept, holds in ((trials // 10, True), (trials // 10 + 1, False)):
        margins = -np.ones(1 + 2 * trials)
        margins[0] = 1
        margins[1 + kind * trials :][:kept] = 1
        found = specificity(lambda *_, m=margins: m, PHOTO, PATCH, CELL, trials, rng())
        assert found[1 + kind] == (kept, trials) and found[2 - kind] == (0, trials)
        assert found.holds == holds


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_without_another_place_has_no_trials_and_is_not_called_specific(value):
    found = specificity(planted(lambda _: True), PHOTO, np.full((SIDE, SIDE), value), CELL, 9, rng())
    assert found == (True, (0, 0), (0, 0), False)


def test_a_tie_is_no_label():
    tied = specificity(lambda _, masks: np.full(len(masks), MARGIN), PHOTO, PATCH, CELL, 9, rng())
    assert tied == (False, (0, 9), (0, 9), False)


# --- leakage of the shape -------------------------------------------------------------------------


def test_a_classifier_of_content_at_a_place_leaks_nothing():
    found = shape_leakage(planted(shows_the_patch), PATCH, OTHERS, 60, rng())
    assert found == ((0, 60), (0, 40), False)


def test_a_classifier_of_outlines_leaks_in_every_image_of_two_colours():
    found = shape_leakage(planted(has_a_ring), RING, OTHERS, 60, rng())
    assert found == ((60, 60), (0, 40), True)  # noise within the ring has edges elsewhere


def test_a_classifier_of_silhouettes_leaks_in_every_other_photo():
    found = shape_leakage(planted(has_the_silhouette_of_a_ring), RING, OTHERS, 60, rng())
    assert found == ((0, 60), (40, 40), True)  # two colours are nowhere gray


def test_the_outline_of_another_mask_does_not_leak():
    for has_label in (has_a_ring, has_the_silhouette_of_a_ring):
        assert shape_leakage(planted(has_label), PATCH, OTHERS, 60, rng()) == ((0, 60), (0, 40), False)


def test_other_photos_of_the_class_are_left_out():
    others = OTHERS.copy()
    others[::4] = PHOTO  # these keep the label through the mask, by right
    found = shape_leakage(planted(shows_the_patch), PATCH, others, 5, rng())
    assert found.photos == (0, 30) and not found.flagged
    of_class = shape_leakage(planted(shows_the_patch), PATCH, others[::4], 5, rng())
    assert of_class.photos == (0, 0) and not of_class.flagged


def test_without_other_photos_there_are_only_constants():
    found = shape_leakage(planted(has_a_ring), RING, OTHERS[:0], 7, rng())
    assert found == ((7, 7), (0, 0), True)


def test_a_bare_background_with_the_label_leaks_through_an_empty_mask():
    empty = np.zeros((SIDE, SIDE), bool)
    found = shape_leakage(planted(lambda x: (x == GRAY).all()), empty, OTHERS, 7, rng())
    assert found == ((0, 7), (40, 40), True)


def test_a_constant_shows_one_colour_inside_the_mask_and_another_outside():
    asked = []

    def ask(images, masks):
        asked.extend(zip(images, masks, strict=True))
        return -np.ones(len(images))

    shape_leakage(ask, RING, OTHERS[:0, ..., :1], 200, rng())
    inside, outside = (np.array([x[region] for x, _ in asked]) for region in (RING, ~RING))
    assert all(x.dtype == np.uint8 and x.shape == (SIDE, SIDE, 1) and m.all() for x, m in asked)
    assert (inside == inside[:, :1]).all() and (outside == outside[:, :1]).all()
    for colours in (inside[:, 0, 0], outside[:, 0, 0]):
        assert np.histogram(colours, 4, (0, 256))[0].min() > 30
    assert abs(np.corrcoef(inside[:, 0, 0], outside[:, 0, 0])[0, 1]) < 0.2


@pytest.mark.parametrize("trials", [19, 20, 40])
def test_a_twentieth_may_leak_and_not_one_more(trials):
    assert MOST_LEAKED == 0.05
    for leaked, flagged in ((trials // 20, False), (trials // 20 + 1, True)):
        margins = np.where(np.arange(trials) < leaked, 1.0, -1.0)
        constants = shape_leakage(lambda *_, m=margins: m, RING, OTHERS[:0], trials, rng())
        assert constants == ((leaked, trials), (0, 0), flagged)

        def through_the_mask(_, masks, m=margins):
            return -np.ones(len(masks)) if masks[0].all() else m

        photos = shape_leakage(through_the_mask, RING, OTHERS[:trials], 3, rng())
        assert photos == ((0, 3), (leaked, trials), flagged)


# --- both -----------------------------------------------------------------------------------------


def test_the_same_draws_give_the_same_controls():
    for control in (
        lambda seed: displaced(RING, 9, rng(seed)),
        lambda seed: scattered(RING, CELL, 9, rng(seed)),
    ):
        np.testing.assert_array_equal(control(5), control(5))
        assert not np.array_equal(control(5), control(6))


def test_a_real_classifier_is_asked_through_the_evaluator(tiny, photos):
    """Each count recomputed, one mask at a time, from pixels composed here."""
    evaluator, target = Evaluator(tiny, (GRAY,) * 3, 8, Devices()), 2

    def ask(images, masks):
        found = [
            evaluator.judge(images[i : i + 8], [target] * len(images[i : i + 8]), masks[i : i + 8])
            for i in range(0, len(masks), 8)
        ]
        return np.concatenate([some.margins for some in found])

    def keeps(image, mask):
        seen = np.where(mask[..., None], image, GRAY).astype(np.float32)
        logits = np.asarray(tiny.apply(tiny.params, tiny.preprocess.normalize(seen))[0], float)
        return logits[target] - np.delete(logits, target).max() > MARGIN

    mask, photo = rectangle(8, 4, 20, 20, side=32), photos[0]
    found = specificity(ask, photo, mask, 4, 15, rng())
    again = rng()
    assert found.own == keeps(photo, mask)
    assert found.displaced[0] == sum(keeps(photo, m) for m in displaced(mask, 15, again))
    assert found.scattered[0] == sum(keeps(photo, m) for m in scattered(mask, 4, 15, again))
    whole = np.ones_like(mask)
    assert 0 < found.displaced[0] < 15 and 0 < found.scattered[0] < 15  # both outcomes were compared
    foreign = [other for other in photos[1:] if not keeps(other, whole)]
    leaked = shape_leakage(ask, mask, photos[1:], 15, rng()).photos
    assert leaked == (sum(keeps(other, mask) for other in foreign), len(foreign))
    assert 0 < leaked[0] < leaked[1] < 5


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 4)), "found float64"),
        (np.ones((4, 5), bool), r"\(4, 5\), expected bool and square"),
    ],
)
def test_masks_that_are_not_bool_and_square_are_refused(mask, message):
    for control in (
        lambda: displaced(mask, 1, rng()),
        lambda: scattered(mask, 1, 1, rng()),
        lambda: shape_leakage(planted(has_a_ring), mask, OTHERS, 1, rng()),
    ):
        with pytest.raises(ValueError, match=message):
            control()


def test_no_trials_and_photos_of_another_size_are_refused():
    ask = planted(has_a_ring)
    with pytest.raises(ValueError, match="count: found 0, expected at least 1"):
        specificity(ask, PHOTO, RING, CELL, 0, rng())
    with pytest.raises(ValueError, match="count: found 0, expected at least 1"):
        shape_leakage(ask, RING, OTHERS, 0, rng())
    with pytest.raises(ValueError, match=r"others: found \(40, 23, 24, 3\), expected \(n, 24, …\)"):
        shape_leakage(ask, RING, OTHERS[:, 1:], 1, rng())
