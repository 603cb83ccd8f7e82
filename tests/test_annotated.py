"""Ground truth: regions lie where the crop puts their objects, and wrong files are refused in words."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax import Preprocess
from amx_jax.data.annotated import Annotation, Place, find_annotations, photo_folder
from amx_jax.data.photos import find_photos
from amx_jax.errors import AnnotationError

SHARED = os.environ.get("AMX_SHARED_DATA")
WITH_DATA = pytest.mark.skipif(
    not (SHARED and Path(SHARED, "imagenet_val_original", "annotations.json").is_file()),
    reason="AMX_SHARED_DATA names no folder with annotated photos",
)
LITE0 = Preprocess(size=224, resize=256, mean=127.0, scale=128.0)
PLAIN = Preprocess(size=20, resize=20, mean=0.0, scale=1.0)  # shows the whole of a square photo
CAT, DOG, CAR = 281, 207, 817


def geometry(seed):
    """A photo's size, and a gray preprocess: enlarging or shrinking, with or without a margin."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(8, 64))
    resize = size + int(rng.integers(0, 30))
    width, height = map(int, rng.integers(20, 400, 2))
    return rng, (width, height), Preprocess(size, resize, 0.0, 1.0, channels=1)


def box_annotation(size, *boxes, classes=None):
    return Annotation(size, tuple(Place(box, classes) for box in boxes))


def save(folder, name="a.png", size=(20, 20), **options):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)
    return path


def write(folder, content, name="annotations.json"):
    path = Path(folder, name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def record(**fields):
    return {"id": "a", "size": [20, 20], "label": CAT, "boxes_xyxy": [[5, 0, 10, 20]]} | fields


def coco(**fields):
    instances = [{"id": 1, "category": "cat"}, {"id": 2, "category": "dog"}]
    image = {"file": "a.png", "width": 20, "height": 20, "instances": instances} | fields
    classes = {"cat": [CAT, 282], "dog": [DOG]}
    return {"imagenet_classes_of_coco_category": classes, "images": [image]}


def save_mask(folder, numbers, name="a.png"):
    path = Path(folder, "masks", name)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(numbers)).save(path)
    return path


