"""How a mask came to be: the masks of the very run that explains, at the steps that are said."""

import zlib

import numpy as np
import pytest

from amx_jax import Config
from amx_jax.errors import ConfigError
from amx_jax.evolution import evolution
from amx_jax.explanation import Unexplained
from amx_jax.lift import Devices
from amx_jax.masks.hardening import hard_mask
from amx_jax.optimize.loop import Optimizer

BRIEF = Config(
    generator="grid", grid=8, steps=30, trials=1, batch_size=2, candidates=8, cell=4, controls=0
)


@pytest.fixture(scope="module")
def found(tiny, explainers, photos):
    return evolution(explainers(tiny, BRIEF), photos[0])


def test_the_last_masks_are_the_explanations_and_looking_changes_nothing(
    found, tiny, explainers, photos
):
    frames, explanation = found
    assert [frame.name for frame in frames[-2:]] == ["step 30", "pruned"]
    assert np.array_equal(frames[-2].mask, explanation.optimized_mask)
    assert np.array_equal(frames[-1].mask, explanation.mask)
    assert frames[-1].mask.sum() < frames[-2].mask.sum() < frames[1].mask.sum() < frames[0].mask.sum()
    [unseen] = explainers(tiny, BRIEF)([photos[0]])
    assert np.array_equal(unseen.mask, explanation.mask)
    assert np.array_equal(unseen.optimized_mask, explanation.optimized_mask)


def test_each_mask_is_the_optimisers_after_the_steps_that_its_name_says(found, tiny, photos):
    """By an optimiser of our own, that nothing verifies."""
    optimizer = Optimizer(tiny, BRIEF, Devices(None, BRIEF.chunk))
    slot = optimizer.put(photos[0], None, zlib.crc32(photos[0].tobytes()))
    masks = {"step 0": np.ones(photos[0].shape[:2], bool)}
    while optimizer.advance()[slot] < 1:
        [state] = optimizer.states([slot])
        masks[f"step {state.number}"] = np.asarray(hard_mask(state.logits, photos[0].shape[:2]))
    assert [frame.name for frame in found.frames[:-2]] == list(masks)
    assert list(masks) == [f"step {number}" for number in range(0, 30, 4)]
    for frame in found.frames[:-2]:
        assert np.array_equal(frame.mask, masks[frame.name]), frame.name


@pytest.mark.parametrize(("every", "steps"), [(8, [0, 8, 16, 24, 30]), (5, [0, 8, 16, 24, 30])])
def test_masks_are_as_far_apart_as_asked(found, tiny, explainers, photos, every, steps):
    frames, _ = evolution(explainers(tiny, BRIEF), photos[0], every)
    assert [frame.name for frame in frames] == [*(f"step {number}" for number in steps), "pruned"]
    all_of_them = dict(found.frames)
    for frame in frames:
        assert np.array_equal(frame.mask, all_of_them[frame.name])


def test_the_target_is_that_which_was_asked_for(found, tiny, explainers, photos):
    other = "dog" if found.explanation.label != "dog" else "cat"
    asked = evolution(explainers(tiny, BRIEF), photos[0], target=other)
    assert asked.explanation.label == other
    assert not np.array_equal(asked.frames[-2].mask, found.frames[-2].mask)


def test_what_a_robust_search_begins_with_is_named(tiny, photos, explainers):
    robust = Config(
        **{**BRIEF.__dict__, "notion": "robust", "backgrounds": 4, "trials": 2, "kinds": ("colour",)}
    )
    frames, explanation = evolution(explainers(tiny, robust), photos[0])
    named = dict(frames)
    before = named.get("top share", named["step 30"])
    assert np.array_equal(before, explanation.optimized_mask)
    assert np.array_equal(frames[-1].mask, explanation.mask)


def test_a_photo_without_an_explanation_says_why(unit_power, photos, explainers):
    frames, why = evolution(explainers(unit_power, BRIEF), np.full_like(photos[0], 127))
    assert isinstance(why, Unexplained) and "not finite" in why.reason
    assert [frame.name for frame in frames] == ["step 0"]


def test_methods_without_steps_and_no_distance_are_refused(tiny, explainers, photos):
    explainer = explainers(tiny, BRIEF)
    with pytest.raises(ConfigError, match="every: found 0"):
        evolution(explainer, photos[0], 0)
    with pytest.raises(ConfigError, match="method: found centre, expected amx"):
        evolution(explainer.ranked_by("centre"), photos[0])
