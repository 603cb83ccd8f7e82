"""One explanation for each instance: disjoint masks, each of which alone keeps the decision."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax import Classifier, Config, Explainer, Preprocess, Weights
from amx_jax.errors import ConfigError
from amx_jax.instances import Window, apart, explain_instances, windows
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.pool import Judged

SIDE, SPOT = 32, 4
CONFIG = Config(
    generator="grid",
    grid=8,
    objective=Weights(activation=0.0),
    steps=8,
    cell=4,
    trials=2,
    batch_size=2,
    controls=0,
)


def spots(image) -> jnp.ndarray:
    """How bright the brightest 4 × 4 square of each colour is, from 0 for gray to 1."""
    squares = image.reshape(SIDE // SPOT, SPOT, SIDE // SPOT, SPOT, 3).mean(axis=(1, 3))
    return squares.max(axis=(0, 1))


def seeing(apply, labels) -> Classifier:
    preprocess = Preprocess(size=SIDE, resize=SIDE, mean=127.0, scale=128.0)
    return Classifier(apply=apply, params=(), preprocess=preprocess, labels=labels)


@pytest.fixture(scope="module")
def explainer():
    """Of a classifier whose classes are *nothing* and, for a spot of the colour, *red* and *blue*."""

    def apply(params, image):
        red, _, blue = spots(image)
        return 8 * jnp.stack([0.5, red, blue])

    return Explainer(seeing(apply, ("nothing", "red", "blue")), CONFIG)


def photo(**places) -> np.ndarray:
    """Gray with spots: colour=[(row, column), …] in units of a spot."""
    pixels = np.full((SIDE, SIDE, 3), 127, np.uint8)
    for channel, colour in enumerate(("red", "green", "blue")):
        for row, column in places.get(colour, []):
            pixels[SPOT * row : SPOT * (row + 1), SPOT * column : SPOT * (column + 1), channel] = 250
    return pixels


def where(mask) -> list[tuple[int, int]]:
    """The spots that a mask keeps pixels of."""
    rows, columns = np.nonzero(mask)
    return sorted({(int(r) // SPOT, int(c) // SPOT) for r, c in zip(rows, columns, strict=True)})


def test_each_of_two_instances_has_its_own_mask(explainer):
    pixels = photo(red=[(1, 1), (6, 5)])
    [found] = explain_instances(explainer, [pixels])
    masks = [one.explanation.mask for one in found]
    assert sorted(where(mask)[0] for mask in masks) == [(1, 1), (6, 5)]
    assert all(len(where(mask)) == 1 for mask in masks)  # the certificate's own word: 1-minimal
    assert not (masks[0] & masks[1]).any()
    for one, mask in zip(found, masks, strict=True):
        kept = np.where(mask[..., None], pixels, 127)
        assert spots((jnp.asarray(kept) - 127.0) / 128.0)[0] > 0.5
        assert one.explanation.label == "red" and one.explanation.certificate.minimal
        assert not (mask & ~one.window.mask(SIDE)).any()


def test_a_single_instance_has_one_mask_however_many_are_asked_for(explainer):
    [found] = explain_instances(explainer, [photo(red=[(3, 2)])], most=5)
    assert [where(one.explanation.mask) for one in found] == [[(3, 2)]]


def test_no_more_are_found_than_were_asked_for(explainer):
    pixels = photo(red=[(1, 1), (6, 5), (1, 6)])
    [found] = explain_instances(explainer, [pixels], most=2)
    assert len(found) == 2
    [found] = explain_instances(explainer, [pixels])
    assert len(found) == 3


def test_several_classes_have_masks_of_their_own(explainer):
    pixels = photo(red=[(1, 1)], blue=[(5, 6)])
    [found] = explain_instances(explainer, [pixels], classes=2)
    places = {one.explanation.label: where(one.explanation.mask) for one in found}
    assert places == {"red": [(1, 1)], "blue": [(5, 6)]}
    [found] = explain_instances(explainer, [pixels], ["blue"])
    assert [one.explanation.label for one in found] == ["blue"]


def test_photos_come_in_order_each_with_its_own(explainer):
    photos = [photo(red=[(1, 1), (6, 5)]), photo(blue=[(4, 4)]), photo(red=[(0, 7)])]
    found = list(explain_instances(explainer, photos))
    labels = [[one.explanation.label for one in each] for each in found]
    assert labels == [["red", "red"], ["blue"], ["red"]]


def test_where_no_window_will_do_the_whole_photo_is_explained():
    def apply(params, image):  # *full* where nearly all pixels are bright
        return jnp.stack([0.8, image.mean()]) * 9

    explainer = Explainer(seeing(apply, ("empty", "full")), CONFIG)
    [[one]] = explain_instances(explainer, [np.full((SIDE, SIDE, 3), 255, np.uint8)])
    assert one.window is None and one.explanation.label == "full"
    assert one.explanation.certificate.sufficient and one.explanation.mask.mean() > 0.75


def test_only_windows_that_make_the_classifier_as_sure_as_the_photo_show_instances():
    def apply(params, image):
        red, _, blue = spots(image)
        return jnp.stack([jnp.array(4.0), 8 * red, 8 * blue, *[jnp.array(3.0)] * 12])

    explainer = Explainer(seeing(apply, tuple("ABCDEFGHIJKLMNO")), CONFIG)
    bright, dim = (1, 1), (6, 5)
    pixels = photo(red=[bright, dim])
    row, column = (SPOT * place for place in dim)
    pixels[row : row + SPOT, column : column + SPOT, 0] = 127 + 83  # the top class: 0.38 to 0.88

    def places(**asked) -> list:
        [found] = explain_instances(explainer, [pixels], ["B"], **asked)
        return sorted(where(one.explanation.mask)[0] for one in found if one.window)

    assert places() == [bright]
    assert places(sure=0) == places(rivals=["A"]) == [bright, dim]
    pixels[SPOT : 2 * SPOT, SPOT : 2 * SPOT] = 127
    assert places() == places(sure=1) == [dim]  # the photo says no more


def test_masks_that_are_to_be_necessary_are_refused(explainer):
    necessary = Explainer(explainer.classifier, replace(CONFIG, goal="necessary"))
    with pytest.raises(ConfigError, match="goal: found necessary, expected sufficient"):
        next(explain_instances(necessary, [photo()]))


@settings(deadline=None, max_examples=50)
@given(st.integers(8, 260), st.integers(1, 16))
def test_windows_lie_in_the_input_share_no_cell_unless_they_overlap_and_cover_it(size, cell):
    cell = min(cell, size // 4)
    covered = np.zeros((size, size), bool)
    for window in windows(size, cell):
        assert window.top % cell == window.left % cell == window.side % cell == 0
        assert 0 < window.side <= min(size - window.top, size - window.left)
        covered |= window.mask(size)
    whole_cells = size // cell * cell
    assert covered[:whole_cells, :whole_cells].all()


boxes = st.builds(Window, st.integers(0, 12), st.integers(0, 12), st.integers(1, 8))


@given(boxes, boxes)
def test_overlap_is_a_shared_pixel(one, other):
    assert one.overlaps(other) == bool((one.mask(20) & other.mask(20)).any())


@given(st.lists(st.tuples(boxes, st.floats(-1, 1), st.floats(0, 1)), max_size=12))
def test_of_the_windows_that_hold_none_is_left_that_would_still_fit(found):
    squares = [box for box, _, _ in found]
    judged = Judged(np.array([m for _, m, _ in found]), np.array([p for _, _, p in found]))
    taken = list(apart(squares, judged))
    for i, one in enumerate(taken):
        assert judged.margins[squares.index(one)] > MARGIN or squares.count(one) > 1
        assert not any(one.overlaps(other) for other in taken[:i])
    for square, margin in zip(squares, judged.margins, strict=True):
        assert margin <= MARGIN or any(square.overlaps(other) for other in taken)
