"""Photos in: whatever a file holds becomes upright RGB, or one line that says what is wrong."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from amx_jax.data.photos import (
    BUNDLED,
    PIXEL_LIMIT,
    bundled_photos,
    find_photos,
    read_photo,
    unhindered,
    unique_stems,
)
from amx_jax.errors import ImageError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@contextlib.contextmanager
def unprivileged():
    """Permissions do not bind root: act as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one byte of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def message_of(path, **options) -> str:
    with pytest.raises(ImageError) as caught:
        read_photo(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_rgb_is_read_unchanged(tmp_path, pixels, suffix):
    Image.fromarray(pixels).save(tmp_path / f"photo{suffix}")
    photo = read_photo(tmp_path / f"photo{suffix}")
    assert photo.mode == "RGB"
    assert np.array_equal(np.asarray(photo), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".jp2", ".avif"])
def test_lossy_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    try:
        Image.new("RGB", (32, 16), (200, 40, 90)).save(path)
    except KeyError:
        pytest.skip(f"this Pillow writes no {suffix}")
    photo = read_photo(path)
    assert (photo.mode, photo.size) == ("RGB", (32, 16))
    assert np.abs(np.asarray(photo, int) - (200, 40, 90)).max() <= 6


def test_the_content_decides_and_not_the_suffix(tmp_path, pixels):
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, format="PNG")
    assert np.array_equal(np.asarray(read_photo(path)), pixels)


def test_a_path_may_be_text(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a b\nü.png")
    assert read_photo(str(tmp_path / "a b\nü.png")).size == (9, 6)


def test_gray_becomes_three_equal_channels(tmp_path, pixels):
    gray = pixels[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(np.asarray(read_photo(tmp_path / "gray.png")), np.dstack([gray] * 3))


def test_one_bit_becomes_black_and_white(tmp_path, pixels):
    bits = pixels[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    expected = np.dstack([np.where(bits, 255, 0)] * 3)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "bits.png")), expected)


def test_palette_is_looked_up(tmp_path, pixels):
    indices = pixels[..., 0] % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3], [250, 251, 252]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(np.asarray(read_photo(tmp_path / "palette.png")), colours[indices])


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0, 255])])
@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_transparent_palette_entry_becomes_white(tmp_path, pixels, suffix, transparency):
    if suffix == ".gif" and isinstance(transparency, bytes):
        pytest.skip("a GIF has one transparent entry")
    indices = pixels[..., 0] % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3], [250, 251, 252]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / f"palette{suffix}", transparency=transparency)
    colours[2] = 255
    assert np.array_equal(np.asarray(read_photo(tmp_path / f"palette{suffix}")), colours[indices])


def test_transparency_is_laid_over_white(tmp_path, pixels):
    alpha = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9)
    gray_alpha = np.dstack([pixels[..., 0], alpha])
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(gray_alpha, "LA").save(tmp_path / "la.png")
    share = alpha[..., None] / 255
    for name, colour in ("rgba.png", pixels), ("la.png", pixels[..., :1]):
        expected = share * colour + (1 - share) * 255
        assert np.abs(np.asarray(read_photo(tmp_path / name)) - expected).max() <= 1


def test_a_transparent_colour_of_an_rgb_file_becomes_white(tmp_path, pixels):
    pixels[2, 3] = pixels[4, 4] = (10, 20, 30)
    Image.fromarray(pixels).save(tmp_path / "key.png", transparency=(10, 20, 30))
    expected = np.where((pixels == (10, 20, 30)).all(-1, keepdims=True), 255, pixels)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "key.png")), expected)


def test_cmyk_is_converted(tmp_path):
    for name, cmyk, rgb in [
        ("cyan", (255, 0, 0, 0), (0, 255, 255)),
        ("black", (0, 0, 0, 255), (0, 0, 0)),
        ("paper", (0, 0, 0, 0), (255, 255, 255)),
    ]:
        for suffix in (".jpg", ".tiff"):
            path = tmp_path / f"{name}{suffix}"
            Image.new("CMYK", (16, 16), cmyk).save(path)
            assert np.abs(np.asarray(read_photo(path), int) - rgb).max() <= 2, path.name


