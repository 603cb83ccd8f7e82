"""A mask laid back over its photo: at the places that the classifier saw, and nowhere else."""

import numpy as np
import pytest
from PIL import Image

from amx_jax import Preprocess

SIZES = [(300, 451), (451, 300), (640, 427), (512, 512), (256, 256), (257, 300), (1920, 1281)]


def preprocess(size=224, resize=256):
    return Preprocess(size=size, resize=resize, mean=127.0, scale=128.0)


def of_cells(rng, cell=8, size=224):
    """A mask of squares, as pruning leaves one."""
    cells = rng.random((size // cell, size // cell)) < 0.3
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [224, 235, 256])
def test_pillow_finds_every_pixel_of_a_mask_where_it_was_laid(rng, size, resize):
    """Pillow takes the photo's pixel at each input pixel's centre: another way, by other code."""
    geometry = preprocess(resize=resize)
    mask = rng.random((224, 224)) < 0.5
    laid = geometry.uncrop(mask, size, False)
    assert laid.shape == size[::-1] and laid.dtype == bool
    left, top, side = geometry.square(size)
    box = left, top, left + side, top + side
    found = Image.fromarray(laid).convert("L").resize((224, 224), Image.Resampling.NEAREST, box)
    assert np.array_equal(np.asarray(found) > 0, mask)


def test_the_crop_of_the_enlarged_mask_gives_the_mask_back(rng):
    geometry, mask = preprocess(), of_cells(rng)
    laid = geometry.uncrop(mask, (1920, 1281), False)
    assert np.array_equal(geometry.crop(Image.fromarray(laid))[..., 0] > 127, mask)
    coarse = geometry.crop(Image.fromarray(geometry.uncrop(mask, (451, 300), False)))[..., 0] > 127
    assert (coarse != mask).mean() < 0.02  # 1.2 of the photo's pixels to one: edges are half pixels off


@pytest.mark.parametrize("size", SIZES)
def test_what_is_outside_of_the_crop_cannot_be_seen(size):
    """But for the filter that resizes: it reaches two of the input's pixels beyond the edge."""
    geometry = preprocess()
    seen = geometry.uncrop(np.ones((224, 224), bool), size, False)
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    crop = geometry.crop(Image.fromarray(pixels))
    outside = np.where(seen[..., None], pixels, np.uint8(0))
    rim = np.abs(geometry.crop(Image.fromarray(outside)).astype(int) - crop).max(axis=-1)
    assert rim[2:-2, 2:-2].max() == 0
    left, top, side = geometry.square(size)
    assert seen.sum() == pytest.approx(side**2, rel=0.01)
    assert np.flatnonzero(seen.any(axis=0))[[0, -1]] == pytest.approx([left, left + side - 1], abs=0.51)
    assert np.flatnonzero(seen.any(axis=1))[[0, -1]] == pytest.approx([top, top + side - 1], abs=0.51)


def test_values_with_channels_and_any_background_are_laid():
    geometry = preprocess(2, 2)
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    laid = geometry.uncrop(values, (4, 2), (7, 8, 9))
    assert laid.shape == (2, 4, 3) and laid.dtype == np.uint8
    assert (laid[:, [0, 3]] == (7, 8, 9)).all() and np.array_equal(laid[:, 1:3], values)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="expected \\(224, 224"):
        preprocess().uncrop(np.ones((200, 224), bool), (300, 300), False)
