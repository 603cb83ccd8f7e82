"""The certificate: every statement recomputed from the mask, one forward pass at a time."""

from contextlib import suppress
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from amx_jax import Config
from amx_jax.lift import AXIS, Devices
from amx_jax.masks.backgrounds import MILDEST, STRONGEST
from amx_jax.objective.decision import MARGIN
from amx_jax.verify.certificate import certify
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.notion import Notion
from amx_jax.verify.pool import Pool

BACKGROUND = (200, 90, 30)
CELL = 5  # 32 is no multiple: the last row and column of cells are 2 pixels wide
TRIALS = 11  # nor is this one of the batch
KEYS = jax.random.split(jax.random.key(7), 6)
KINDS = ("colour", "noise", "blur")


@pytest.fixture(scope="module")
def images(tiny, photos):
    return tiny.preprocess.normalize(photos.astype(np.float32))


@pytest.fixture(scope="module")
def evaluator(tiny):
    return Evaluator(tiny, BACKGROUND, 4, Devices())


@pytest.fixture(scope="module")
def classify(tiny):
    """Logits of one image, in float64."""
    apply = jax.jit(lambda image: tiny.apply(tiny.params, image)[0])
    return lambda image: np.asarray(apply(jnp.asarray(image, jnp.float32)), np.float64)


@pytest.fixture(scope="module")
def targets(classify, images):
    return [int(classify(image).argmax()) for image in images]


def count_kept(evaluator, pixels, target, mask, key, trials):
    """On how many unseen backgrounds of each kind the target stays on top."""
    found = evaluator.unseen(pixels, target, mask, key, trials)
    return {kind: (int((one.margins > MARGIN).sum()), len(one.margins)) for kind, one in found.items()}


def certificates_of(evaluator, photos, targets, owners, masks, cell=CELL, trials=TRIALS):
    """Of each mask on the photo it belongs to, all at once."""

    def judge(numbers, masks):
        some = [owners[number] for number in numbers]
        return evaluator.judge([photos[i] for i in some], [targets[i] for i in some], masks)

    def robustness(owner, mask):
        return count_kept(evaluator, photos[owner], targets[owner], mask, KEYS[owner], trials)

    pool = Pool(judge, evaluator.batch_size)
    for number, (owner, mask) in enumerate(zip(owners, masks, strict=True)):
        kept = robustness(owner, mask)
        pool.add(number, certify(mask, cell, Notion(Config()), kept, certainty=0.95))
    return [found for _, found in sorted(pool.drain())]


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
    own = jax.random.fold_in(key, KINDS.index(kind))
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
def certificates(evaluator, photos, targets):
    """Of every mask on every photo."""
    owners, names = zip(*((owner, name) for owner in range(6) for name in MASKS), strict=True)
    masks = [MASKS[name] for name in names]
    found = certificates_of(evaluator, photos, targets, owners, masks)
    return dict(zip(zip(owners, names, strict=True), found, strict=True))


@pytest.mark.parametrize("name", MASKS)
def test_every_field_is_what_the_mask_alone_gives(certificates, classify, images, targets, name):
    mask = MASKS[name]
    for owner, (image, target) in enumerate(zip(images, targets, strict=True)):
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
    image, target = images[owner], targets[owner]
    drawn = list(backgrounds(kind, image, KEYS[owner], TRIALS))
    for name in ("dust", "square", "blobs0"):
        kept = sum(keeps(classify, image, MASKS[name], target, b) for b in drawn)
        assert certificates[owner, name].robustness[kind] == (kept, TRIALS)


def test_every_background_keeps_the_target_where_no_pixel_is_removed(certificates):
    for owner in range(6):
        assert certificates[owner, "full"].robustness == dict.fromkeys(KINDS, (TRIALS, TRIALS))


def test_backgrounds_depend_on_their_key_and_not_on_the_batch_or_the_devices(
    tiny, evaluator, photos, targets
):
    mask = MASKS["blobs0"]
    expected = count_kept(evaluator, photos[4], targets[4], mask, KEYS[4], 40)
    for batch_size, devices in ((3, 1), (16, 2)):
        other = Evaluator(tiny, BACKGROUND, batch_size, Devices(jax.devices()[:devices]))
        assert count_kept(other, photos[4], targets[4], mask, KEYS[4], 40) == expected
    assert count_kept(evaluator, photos[4], targets[4], mask, KEYS[5], 40) != expected


# --- minimality -----------------------------------------------------------------------------------


def test_a_mask_is_minimal_until_a_cell_is_added_that_can_be_dropped_again(
    evaluator, classify, photos, images, targets
):
    owner = 4
    image, target = images[owner], targets[owner]
    mask = np.ones((32, 32), bool)
    while less := [m for m in squares(mask) if keeps(classify, image, m, target)]:
        mask = less[0]
    added = [
        mask | rectangle(i, j, i + CELL, j + CELL) for i in range(0, 32, 5) for j in range(0, 32, 5)
    ]
    larger = [m for m in added if m.sum() > mask.sum() and keeps(classify, image, m, target)]
    assert 0 < mask.mean() < 0.5
    assert larger
    masks = [mask, *larger]
    first, *others = certificates_of(evaluator, photos, targets, [owner] * len(masks), masks, trials=1)
    assert first.sufficient and first.minimal
    assert all(c.sufficient and not c.minimal for c in others)