@pytest.mark.parametrize("kind", ["I;16 png", "I;16 tiff", "I;16B tiff", "I tiff", "I pgm"])
def test_16_bit_gray_is_scaled_by_its_full_range(tmp_path, kind):
    values = np.arange(0x10000, dtype=np.uint16).reshape(256, 256)
    mode, suffix = kind.split()
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    elif mode == "I;16B":
        Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values.astype(np.int32) if mode == "I" else values).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    expected = np.round(values / 257)
    assert np.array_equal(np.asarray(read_photo(path)), np.dstack([expected] * 3))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for suffix in (".gif", ".png", ".tiff"):
        path = tmp_path / f"animation{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == 3
        assert (np.asarray(read_photo(path)) == (255, 0, 0)).all(), suffix


# The rows and columns of the stored array, as EXIF 2.3 defines each orientation, put upright.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_exif_rotation_is_undone_once(tmp_path, pixels, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    photo = read_photo(path)
    assert np.array_equal(np.asarray(photo), ORIENTATIONS[orientation](pixels))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(photo)), np.asarray(photo))


def test_exif_rotation_of_a_jpeg_is_undone_also_where_it_comes_smaller(tmp_path):
    upright = np.zeros((400, 800, 3), np.uint8)
    upright[:, :400] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright, 1)).save(tmp_path / "phone.jpg", exif=exif)
    for at_least in (None, 100):
        photo = read_photo(tmp_path / "phone.jpg", at_least)
        assert photo.width == 2 * photo.height
        assert np.asarray(photo)[:, 10].min() > 250 and np.asarray(photo)[:, -10].max() < 5


def test_16_bit_gray_is_turned_too(tmp_path):
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "deep.png", exif=exif)
    photo = np.asarray(read_photo(tmp_path / "deep.png"))
    assert photo[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    image = Image.new("RGB", (16, 16), "red")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    at = data.index(b"Exif\0\0") + 14
    (tmp_path / "odd.jpg").write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "odd.jpg").size == (16, 16)


def test_a_read_photo_needs_its_file_no_longer(tmp_path, pixels):
    path = tmp_path / "photo.bmp"
    Image.fromarray(pixels).save(path)
    photo = read_photo(path)
    path.unlink()
    assert np.array_equal(np.asarray(photo.rotate(0)), pixels)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_smallest_and_thinnest_photos_are_read(tmp_path, size):
    for suffix in (".png", ".jpg"):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / f"thin{suffix}")
        assert read_photo(tmp_path / f"thin{suffix}", at_least=256).size == size


def test_a_jpeg_may_come_smaller_but_not_below_what_is_needed(tmp_path):
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (1200, 1600))).save(tmp_path / "large.jpg", quality=95)
    assert read_photo(tmp_path / "large.jpg").size == (1600, 1200)
    assert read_photo(tmp_path / "large.jpg", at_least=1200).size == (1600, 1200)
    assert read_photo(tmp_path / "large.jpg", at_least=601).size == (1600, 1200)
    assert read_photo(tmp_path / "large.jpg", at_least=5000).size == (1600, 1200)
    small = read_photo(tmp_path / "large.jpg", at_least=256)
    assert small.size == (400, 300)
    means = ramp.reshape(400, 4).mean(axis=1)
    assert np.abs(np.asarray(small)[..., 0] - means).max() < 3


def test_a_png_keeps_its_size(tmp_path):
    Image.new("L", (900, 900)).save(tmp_path / "large.png")
    assert read_photo(tmp_path / "large.png", at_least=100).size == (900, 900)


def test_photos_beyond_pillows_warning_are_read_in_silence(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None and limit < 9500**2
    Image.new("1", (9500, 9500), 1).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "large.png").getpixel((9499, 9499)) == (255, 255, 255)


