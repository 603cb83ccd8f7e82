"""The certificate: every statement recomputed from the mask, one forward pass at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from amx_jax.objective.decision import MARGIN
from amx_jax.verify.certificate import certify
from amx_jax.verify.evaluator import MILDEST, STRONGEST, Evaluator

BACKGROUND = (200, 90, 30)
CELL = 5  # 32 is no multiple: the last row and column of cells are 2 pixels wide
TRIALS = 11  # nor is this one of the batch
KEYS = jax.random.split(jax.random.key(7), 6)
KINDS = ("colour", "noise", "blur")


@pytest.fixture(scope="module")
def images(tiny, photos):
    return jnp.asarray(tiny.preprocess.normalize(photos.astype(np.float32)))


@pytest.fixture(scope="module")
def evaluator(tiny):
    return Evaluator(tiny, BACKGROUND, batch_size=4)


@pytest.fixture(scope="module")
def classify(tiny):
    """Logits of one image, in float64."""
    apply = jax.jit(lambda image: tiny.apply(tiny.params, image)[0])
    return lambda image: np.asarray(apply(jnp.asarray(image, jnp.float32)), np.float64)


@pytest.fixture(scope="module")
def targets(classify, images):
    return jnp.asarray([classify(image).argmax() for image in images], jnp.int32)


COLOUR = (np.float32(BACKGROUND) - 127) / 128


def compose(image, mask, background=COLOUR):
    return np.where(mask[..., None], image, background).astype(np.float32)


def keeps(classify, image, mask, target, background=COLOUR):
    logits = classify(compose(image, mask, background))
    return logits[target] - np.delete(logits, target).max() > MARGIN


def regions(mask):
    """Flood fill over the four neighbours."""
    left = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True))
    count = 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            i, j = stack.pop()
            near = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & left
            left -= near
            stack.extend(near)
    return count


def squares(mask, cell=CELL):
    """The mask without each of the squares it touches."""
    for top in range(0, mask.shape[0], cell):
        for left in range(0, mask.shape[1], cell):
            if mask[top : top + cell, left : left + cell].any():
                smaller = mask.copy()
                smaller[top : top + cell, left : left + cell] = False
                yield smaller


def backgrounds(kind, image, key, count):
    """The first backgrounds of a kind: the certificate's keys, the values written out."""
    for kind_key in KINDS:
        key, own = jax.random.split(key)
        if kind_key == kind:
            break
    low, high = -127 / 128, 1.0
    for trial_key in jax.random.split(own, count):
        if kind == "colour":
            yield np.asarray(jax.random.uniform(trial_key, (3,), minval=low, maxval=high))
        elif kind == "noise":
            yield np.asarray(jax.random.uniform(trial_key, image.shape, minval=low, maxval=high))
        else:
            sigma = 32 * float(jax.random.uniform(trial_key, minval=MILDEST, maxval=STRONGEST))
            yield ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


def rectangle(top, left, bottom, right):
    mask = np.zeros((32, 32), bool)
    mask[top:bottom, left:right] = True
    return mask


def some_masks():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, 32, 32)), (0, 3, 3))
    return {
        "empty": np.zeros((32, 32), bool),
        "full": np.ones((32, 32), bool),
        "dust": rng.random((32, 32)) < 0.1,
        "checkerboard": np.indices((32, 32)).sum(0) % 2 == 0,
        "square": rectangle(8, 8, 24, 24),
        "edge": rectangle(30, 0, 32, 32),
        **{f"blobs{i}": blob > 0.05 for i, blob in enumerate(smooth)},
    }


MASKS = some_masks()


@pytest.fixture(scope="module")
def certificates(evaluator, images, targets):
    """Of every mask on every image, in one call."""
    pairs = [(owner, name) for owner in range(6) for name in MASKS]
    found = certify(
        evaluator,
        images,
        targets,
        np.array([owner for owner, _ in pairs]),
        np.stack([MASKS[name] for _, name in pairs]),
        KEYS,
        CELL,
        TRIALS,
    )
    return dict(zip(pairs, found, strict=True))


