"""Pictures of masks: kept pixels are exact, and found at a glance."""

import numpy as np
import pytest
from scipy import ndimage

from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.report.pictures import mask_picture, on_background, overlay, strip


@pytest.fixture(params=["noise", "black", "white", "yellow"])
def pixels(request):
    """Photos on which a line might be lost, the last in the line's own colour."""
    if request.param == "noise":
        return np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    colour = {"black": (0, 0, 0), "white": (255, 255, 255), "yellow": (240, 228, 66)}
    return np.broadcast_to(np.array(colour[request.param], np.uint8), (100, 120, 3))


@pytest.fixture
def mask():
    """Two regions, one of them at the border, 1 % of the pixels."""
    mask = np.zeros((100, 120), bool)
    mask[20:30, 40:48] = True
    mask[:10, 116:] = True
    return mask


def luminance(colours):
    """Relative luminance of sRGB colours, WCAG 2.2."""
    linear = np.asarray(colours) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_an_overlay_keeps_kept_pixels_and_leaves_the_photo_alone(pixels, mask):
    before = pixels.copy()
    picture = overlay(pixels, mask)
    assert picture.shape == pixels.shape and picture.dtype == np.uint8
    assert np.array_equal(picture[mask], pixels[mask])
    assert np.array_equal(pixels, before)


def test_an_overlay_has_a_closed_line_of_one_colour_around_each_region(pixels, mask):
    picture = overlay(pixels, mask)
    around = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask
    colours = np.unique(picture[around], axis=0)
    assert len(colours) == 1
    beyond = picture[~mask & ~around]
    assert (beyond == beyond[:, :1]).all()  # gray
    contrast = (luminance(colours[0]) + 0.05) / (luminance(beyond).max() + 0.05)
    assert contrast > 3  # WCAG's least for graphics; by lightness alone, whatever the hue


def test_an_overlay_dims_but_shows_what_is_removed():
    photo = np.asarray(read_photo(bundled_photos()[0]))
    gray = overlay(photo, np.zeros(photo.shape[:2], bool))[..., 0].astype(float)
    light = photo.mean(axis=-1)
    assert gray.max() < 140 and gray.mean() < light.mean()
    assert np.corrcoef(gray.ravel(), light.ravel())[0, 1] > 0.95


def test_the_line_grows_with_the_picture():
    def width(side):
        mask = np.zeros((side, side), bool)
        mask[side // 2, side // 2] = True
        row = overlay(np.zeros((side, side, 3), np.uint8), mask)[side // 2]
        return ((row != row[:, :1]).any(axis=-1)).sum() // 2

    assert [width(side) for side in (3, 224, 1000)] == [1, 1, 5]


def test_full_and_empty_masks_have_no_line(pixels):
    full = np.ones(pixels.shape[:2], bool)
    assert np.array_equal(overlay(pixels, full), pixels)
    empty = overlay(pixels, ~full)
    assert (empty == empty[..., :1]).all()


def test_on_background_replaces_the_rest_and_only_the_rest(pixels, mask):
    picture = on_background(pixels, mask, (1, 2, 250))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[mask], pixels[mask])
    assert (picture[~mask] == (1, 2, 250)).all()


def test_a_mask_picture_is_black_and_white(mask):
    picture = mask_picture(mask)
    assert picture.dtype == np.uint8 and picture.shape == mask.shape
    assert (picture[mask] == 255).all() and (picture[~mask] == 0).all()


@pytest.mark.parametrize("draw", [overlay, lambda p, m: on_background(p, m, (0, 0, 0))])
def test_soft_masks_and_other_shapes_are_refused(draw, mask):
    pixels = np.zeros((100, 120, 3), np.uint8)
    for bad in (mask.astype(np.float32), mask[1:], mask[..., None]):
        with pytest.raises(ValueError, match="expected"):
            draw(pixels, bad)
    for bad in (pixels / 255, pixels[..., 0]):
        with pytest.raises(ValueError, match="expected pixels of uint8"):
            draw(bad, mask)


def test_a_soft_mask_has_no_mask_picture():
    with pytest.raises(ValueError, match="expected a mask of bool"):
        mask_picture(np.full((4, 4), 0.5))


def test_a_strip_shows_its_images_side_by_side_on_white(pixels):
    gray = np.zeros((100, 30), np.uint8)
    picture = strip([pixels, gray, pixels])
    assert picture.dtype == np.uint8 and picture.shape[0] == 100
    gap = (picture.shape[1] - 270) // 2
    assert gap > 0
    assert np.array_equal(picture[:, :120], pixels)
    assert (picture[:, 120 : 120 + gap] == 255).all()
    assert (picture[:, 120 + gap : 150 + gap] == 0).all()
    assert np.array_equal(picture[:, -120:], pixels)


def test_captions_stand_below_their_images_and_are_not_cut():
    black = np.zeros((60, 60, 3), np.uint8)
    long = "kept 2.3 % of the pixels, p = 0.97"
    picture = strip([black, black], ["photo", long])
    assert picture.shape[0] > 60
    below = picture[60:]
    assert below.min() < 100  # there is text
    for edge in (below[0], below[-1], below[:, 0], below[:, -1]):
        assert edge.min() > 200  # and none of it touches the edges
    assert (picture[:60] == 0).all(-1).sum() == 2 * 60 * 60
    assert picture.shape[1] > strip([black, black], ["photo", "mask"]).shape[1]


def test_a_strip_of_unequal_heights_or_labels_is_refused():
    low, high = np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)
    with pytest.raises(ValueError, match="one height"):
        strip([low, high])
    with pytest.raises(ValueError, match="one height"):
        strip([])
    with pytest.raises(ValueError, match="expected 1 labels, found 2"):
        strip([low], ["a", "b"])