def halves():
    """An instance map: 1 on the left, 2 on the right, a crowd in the last rows."""
    numbers = np.ones((20, 20), np.uint8)
    numbers[:, 10:] = 2
    numbers[15:] = 255
    return numbers


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("seed", range(30))
def test_a_box_lies_where_the_crop_shows_it_painted(seed, axis):
    rng, (width, height), preprocess = geometry(seed)
    length = (height, width)[axis]
    first, last = np.sort(rng.choice(length + 1, 2, replace=False))
    last = min(length, max(last, first + 4 * -(-min(width, height) // preprocess.resize)))
    pixels = np.zeros((height, width), np.uint8)
    box = [0, 0, width, height]
    box[1 - axis], box[3 - axis] = int(first), int(last)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    seen = preprocess.crop(Image.fromarray(pixels))[..., 0].astype(int)
    region = box_annotation((width, height), tuple(box)).region(CAT, preprocess)
    # A pixel whose centre lies on the box's edge is half painted: rounding decides.
    clear = abs(seen - 127.5) > 40
    np.testing.assert_array_equal(
        (np.zeros_like(clear) if region is None else region)[clear], (seen > 127)[clear]
    )
    assert np.sum(~clear.all(axis=1 - axis)) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_a_mask_and_a_box_of_the_same_pixels_give_the_same_region(seed, tmp_path):
    rng, (width, height), preprocess = geometry(seed)
    (left, right), (top, bottom) = (
        np.sort(rng.choice(n + 1, 2, replace=False)) for n in (width, height)
    )
    numbers = np.zeros((height, width), np.uint8)
    numbers[top:bottom, left:right] = 7
    mask = save_mask(tmp_path, numbers)
    of_mask = Annotation((width, height), (Place(7, None),), mask).region(CAT, preprocess)
    of_box = box_annotation((width, height), (left, top, right, bottom)).region(CAT, preprocess)
    if of_box is None:
        assert of_mask is None
    else:
        np.testing.assert_array_equal(of_mask, of_box)


@pytest.mark.parametrize("seed", range(3, 20))
def test_a_mask_is_resampled_as_pillows_nearest_does(seed, tmp_path):
    rng, (width, height), preprocess = geometry(seed)
    numbers = rng.integers(0, 3, (height, width), np.uint8)
    annotation = Annotation((width, height), (Place(1, None),), save_mask(tmp_path, numbers))
    side = min(width, height) * preprocess.size / preprocess.resize
    left, top = (width - side) / 2, (height - side) / 2
    size, box = (preprocess.size, preprocess.size), (left, top, left + side, top + side)
    nearest = Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST, box)
    # Pillow adds in float32: where a centre lies on the edge of two pixels it may take the other one.
    centres = (np.arange(preprocess.size) + 0.5) * side / preprocess.size
    clear = [abs((at + centres + 0.5) % 1 - 0.5) > 1e-3 for at in (top, left)]
    region = annotation.region(CAT, preprocess)
    np.testing.assert_array_equal(region[np.ix_(*clear)], (np.asarray(nearest) == 1)[np.ix_(*clear)])
    assert all(map(np.any, clear))


def test_what_the_crop_does_not_show_has_no_region():
    wide = box_annotation((100, 20), (0, 0, 39, 20))
    assert wide.region(CAT, PLAIN) is None
    assert box_annotation((100, 20), (0, 0, 41, 20)).region(CAT, PLAIN)[:, 0].all()


# --- classes --------------------------------------------------------------------------------------


def test_the_region_is_the_union_of_the_boxes_of_the_class():
    places = (
        Place((0, 0, 5, 20), frozenset({CAT})),
        Place((15, 0, 20, 20), frozenset({CAT, DOG})),
        Place((5, 0, 15, 20), frozenset({CAR})),
    )
    annotation = Annotation((20, 20), places)
    columns = {target: annotation.region(target, PLAIN)[0].nonzero()[0] for target in (CAT, DOG, CAR)}
    np.testing.assert_array_equal(columns[CAT], [0, 1, 2, 3, 4, 15, 16, 17, 18, 19])
    np.testing.assert_array_equal(columns[DOG], [15, 16, 17, 18, 19])
    np.testing.assert_array_equal(columns[CAR], np.arange(5, 15))
    assert annotation.region(0, PLAIN) is None


# --- layouts --------------------------------------------------------------------------------------


def test_a_plain_folder_has_no_ground_truth(tmp_path):
    save(tmp_path)
    assert find_annotations(tmp_path) == {}
    assert photo_folder(tmp_path) == tmp_path


def test_boxes_belong_to_the_label_or_without_one_to_any_class(tmp_path):
    for name in ("a.png", "b.JPEG", "c.png"):
        save(tmp_path, f"images/{name}")
    write(tmp_path, [record(), record(id="b", label=None, boxes_xyxy=[[0, 0, 20.0, 7.6]])])
    found = find_annotations(tmp_path)
    a, b = (tmp_path / "images" / name for name in ("a.png", "b.JPEG"))
    assert set(found) == {a, b}, "c has no record"
    assert found[a].region(CAT, PLAIN)[:, 5:10].all() and found[a].region(CAT, PLAIN).sum() == 100
    assert found[a].region(DOG, PLAIN) is None
    assert found[b].region(DOG, PLAIN).sum() == 160, "the eighth row's centre, 7.5, is inside"
    assert {*find_photos([photo_folder(tmp_path)])[0]} > {*found}, "the keys are find_photos' paths"


def test_instances_belong_to_the_classes_of_their_category_and_a_crowd_to_none(tmp_path):
    photo = save(tmp_path, "images/a.png")
    save_mask(tmp_path, halves())
    write(tmp_path, coco())
    (annotation,) = find_annotations(tmp_path).values()
    np.testing.assert_array_equal(annotation.region(282, PLAIN), halves() == 1)
    np.testing.assert_array_equal(annotation.region(DOG, PLAIN), halves() == 2)
    assert annotation.region(CAR, PLAIN) is None
    assert find_annotations(tmp_path).keys() == {photo}


def test_an_instance_of_a_category_without_classes_has_no_region(tmp_path):
    save(tmp_path, "images/a.png")
    save_mask(tmp_path, halves())
    write(tmp_path, coco(instances=[{"id": 1, "category": "person"}]))
    (annotation,) = find_annotations(tmp_path).values()
    assert annotation.places == (Place(1, frozenset()),)
    assert annotation.region(CAT, PLAIN) is None


def test_hand_boxes_lie_beside_their_photos(tmp_path):
    photo = save(tmp_path)
    boxes = {"a.png": [["cat", [CAT, 282], [0, 0, 10, 20]], ["dog", [DOG], [10, 0, 20, 20]]]}
    write(tmp_path, {"note": "by eye", "boxes": boxes}, "hand_boxes.json")
    annotation = find_annotations(tmp_path)[photo]
    np.testing.assert_array_equal(annotation.region(282, PLAIN), ~annotation.region(DOG, PLAIN))
    assert photo_folder(tmp_path) == tmp_path


def test_a_record_whose_photo_is_missing_is_passed_over_whatever_it_says(tmp_path):
    photo = save(tmp_path, "images/a.png")
    write(tmp_path, [{"id": "gone"}, record()])
    assert find_annotations(tmp_path).keys() == {photo}


def test_records_of_one_photo_add_up(tmp_path):
    save(tmp_path, "images/a.png")
    write(tmp_path, [record(), record(label=DOG)])
    (annotation,) = find_annotations(tmp_path).values()
    np.testing.assert_array_equal(annotation.region(CAT, PLAIN), annotation.region(DOG, PLAIN))


# --- what is wrong, in words ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[{", "found damaged JSON"),
        ("[" * 100_000, "found damaged JSON"),
        ({"a": 1}, "found it to be {'a': 1}, expected a list of records"),
        ([3], "found record 0 to be 3, expected an object with 'id'"),
        ([{}], "found no 'id' in record 0, expected text"),
        ([{"id": "a"}], "found no 'size' in the record of a, expected a list"),
        (
            [record(size=[20])],
            "found the size in the record of a to be [20], expected width and height",
        ),
        ([record(size=[20, True])], "found the size in the record of a"),
        ([record(label="cat")], "found 'label' in the record of a to be 'cat', expected a class index"),
        ([record(boxes_xyxy=7)], "found 'boxes_xyxy' in the record of a to be 7, expected a list"),
        ([record(boxes_xyxy=[[1, 2, 3]])], "found a box in the record of a to be [1, 2, 3]"),
        ([record(boxes_xyxy=[[9, 2, 3, 4]])], "expected [left, top, right, bottom] in pixels"),
        ([record(boxes_xyxy=[[0, 0, 1, float("nan")]])], "found a box in the record of a"),
        ([record(boxes_xyxy=[[0, 0, 1, 10**400]])], "found a box in the record of a"),
        ({"images": []}, "found no 'imagenet_classes_of_coco_category' in it, expected an object"),
        (coco(width="20"), "found 'width' in the record of a.png to be '20', expected a whole number"),
        (coco(instances=[{"id": 1}]), "found no 'category' in an instance in the record of a.png"),
        (coco(instances=[{"id": 255}]), "to be 255, expected 1 to 254"),
        (coco() | {"imagenet_classes_of_coco_category": {"cat": 3}}, "a list of class indices"),
    ],
)
def test_annotations_of_another_form_are_refused(content, found, tmp_path):
    save(tmp_path, "images/a.png")
    save_mask(tmp_path, halves())
    path = write(tmp_path, content)
    with pytest.raises(AnnotationError) as error:
        find_annotations(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and found in message
    assert re.search("; (mend|add) it", message)
    assert "\n" not in message and "expected" in message


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (3, "found the boxes of a.png to be 3, expected a list"),
        ([["cat", [0, 0, 5, 5]]], "expected [name, [class, …], [left, top, right, bottom]]"),
        ([["cat", ["x"], [0, 0, 5, 5]]], "found the classes in the boxes of a.png to be ['x']"),
        ([["cat", [CAT], [0, 0, 0, 5]]], "found a box in the boxes of a.png to be [0, 0, 0, 5]"),
    ],
)
def test_hand_boxes_of_another_form_are_refused(entries, found, tmp_path):
    save(tmp_path)
    path = write(tmp_path, {"boxes": {"a.png": entries}}, "hand_boxes.json")
    with pytest.raises(AnnotationError) as error:
        find_annotations(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and found in str(error.value)


def refusal(folder):
    with pytest.raises(AnnotationError) as error:
        find_annotations(folder)
    return str(error.value)


def test_a_folder_that_is_missing_is_named(tmp_path):
    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'}: found no folder, expected")


def test_a_photo_of_another_size_than_annotated_is_refused(tmp_path):
    photo = save(tmp_path, "images/a.png", (30, 20))
    write(tmp_path, [record()])
    assert refusal(tmp_path) == (
        f"{photo}: found 30 × 20 pixels, expected 20 × 20 as annotations.json says; "
        "take the file that was annotated"
    )


def test_a_photo_that_exif_turns_is_refused(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    photo = save(tmp_path, "images/a.jpg", exif=exif)
    write(tmp_path, [record()])
    assert refusal(tmp_path).startswith(f"{photo}: found a photo that its EXIF orientation turns")


def test_a_photo_that_is_no_image_is_refused(tmp_path):
    photo = save(tmp_path, "images/a.png")
    photo.write_bytes(b"no image")
    write(tmp_path, [record()])
    assert refusal(tmp_path).startswith(f"{photo}: cannot be read: no image")


def test_a_folder_of_photos_that_is_missing_is_named(tmp_path):
    write(tmp_path, [record()])
    assert refusal(tmp_path).startswith(f"{tmp_path / 'images'}: cannot be listed: No such file")


def test_a_mask_that_is_missing_or_of_another_size_is_refused(tmp_path):
    save(tmp_path, "images/a.png")
    write(tmp_path, coco())
    mask = tmp_path / "masks" / "a.png"
    assert refusal(tmp_path).startswith(f"{mask}: cannot be read: No such file")
    save_mask(tmp_path, halves()[:19])
    assert refusal(tmp_path).startswith(f"{mask}: found 20 × 19 pixels, expected 20 × 20")


def test_a_mask_that_is_damaged_or_in_colour_is_refused(tmp_path):
    save(tmp_path, "images/a.png")
    write(tmp_path, coco())
    mask = save_mask(tmp_path, np.zeros((20, 20, 3), np.uint8))
    (annotation,) = find_annotations(tmp_path).values()
    with pytest.raises(AnnotationError, match="found an image of mode RGB, expected 8-bit gray"):
        annotation.region(CAT, PLAIN)
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(AnnotationError, match="found damaged or missing image data"):
        annotation.region(CAT, PLAIN)


# --- real data ------------------------------------------------------------------------------------


def extent(region):
    """Left, top, right and bottom edge of what is True."""
    rows, columns = region.any(axis=1).nonzero()[0], region.any(axis=0).nonzero()[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@WITH_DATA
def test_boxes_of_real_photos_lie_where_their_own_scaled_copies_do():
    folder = Path(SHARED, "imagenet_val_original")
    found = {photo.stem: annotation for photo, annotation in find_annotations(folder).items()}
    records = json.loads((folder / "annotations.json").read_text())
    assert len(found) == len(records) == 300
    unseen = []
    for entry in records:
        region = found[entry["id"]].region(entry["label"], LITE0)
        assert found[entry["id"]].region(entry["label"] + 1, LITE0) is None
        boxes, size = np.array(entry["boxes256"]), np.array(entry["size256"])
        boxes = (boxes - np.tile((size - 224) / 2, 2)).clip(0, 224)
        # A sliver of less than half a pixel at the crop's edge contains no centre.
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 0.5).all(axis=1)]
        if region is None:
            unseen.append(entry["id"])
            assert len(boxes) == 0
            continue
        expected = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
        np.testing.assert_allclose(extent(region), expected, atol=1)
    assert len(unseen) == 1, "its object is at the photo's edge, which the crop cuts off"


@WITH_DATA
def test_instances_of_real_photos_lie_within_their_boxes():
    folder = Path(SHARED, "coco_masks")
    content = json.loads((folder / "annotations.json").read_text())
    found = find_annotations(folder)
    assert len(found) == 166, "one photo has two records"
    checked = 0
    for entry in content["images"]:
        annotation = found[folder / "images" / entry["file"]]
        for category in {instance["category"] for instance in entry["instances"]}:
            classes = content["imagenet_classes_of_coco_category"].get(category)
            if not classes:
                continue
            boxes = [
                tuple(instance["bbox_xyxy"])
                for instance in entry["instances"]
                if instance["category"] == category
            ]
            region = annotation.region(classes[-1], LITE0)
            if region is not None:
                around = box_annotation(annotation.size, *boxes).region(0, LITE0)
                # The two records of one photo differ by a pixel.
                assert np.mean(around[region]) > 0.98
                checked += 1
    assert checked > 200


@WITH_DATA
def test_hand_boxes_of_real_photos_tell_two_objects_apart():
    found = find_annotations(Path(SHARED, "two_object_images"))
    assert len(found) == 8
    for annotation in found.values():
        first, second = (annotation.region(min(place.classes), LITE0) for place in annotation.places)
        assert np.sum(first & second) < 0.5 * min(first.sum(), second.sum())
