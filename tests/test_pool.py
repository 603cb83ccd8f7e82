"""Many searches at once: full batches for the classifier, and to each search its own answers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amx_jax.verify.pool import Judged, Pool

# Of each search the sizes of the waves that it asks about.
waves = st.lists(st.integers(0, 9), max_size=6)


def mask_of(*content: int) -> np.ndarray:
    return np.array(content)


def search(owner, sizes, heard):
    """Asks about waves of the given sizes, of masks that say whose they are; returns the last wave."""
    for wave, size in enumerate(sizes):
        answer = yield [mask_of(owner, wave, place) for place in range(size)]
        heard.setdefault(owner, []).append(answer)
    return owner, len(sizes)


def expected_answers(owner, sizes):
    return [
        [value(mask_of(owner, wave, place)) for place in range(size)] for wave, size in enumerate(sizes)
    ]


def value(mask) -> float:
    owner, wave, place = mask.tolist()
    return owner * 1000 + wave * 50 + place + 0.5


class Recorder:
    """A judge that remembers what it was asked."""

    def __init__(self):
        self.batches = []

    def __call__(self, owners, masks):
        assert [mask[0] for mask in masks] == list(owners)
        self.batches.append(list(owners))
        values = np.array([value(mask) for mask in masks])
        return Judged(values, -values)


@settings(max_examples=60, deadline=None)
@given(st.lists(waves, max_size=7), st.integers(1, 12), st.data())
def test_each_search_hears_of_its_own_masks_in_its_own_order_whatever_the_others_do(
    sizes, batch_size, data
):
    judge, heard, ended = Recorder(), {}, []
    pool = Pool(judge, batch_size)
    for owner, own in enumerate(sizes):
        pool.add(owner, search(owner, own, heard))
        for _ in range(data.draw(st.integers(0, 2), label="advances before the next begins")):
            ended += pool.advance()
    ended += pool.drain()
    assert Counter(ended) == Counter((owner, (owner, len(own))) for owner, own in enumerate(sizes))
    for owner, own in enumerate(sizes):
        answers = heard.get(owner, [])
        assert [answer.margins.tolist() for answer in answers] == expected_answers(owner, own)
        assert [(-answer.probabilities).tolist() for answer in answers] == expected_answers(owner, own)
    assert sum(map(len, judge.batches)) == sum(map(sum, sizes))


@settings(max_examples=60, deadline=None)
@given(st.lists(waves, max_size=7), st.integers(1, 12))
def test_the_judge_is_asked_about_a_full_batch_while_enough_masks_wait_and_never_about_more(
    sizes, batch_size
):
    judge = Recorder()
    pool = Pool(judge, batch_size)
    for owner, own in enumerate(sizes):
        pool.add(owner, search(owner, own, {}))
    while pool:
        waiting, asked = pool.waiting, len(judge.batches)
        pool.advance()
        batches = judge.batches[asked:]
        assert list(map(len, batches)) == ([min(waiting, batch_size)] if waiting else [])
    assert pool.waiting == 0


def test_a_wave_larger_than_the_batch_is_split_and_answered_as_a_whole():
    judge, heard = Recorder(), {}
    pool = Pool(judge, batch_size=4)
    pool.add(0, search(0, [10], heard))
    for _ in range(2):
        assert pool.advance() == [] and heard == {}
    assert pool.advance() == [(0, (0, 1))]
    assert list(map(len, judge.batches)) == [4, 4, 2]
    assert heard[0][0].margins.tolist() == expected_answers(0, [10])[0]


def test_the_oldest_search_comes_first_and_others_fill_its_batch():
    judge = Recorder()
    pool = Pool(judge, batch_size=4)
    for owner, sizes in ((7, [3, 3]), (8, [4]), (9, [9])):
        pool.add(owner, search(owner, sizes, {}))
    ended = [owner for owner, _ in pool.drain()]
    assert judge.batches[:3] == [[7, 7, 7, 8], [7, 7, 7, 8], [8, 8, 9, 9]]
    assert ended == [7, 8, 9]


def test_a_pool_counts_the_searches_without_an_outcome_and_the_masks_that_wait():
    pool = Pool(Recorder(), batch_size=4)
    assert (len(pool), pool.waiting) == (0, 0)
    for owner, sizes in ((1, [5]), (2, [])):
        pool.add(owner, search(owner, sizes, {}))
    assert (len(pool), pool.waiting) == (2, 5)  # the second has ended, but nobody was told
    assert pool.advance() == [(2, (2, 0))]
    assert (len(pool), pool.waiting) == (1, 1)
    assert pool.advance() == [(1, (1, 1))]
    assert (len(pool), pool.waiting) == (0, 0)


def test_a_pool_without_candidates_asks_nobody():
    pool = Pool(lambda owners, masks: pytest.fail("asked"), batch_size=4)
    assert pool.advance() == [] and list(pool.drain()) == []
    pool.add(1, search(1, [], {}))
    assert list(pool.drain()) == [(1, (1, 0))]


@settings(max_examples=60, deadline=None)
@given(st.lists(waves, min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 6))
def test_a_search_goes_on_elsewhere_and_nothing_is_asked_twice(sizes, batch_size, advances):
    first, heard, ended = Recorder(), {}, []
    pool = Pool(first, batch_size)
    for owner, own in enumerate(sizes):
        pool.add(owner, search(owner, own, {}))
    for _ in range(advances):
        ended += pool.advance()
    second = Recorder()
    twin = Pool(second, batch_size)
    for owner, own in enumerate(sizes):
        twin.add(owner, search(owner, own, heard), pool.said(owner))
    ended = list(twin.drain())
    assert Counter(ended) == Counter((owner, (owner, len(own))) for owner, own in enumerate(sizes))
    for owner, own in enumerate(sizes):
        answers = [answer.margins.tolist() for answer in heard.get(owner, [])]
        assert answers == expected_answers(owner, own)
    asked = sum(map(len, first.batches)) + sum(map(len, second.batches))
    assert asked == sum(map(sum, sizes))


def test_answers_keep_their_precision_on_the_way():
    def judge(owners, masks):
        return Judged(np.float32([0.1] * len(masks)), np.float32([0.2] * len(masks)))

    heard = {}
    pool = Pool(judge, 1)
    pool.add(0, search(0, [1, 2], {}))
    pool.advance()
    twin = Pool(judge, 1)
    twin.add(0, search(0, [1, 2], heard), pool.said(0))
    list(twin.drain())
    assert [answer.margins.dtype for answer in heard[0]] == [np.float32, np.float32]