@pytest.mark.parametrize("name", MASKS)
def test_every_field_is_what_the_mask_alone_gives(certificates, classify, images, targets, name):
    mask = MASKS[name]
    for owner, (image, target) in enumerate(zip(np.asarray(images), targets.tolist(), strict=True)):
        found = certificates[owner, name]

        def probability(seen, target=target):
            return special.softmax(classify(seen))[target]

        assert found.probability_image == pytest.approx(probability(image), rel=1e-4)
        assert found.probability_explanation == pytest.approx(
            probability(compose(image, mask)), rel=1e-4
        )
        assert found.probability_complement == pytest.approx(
            probability(compose(image, ~mask)), rel=1e-4
        )
        assert found.area == sum(map(sum, mask.tolist())) / 32**2
        assert found.components == regions(mask)
        sufficient = keeps(classify, image, mask, target)
        assert found.sufficient == sufficient
        assert found.necessary == (classify(compose(image, ~mask)).argmax() != target)
        assert found.minimal == (
            sufficient and not any(keeps(classify, image, less, target) for less in squares(mask))
        )


def test_the_claims_hold_of_some_masks_and_not_of_others(certificates):
    """So that the test above compares both outcomes."""
    for claim in ("sufficient", "necessary", "minimal"):
        assert {getattr(c, claim) for c in certificates.values()} == {True, False}, claim
    counts = {kept for c in certificates.values() for kept, _ in c.robustness.values()}
    assert len(counts) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", [0, 4])
def test_robustness_counts_the_backgrounds_that_keep_the_target(
    certificates, classify, images, targets, owner, kind
):
    image, target = np.asarray(images[owner]), int(targets[owner])
    drawn = list(backgrounds(kind, image, KEYS[owner], TRIALS))
    for name in ("dust", "square", "blobs0"):
        kept = sum(keeps(classify, image, MASKS[name], target, b) for b in drawn)
        assert certificates[owner, name].robustness[kind] == (kept, TRIALS)


def test_every_background_keeps_the_target_where_no_pixel_is_removed(certificates):
    for owner in range(6):
        assert certificates[owner, "full"].robustness == dict.fromkeys(KINDS, (TRIALS, TRIALS))


def test_backgrounds_do_not_depend_on_the_batch(tiny, images, targets):
    mask = MASKS["blobs0"]
    results = [
        Evaluator(tiny, BACKGROUND, batch_size).robustness(images[4], targets[4], mask, KEYS[4], TRIALS)
        for batch_size in (3, 16)
    ]
    assert results[0] == results[1]


# --- minimality -----------------------------------------------------------------------------------


def test_a_mask_is_minimal_until_a_cell_is_added_that_can_be_dropped_again(
    evaluator, classify, images, targets
):
    owner = 4
    image, target = np.asarray(images[owner]), int(targets[owner])
    mask = np.ones((32, 32), bool)
    while less := [m for m in squares(mask) if keeps(classify, image, m, target)]:
        mask = less[0]
    added = [
        mask | rectangle(i, j, i + CELL, j + CELL) for i in range(0, 32, 5) for j in range(0, 32, 5)
    ]
    larger = [m for m in added if m.sum() > mask.sum() and keeps(classify, image, m, target)]
    assert 0 < mask.mean() < 0.5
    assert larger
    masks = np.stack([mask, *larger])
    owners = np.full(len(masks), owner)
    first, *others = certify(evaluator, images, targets, owners, masks, KEYS, CELL, 1)
    assert first.sufficient and first.minimal
    assert all(c.sufficient and not c.minimal for c in others)


def test_a_mask_that_does_not_suffice_is_not_minimal(evaluator, images, tiny):
    never = jnp.full(6, tiny.class_index("never"), jnp.int32)
    masks = np.stack(list(MASKS.values()))
    for c in certify(evaluator, images, never, np.zeros(len(masks), int), masks, KEYS, CELL, 1):
        assert not c.sufficient and not c.minimal and c.necessary