def test_a_mask_that_does_not_suffice_is_not_minimal(evaluator, photos, tiny):
    never = [tiny.class_index("never")] * 6
    for c in certificates_of(evaluator, photos, never, [0] * len(MASKS), MASKS.values(), trials=1):
        assert not c.sufficient and not c.minimal and c.necessary


def test_an_empty_mask_is_minimal_where_the_background_alone_has_the_class(tiny, photos):
    on_gray = Evaluator(tiny, (127, 127, 127), 4, Devices())
    empty = np.zeros((2, 32, 32), bool)
    classes = [0, 1]  # the tiny classifier sees class 0 in gray
    held, lost = certificates_of(on_gray, photos, classes, [0, 1], empty, trials=1)
    assert held.sufficient and held.minimal
    assert not lost.sufficient and not lost.minimal
    assert held.area == held.components == 0
    assert held.probability_complement == held.probability_image


def test_a_tie_is_neither_sufficient_nor_necessary(tiny, photos):
    """Every class but the last has the same logit on gray, and rounding may not decide."""
    params = tiny.params | {"bias": jnp.array([0.0, 0.0, 0.0, 0.0, -100.0])}
    tied = replace(tiny, name="tied", params=params)
    on_gray = Evaluator(tied, (127, 127, 127), 4, Devices())
    masks = [MASKS["empty"], MASKS["full"]]
    empty, full = certificates_of(on_gray, photos, [0], [0, 0], masks, trials=1)
    assert not empty.sufficient
    assert not full.necessary


# --- batches --------------------------------------------------------------------------------------


def test_no_masks_have_no_margins(evaluator):
    assert [len(found) for found in evaluator.judge([], [], [])] == [0, 0]


def test_position_and_neighbours_in_a_batch_and_the_batch_itself_change_no_bit(
    tiny, evaluator, photos, targets
):
    rng = np.random.default_rng(0)
    pairs = [(owner, mask) for owner in range(6) for mask in MASKS.values()]

    def judge(evaluator, numbers):
        owners, masks = zip(*(pairs[number] for number in numbers), strict=True)
        asked = [photos[owner] for owner in owners], [targets[owner] for owner in owners], masks
        return np.stack(evaluator.judge(*asked))

    alone = np.concatenate([judge(evaluator, [number]) for number in range(len(pairs))], axis=1)
    assert len(np.unique(alone[0])) > 50
    evaluators = [evaluator] * 6
    for batch_size, devices in ((1, 1), (3, 1), (5, 2), (8, 2)):
        evaluators.append(Evaluator(tiny, BACKGROUND, batch_size, Devices(jax.devices()[:devices])))
    for some in evaluators:
        numbers = rng.permutation(len(pairs))[: rng.integers(1, some.batch_size + 1)]
        np.testing.assert_array_equal(judge(some, numbers), alone[:, numbers])


def test_a_batch_is_rounded_up_to_what_the_devices_share_evenly(tiny):
    for batch_size, devices, chunk, expected in ((3, 2, 0, 4), (3, 1, 0, 3), (5, 2, 4, 8)):
        shared = Devices(jax.devices()[:devices], chunk)
        assert Evaluator(tiny, BACKGROUND, batch_size, shared).batch_size == expected


def test_a_certificate_depends_on_its_own_mask_and_image_only(certificates, evaluator, photos, targets):
    for owner, name in ((3, "dust"), (0, "blobs1")):
        [alone] = certificates_of(evaluator, photos, targets, [owner], [MASKS[name]])
        assert alone == certificates[owner, name]


def test_margins_are_the_targets_lead_over_the_next_class(evaluator, classify, photos, images, targets):
    owners, masks = (5, 0, 3), [MASKS["square"], MASKS["dust"], MASKS["blobs2"]]
    asked = [photos[owner] for owner in owners], [targets[owner] for owner in owners], masks
    for owner, mask, margin, probability in zip(owners, masks, *evaluator.judge(*asked), strict=True):
        logits, target = classify(compose(images[owner], mask)), targets[owner]
        assert margin == pytest.approx(logits[target] - np.delete(logits, target).max(), abs=1e-4)
        assert probability == pytest.approx(special.softmax(logits)[target], rel=1e-4)


def test_a_place_that_no_mask_fills_costs_no_pass_and_the_devices_share_the_others(
    tiny, photos, targets
):
    """On a CPU, where images go one by one."""
    passes = []

    def counting(params, image):
        with suppress(NameError):  # there is no such axis where the classifier is asked for its shapes
            jax.debug.callback(lambda device: passes.append(int(device)), jax.lax.axis_index(AXIS))
        return tiny.apply(params, image)

    counted = Evaluator(replace(tiny, apply=counting), BACKGROUND, 8, Devices(chunk=1))
    for count in (1, 5, 8):
        counted.judge([photos[0]] * count, [targets[0]] * count, [MASKS["dust"]] * count)
        jax.effects_barrier()
        assert [passes.count(device) for device in (0, 1)] == [-(-count // 2), count // 2]
        del passes[:]
