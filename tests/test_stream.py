"""Images under way: they come as they are ready, and go on elsewhere from where they stood."""

from dataclasses import replace

import numpy as np
import pytest

from amx_jax import Config, Explainer
from amx_jax.explainer import Stream

CONFIG = Config(
    generator="grid", grid=8, stages=(), steps=16, cell=8, trials=2, batch_size=3, controls=0
)


class Stopped(Exception):
    """What a run raises at a moment of its choice."""


def interrupted(explainer, photos, calls):
    """Explanations by number and the states of the rest, of a stream that ends after some calls."""
    left = calls

    def stop(phase, work):
        nonlocal left
        left -= 1
        if not left:
            raise Stopped

    stream, found = Stream(explainer, photos, on_progress=stop), {}
    try:
        for number, explanation in stream:
            found[number] = explanation
    except Stopped:
        pass
    return found, stream.under_way()


def same(ours, theirs):
    return (
        np.array_equal(ours.mask, theirs.mask)
        and np.array_equal(ours.ranking, theirs.ranking)
        and ours.certificate == theirs.certificate
        and (ours.steps, ours.calls) == (theirs.steps, theirs.calls)
    )


@pytest.fixture(scope="module", params=["plain", "robust"])
def explainer(tiny, request):
    return Explainer(tiny, replace(CONFIG, notion=request.param, backgrounds=20))


@pytest.fixture(scope="module")
def whole(explainer, photos):
    return dict(Stream(explainer, list(photos)))


def test_a_stream_has_every_image_once_and_says_the_same_as_a_call(explainer, whole, photos):
    assert sorted(whole) == list(range(6))
    assert all(same(whole[i], one) for i, one in enumerate(explainer(list(photos))))


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8])
def test_an_interrupted_image_goes_on_to_the_same_bytes(explainer, whole, photos, calls):
    found, states = interrupted(explainer, list(photos), calls)
    assert states  # something was under way
    rest = [number for number in range(6) if number not in found]
    # Their numbers are others now, their slots too, and so are their neighbours.
    rest.reverse()
    before = {(rest.index(number), again): arrays for (number, again), arrays in states.items()}
    steps = []
    twin = Stream(
        explainer,
        [photos[number] for number in rest],
        on_progress=lambda phase, work: steps.append(phase),
        resumed=lambda number, again: before.get((number, again)),
    )
    resumed = {rest[number]: one for number, one in twin}
    assert sorted(resumed) == sorted(rest)
    for number, one in {**found, **resumed}.items():
        assert same(one, whole[number])


def test_an_image_that_goes_on_takes_only_the_steps_that_are_left(tiny, photos):
    explainer = Explainer(tiny, replace(CONFIG, batch_size=2))
    _, states = interrupted(explainer, list(photos[:2]), 3)  # 12 of 16 steps
    phases = []
    stream = Stream(
        explainer,
        list(photos[:2]),
        on_progress=lambda phase, work: phases.append(phase),
        resumed=lambda number, again: states[number, again],
    )
    assert len(list(stream)) == 2
    assert phases.count("optimising") == 1


def test_an_image_that_is_being_verified_asks_nothing_twice(explainer, whole, photos, monkeypatch):
    asked, judge = [], Explainer._judge

    def counting(self, jobs, decisions, candidates):
        asked.append(len(candidates))
        return judge(self, jobs, decisions, candidates)

    monkeypatch.setattr(Explainer, "_judge", counting)
    list(Stream(explainer, [photos[0]]))
    everything, calls = sum(asked), len(asked)
    asked.clear()
    steps = CONFIG.steps // 4  # four steps a call of the progress
    _, states = interrupted(explainer, [photos[0]], steps + calls // 2)
    before = sum(asked)
    assert 0 < before < everything
    [(_, one)] = Stream(explainer, [photos[0]], resumed=lambda *image: states[image])
    assert sum(asked) == everything
    assert same(one, whole[0])


def test_states_of_another_configuration_begin_anew(tiny, photos):
    _, states = interrupted(Explainer(tiny, replace(CONFIG, grid=16)), list(photos[:2]), 2)
    explainer = Explainer(tiny, CONFIG)
    stream = Stream(explainer, list(photos[:2]), resumed=lambda *image: states[image])
    assert all(same(one, explainer([photos[i]])[0]) for i, one in stream)


def test_repetitions_of_an_image_go_on_each_from_its_own(tiny, photos):
    explainer = Explainer(tiny, replace(CONFIG, seeds=2, batch_size=2))
    [whole] = explainer([photos[0]])
    _, states = interrupted(explainer, [photos[0]], 2)
    assert set(states) == {(0, 0), (0, 1)}
    [(_, one)] = Stream(explainer, [photos[0]], resumed=lambda *image: states[image])
    assert same(one, whole)
    assert one.controls.stability == whole.controls.stability


def test_a_method_without_an_optimiser_has_nothing_to_go_on_from(tiny, photos):
    explainer = Explainer(tiny, replace(CONFIG, method="occlusion"))
    _, states = interrupted(explainer, list(photos[:3]), 1)
    assert states == {}