@pytest.mark.slow
def test_20_000_squared_is_read_in_silence(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.new("L", (20_000, 20_000), 7).save(tmp_path / "huge.jpg")
        assert read_photo(tmp_path / "huge.jpg", at_least=256).size == (2500, 2500)
        (tmp_path / "huge.jpg").unlink()
        Image.new("1", (20_000, 20_000), 1).save(tmp_path / "huge.png", compress_level=1)
        photo = read_photo(tmp_path / "huge.png", at_least=256)
        assert photo.size == (20_000, 20_000)
        assert photo.getpixel((19_999, 19_999)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(20_481, 20_480), (30_000, 30_000), (100_000, 100_000)])
def test_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_with_header(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = message_of(tmp_path / "bomb.png")
    assert "bomb.png" in message and f"{size[0]} × {size[1]}" in message
    assert f"at most {PIXEL_LIMIT / 1e6:.0f} million" in message


def test_pillows_own_limit_and_the_warning_filters_are_as_before(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(png_with_header(30_000, 30_000))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def read():
        for _ in range(20):
            read_photo(tmp_path / "good.png")
            message_of(tmp_path / "bad.png")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit is not None and limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def test_threads_decode_at_once_and_leave_the_filters_of_others_alone(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "good.png")
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    both = threading.Barrier(3, timeout=10)

    def meet():
        with unhindered():
            both.wait()
            both.wait()

    threads = [threading.Thread(target=meet) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        both.wait()  # both are inside, and found the filters of this block
        assert read_photo(tmp_path / "good.png").size == (9, 6)
        assert Image.MAX_IMAGE_PIXELS is None
    both.wait()
    for thread in threads:
        thread.join()
    assert limit is not None and limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


# --- bad files ------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    assert message_of(tmp_path / "no.png") == f"{tmp_path}/no.png: does not exist; check the path"
    touch(tmp_path / "file")
    assert "does not exist" in message_of(tmp_path / "file" / "below.png")


def test_a_folder_is_named(tmp_path):
    assert "found a folder, expected an image file" in message_of(tmp_path)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    message = message_of(tmp_path / "empty.png")
    assert "empty.png" in message and "found an empty file" in message


def test_what_is_not_an_image_is_shown_by_its_first_bytes(tmp_path):
    (tmp_path / "paper.jpg").write_bytes(b"%PDF-1.7\n" + b"text " * 100)
    message = message_of(tmp_path / "paper.jpg")
    assert "paper.jpg: found no image" in message
    assert "b'%PDF-1.7'" in message and "expected one of JPEG" in message


def test_postscript_is_refused_without_running_it(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "drawing.eps")
    assert "found no image" in message_of(tmp_path / "drawing.eps")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp", ".jp2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = message_of(path)
    assert path.name in message
    assert "damaged or truncated" in message or "found no image" in message
    assert "again" in message  # what to do


def test_any_damage_gives_a_photo_or_one_line(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".jp2", ".ppm"):
        path = tmp_path / f"photo{suffix}"
        image.save(path, exif=exif)  # ignored where the format has none
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            data = whole.copy()
            places = rng.integers(0, min(len(data), 400), 5)
            data[places] = rng.integers(0, 256, 5)
            path.write_bytes(data.tobytes())
            try:
                outcome = read_photo(path).mode
            except ImageError as error:
                outcome = str(error)
            assert outcome == "RGB" or (path.name in outcome and "\n" not in outcome)


def test_32_bit_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    message = message_of(tmp_path / "float.tiff")
    assert "float.tiff: found 32-bit float pixels" in message and "expected 8 or 16 bits" in message


@pytest.mark.parametrize("extreme", [-1, 70_000])
def test_32_bit_gray_beyond_16_bits_is_refused_and_not_clipped(tmp_path, extreme):
    values = np.full((4, 4), 5, np.int32)
    values[0, 0] = extreme
    Image.fromarray(values).save(tmp_path / "int.tiff")
    message = message_of(tmp_path / "int.tiff")
    assert str(extreme) in message and "expected 0 to 65535" in message


def test_no_permission_is_said_so(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    read_photo(tmp_path / "mine.png")
    (tmp_path / "mine.png").chmod(0)
    with unprivileged():
        message = message_of(tmp_path / "mine.png")
    assert "mine.png: permission denied" in message


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "found a pipe or device" in message_of(tmp_path / "pipe.png")


def test_paths_no_file_can_have_are_refused(tmp_path):
    assert "cannot be read" in message_of("a\0b.png")
    assert "cannot be read" in message_of(tmp_path / ("x" * 300))


def test_a_message_stays_one_line_whatever_the_name(tmp_path):
    assert message_of(tmp_path / "two\nlines.png").endswith("does not exist; check the path")
    assert "\\udcff" in message_of(os.fsdecode(b"no-utf8-\xff.png"))


# --- finding --------------------------------------------------------------------------------------


def test_a_file_is_taken_as_it_is(tmp_path):
    touch(tmp_path / "notes.txt", tmp_path / ".hidden.png", tmp_path / "bare")
    given = [tmp_path / "notes.txt", tmp_path / ".hidden.png", tmp_path / "bare"]
    assert find_photos(given) == (given, [])


def test_a_folder_gives_its_image_files_sorted_from_all_levels(tmp_path):
    names = ["b.jpg", "a.PNG", "deep/er/c.webp", "deep/a.tif"]
    touch(*(tmp_path / name for name in names))
    touch(tmp_path / "notes.txt", tmp_path / "deep" / "data.csv", tmp_path / "jpg")
    photos, failures = find_photos([str(tmp_path)])
    assert [photo.relative_to(tmp_path).as_posix() for photo in photos] == [
        "a.PNG",
        "b.jpg",
        "deep/a.tif",
        "deep/er/c.webp",
    ]
    assert failures == []


def test_hidden_files_and_folders_are_passed_over_but_not_the_folder_itself(tmp_path):
    home = tmp_path / ".photos"
    touch(home / "a.jpg", home / "._a.jpg", home / ".trash" / "b.jpg")
    assert find_photos([home]) == ([home / "a.jpg"], [])


def test_results_inside_the_photo_folder_are_not_photos(tmp_path):
    touch(tmp_path / "cat.jpg", tmp_path / "cat" / "overlay.png", tmp_path / "explanations.json")
    touch(tmp_path / "cat" / "explanation.json")
    assert find_photos([tmp_path]) == ([tmp_path / "cat.jpg"], [])


def test_each_file_is_found_once(tmp_path):
    touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "in" / "b.jpg")
    again = tmp_path / "in" / ".." / "in" / "b.jpg"
    given = [tmp_path / "in" / "b.jpg", tmp_path / "in", again, tmp_path / "link.jpg"]
    assert find_photos(given) == ([tmp_path / "in" / "b.jpg", tmp_path / "in" / "a.jpg"], [])


def test_a_circle_of_links_ends(tmp_path):
    touch(tmp_path / "a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_photos([tmp_path]) == ([tmp_path / "a.jpg"], [])


def test_bad_paths_are_failures_and_the_rest_is_found(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "texts" / "notes.txt")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    bad = [
        tmp_path / "no.png",
        tmp_path / "a.jpg" / "below.png",
        tmp_path / "texts",
        tmp_path / "dangling.png",
        "",
        "a\0b",
        "x" * 5000,
    ]
    photos, failures = find_photos([*bad, tmp_path / "a.jpg"])
    assert photos == [tmp_path / "a.jpg"]
    assert [failure.image for failure in failures] == [str(path) for path in bad]
    wanted = ["not exist", "not exist", "no image files", "not exist", "empty path", "null", "long"]
    for failure, text in zip(failures, wanted, strict=True):
        assert text in failure.reason and failure.reason.isprintable()
    assert find_photos([]) == ([], [])


def test_a_folder_that_cannot_be_listed_is_a_failure(tmp_path):
    locked = tmp_path / "locked"
    touch(locked / "a.jpg")
    locked.chmod(0)
    try:
        with unprivileged():
            photos, failures = find_photos([locked])
    finally:
        locked.chmod(0o700)
    assert photos == [] and len(failures) == 1
    assert "permission denied" in failures[0].reason and str(locked) in failures[0].reason


# --- bundled photos -------------------------------------------------------------------------------


def test_the_bundled_photos_are_real_photos():
    photos = bundled_photos()
    assert tuple(photo.name for photo in photos) == BUNDLED
    for photo in photos:
        image = read_photo(photo)
        assert min(image.size) >= 224 and np.asarray(image).std() > 20


def test_the_bundled_photos_are_found_without_importing_scikit_image():
    code = (
        "import sys; from amx_jax.data.photos import bundled_photos; bundled_photos();"
        "sys.exit('skimage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- names for output folders ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        ([], []),
        (["cat.jpg"], ["cat"]),
        (["b/dog.jpg", "a/cat.jpg"], ["dog", "cat"]),
        (["a/cat.jpg", "b/cat.png"], ["a-cat", "b-cat"]),
        (["a/cat.jpg", "b/CAT.jpg"], ["a-cat", "b-CAT"]),
        (["a/cat.jpg", "a/cat.png"], ["cat-jpg", "cat-png"]),
        (["a/cat.jpg", "a/cat.png", "b/cat.png"], ["a-cat-jpg", "a-cat-png", "b-cat-png"]),
        (["x/a/cat.jpg", "y/a/cat.jpg"], ["cat-1", "cat-2"]),
        (["x/a/cat.jpg", "y/a/cat.jpg", "cat-1.jpg"], ["cat-2", "cat-3", "cat-1"]),
        (["cat.jpg", "a/cat.jpg"], ["cat", "a-cat"]),
        (["a/cat.jpg", "b/cat.jpg", "a-cat.jpg"], ["a-cat-jpg", "b-cat-jpg", "a-cat"]),
        (["photo.2024.jpg"], ["photo_2024"]),
        (["explanations.json.png"], ["explanations_json"]),
        (["..", ".", "/", ""], ["__", "image-1", "image-2", "image-3"]),
        (["a\\b:c.png", "line\nbreak.png", "tail .png"], ["a_b_c", "line_break", "tail"]),
        (["con.png", "LPT1.jpg", "console.png"], ["con_", "LPT1_", "console"]),
        (["猫.jpg", "Ünï.png"], ["猫", "Ünï"]),
    ],
)
def test_stems_say_which_photo_they_are_of(paths, stems):
    assert unique_stems(paths) == stems


def test_stems_are_distinct_safe_and_short_whatever_the_paths(tmp_path):
    rng = np.random.default_rng(0)
    pieces = ["cat", "CAT", "é", "e\u0301", "ß", "SS", "猫" * 120, "x" * 240, ".", "..", "con", " "]
    pieces += ["-1", "a-", os.fsdecode(b"\xff"), "\n", "image", "explanations.json", "_"]
    paths = []
    for _ in range(400):
        folder, stem = ("".join(rng.choice(pieces, rng.integers(1, 3))) for _ in range(2))
        paths.append(f"{folder}/{stem}{rng.choice(['.jpg', '.PNG', ''])}")
    stems = unique_stems(paths)
    assert len({stem.casefold() for stem in stems}) == len(paths)
    assert stems == unique_stems([Path(path) for path in paths])
    for stem in stems:
        (tmp_path / stem).mkdir()
        assert (tmp_path / stem).parent == tmp_path and len(stem.encode()) <= 200
    assert len(list(tmp_path.iterdir())) == len(paths)
    assert "explanations.json" not in stems