def test_an_empty_mask_is_minimal_where_the_background_alone_has_the_class(tiny, images):
    on_gray = Evaluator(tiny, (127, 127, 127), batch_size=4)
    empty = np.zeros((2, 32, 32), bool)
    classes = jnp.array([0, 1, 0, 0, 0, 0], jnp.int32)  # the tiny classifier sees class 0 in gray
    held, lost = certify(on_gray, images, classes, np.array([0, 1]), empty, KEYS, CELL, 1)
    assert held.sufficient and held.minimal
    assert not lost.sufficient and not lost.minimal
    assert held.area == held.components == 0
    assert held.probability_complement == held.probability_image


def test_a_tie_is_neither_sufficient_nor_necessary(tiny, images):
    """Every class but the last has the same logit on gray, and rounding may not decide."""
    params = tiny.params | {"bias": jnp.array([0.0, 0.0, 0.0, 0.0, -100.0])}
    tied = type(tiny)("tied", tiny.apply, params, tiny.preprocess, tiny.labels, tiny.stages)
    on_gray = Evaluator(tied, (127, 127, 127), batch_size=4)
    masks = np.stack([MASKS["empty"], MASKS["full"]])
    classes = jnp.zeros(6, jnp.int32)
    empty, full = certify(on_gray, images, classes, np.array([0, 0]), masks, KEYS, CELL, 1)
    assert not empty.sufficient
    assert not full.necessary


# --- batches --------------------------------------------------------------------------------------


def test_no_masks_have_no_certificates(evaluator, images, targets):
    none = np.zeros((0, 32, 32), bool)
    assert certify(evaluator, images, targets, np.zeros(0, int), none, KEYS, CELL, 1) == []


def test_no_masks_have_no_margins(evaluator, images, targets):
    none = np.zeros((0, 32, 32), bool)
    assert [len(found) for found in evaluator.judge(images, targets, np.zeros(0, int), none)] == [0, 0]


def test_position_and_neighbours_in_a_batch_change_no_bit(evaluator, images, targets):
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(6), len(MASKS))
    masks = np.stack(list(MASKS.values()) * 6)
    together = np.stack(evaluator.judge(images, targets, owners, masks))
    for _ in range(3):
        order = rng.permutation(len(masks))[: rng.integers(1, len(masks))]
        some = np.stack(evaluator.judge(images, targets, owners[order], masks[order]))
        np.testing.assert_array_equal(some, together[:, order])


def test_a_certificate_depends_on_its_own_mask_and_image_only(certificates, evaluator, images, targets):
    for owner, name in ((3, "dust"), (0, "blobs1")):
        alone = certify(
            evaluator, images, targets, np.array([owner]), MASKS[name][None], KEYS, CELL, TRIALS
        )
        assert alone == [certificates[owner, name]]
        others = jnp.roll(images, 1, axis=0).at[owner].set(images[owner])
        moved = certify(
            evaluator, others, targets, np.array([owner]), MASKS[name][None], KEYS, CELL, TRIALS
        )
        assert moved == alone


def test_margins_are_the_targets_lead_over_the_next_class(evaluator, classify, images, targets):
    owners = np.array([5, 0, 3])
    masks = np.stack([MASKS["square"], MASKS["dust"], MASKS["blobs2"]])
    margins, probabilities = evaluator.judge(images, targets, owners, masks)
    for owner, mask, margin, probability in zip(owners, masks, margins, probabilities, strict=True):
        logits, target = classify(compose(np.asarray(images[owner]), mask)), int(targets[owner])
        assert margin == pytest.approx(logits[target] - np.delete(logits, target).max(), abs=1e-4)
        assert probability == pytest.approx(special.softmax(logits)[target], rel=1e-4)
