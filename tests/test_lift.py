"""From one image to batches on many devices: the same results, and no device waits for another.

What is said here of all devices is tried on two, and in a process of its own on eight.
"""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from amx_jax import Config, Explainer
from amx_jax.lift import AXIS, SPLIT, Devices, in_chunks, share_cores
from amx_jax.objective.decision import ALL as ALL_OTHERS
from amx_jax.objective.decision import Decision
from amx_jax.optimize.loop import Optimizer
from amx_jax.verify.evaluator import Evaluator
from benchmarks import programs

ALL = len(jax.devices())
CONFIG = Config(generator="grid", grid=8, steps=9, shrink=0.8, cell=4, trials=3, patience=3)


def first(count: int, chunk: int = 0) -> Devices:
    return Devices(jax.devices()[:count], chunk)


# --- a batch is each of its images ----------------------------------------------------------------


def test_the_batch_is_the_least_that_fills_every_device_with_whole_chunks():
    for count, chunk, batch_size in itertools.product((1, 2, ALL), (0, 1, 2, 3, 8), range(1, 20)):
        step = count * (chunk or 1)  # a CPU computes one image at a time unless it is told
        expected = next(n for n in itertools.count(batch_size) if n % step == 0)
        assert first(count, chunk).slots(batch_size) == expected


def test_by_default_all_devices_share_the_batch():
    assert Devices().devices == jax.devices()


def work(shared, image, number, name):
    """Of one image: trees in and out, and gradients."""
    value, slope = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(x) * shared["weight"]))(image)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(shared["seed"]), name), (3,))
    loop = jax.lax.while_loop(lambda n: n < number, lambda n: n + 3, 0)
    return {"value": value, "slope": slope}, (noise, loop, number > 4)


@pytest.mark.parametrize("chunk", [1, 2, "all", "vmap"])
@pytest.mark.parametrize("count", sorted({1, 2, ALL}))
def test_a_lifted_function_does_to_each_image_what_the_function_does(count, chunk):
    devices = first(count, 8 if chunk == "all" else 0 if chunk == "vmap" else chunk)
    if chunk == "vmap":
        devices._chunk = None  # as on an accelerator
    slots = devices.slots(8)
    assert slots == 8 * (count if chunk == "all" else 1) or (chunk, slots) == (2, 2 * ALL)
    rng = np.random.default_rng(0)
    shared = {"weight": rng.normal(size=(5, 4)).astype(np.float32), "seed": np.int32(3)}
    images = rng.normal(size=(slots, 5, 4)).astype(np.float32)
    numbers, names = rng.integers(0, 9, slots).astype(np.int32), np.arange(slots, dtype=np.uint32)
    found = devices.lift(work)(shared, images, numbers, names)
    single = jax.jit(work)
    for index in range(slots):
        expected = single(shared, images[index], numbers[index], names[index])
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert leaf.dtype == other.dtype
            np.testing.assert_allclose(leaf[index], other, rtol=1e-6, atol=1e-6)


def test_each_device_holds_its_share_of_the_result_and_donated_memory_is_gone():
    devices = Devices()
    batch = devices.split({"a": np.arange(2.0 * ALL), "empty": np.zeros((2 * ALL, 0))})
    add = devices.lift(lambda shift, x: jax.tree.map(lambda leaf: leaf + shift, x), donate=(1,))
    result = add(1.0, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
    for leaf in jax.tree.leaves(result):  # also of an empty array, or a second call would recompile
        assert leaf.sharding == NamedSharding(devices.mesh, SPLIT)
        assert [shard.device for shard in leaf.addressable_shards] == jax.devices()
        assert {len(shard.data) for shard in leaf.addressable_shards} == {2}
    np.testing.assert_array_equal(result["a"], np.arange(2.0 * ALL) + 1)
    add(1.0, result)
    assert add._cache_size() == 1


def test_every_slot_has_one_owner_and_one_place_there():
    devices, slots = Devices(), 3 * ALL
    whose = devices.spread(lambda index: [x[None] for x in devices.owner(index, slots)], shared=1)
    for slot in range(slots):
        mine, place = whose(np.int32(slot))
        assert np.flatnonzero(mine).tolist() == [slot // 3]
        assert place[slot // 3] == slot % 3
        assert all(0 <= local < 3 for local in place)  # elsewhere any place that exists


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, min(3, CORES)),
        ({"JAX_NUM_CPU_DEVICES": "4"}, 4),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
    ],
)
def test_the_cores_of_a_cpu_become_devices_unless_their_number_is_set_already(environment, expected):
    code = "from amx_jax.lift import share_cores; share_cores(3); import jax; print(jax.device_count())"
    outside = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=outside | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == (f"{expected}\n", "")


def test_where_jax_runs_already_its_devices_stay():
    share_cores(64)
    assert len(jax.devices()) == ALL == jax.config.jax_num_cpu_devices


# --- no device waits for another ------------------------------------------------------------------


def collectives(program, *arguments) -> list[str]:
    """The names of the operations of a compiled program in which devices wait for each other."""
    text = program.lower(*arguments).compile().as_text()
    assert f"num_partitions={ALL}" in text.splitlines()[0]
    return programs.collectives(text)


ROUND = [(i, (i + 1) % ALL) for i in range(ALL)]
WAITING = {
    "all-reduce": partial(jax.lax.psum, axis_name=AXIS),
    "all-gather": partial(jax.lax.all_gather, axis_name=AXIS, tiled=True),
    "all-to-all": partial(jax.lax.all_to_all, axis_name=AXIS, split_axis=0, concat_axis=0),
    "collective-permute": partial(jax.lax.ppermute, axis_name=AXIS, perm=ROUND),
    "reduce-scatter": partial(jax.lax.psum_scatter, axis_name=AXIS, tiled=True),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_program_in_which_devices_wait_is_told_from_one_in_which_they_do_not(name):
    batch = jnp.ones((ALL**2, 3))
    assert name in collectives(Devices().spread(WAITING[name], shared=0), batch)


def test_one_mean_over_a_batch_on_many_devices_is_told_from_a_mean_over_each_image():
    devices = Devices()
    batch = devices.split(np.ones((2 * ALL, 5), np.float32))
    assert collectives(jax.jit(lambda batch: batch - batch.mean(0)), batch)
    assert not collectives(jax.jit(jax.vmap(lambda image: image - image.mean())), batch)


def test_what_a_cpu_computes_one_by_one_an_accelerator_computes_in_chunks():
    matrix, vectors = np.eye(3, dtype=np.float32) * 2, np.arange(30, dtype=np.float32).reshape(10, 3)
    each = jax.jit(lambda matrix, vectors: in_chunks(lambda vector: matrix @ vector, vectors, 4))
    np.testing.assert_array_equal(each(matrix, vectors), 2 * vectors)
    traced = each.trace(matrix, vectors)

    def at_a_time(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        operands = re.findall(r"dot_general.*\(tensor<3x3xf32>, tensor<([0-9x]+)xf32>\)", text)
        return {tuple(map(int, shape.split("x"))) for shape in operands}

    assert at_a_time("cpu") == {(3,)}
    assert at_a_time("cuda") == at_a_time("tpu") == {(4, 3), (2, 3)}  # 4 + 4 + 2


@pytest.fixture(scope="module")
def optimizer(tiny):
    return Optimizer(tiny, CONFIG, Devices())


@pytest.fixture(scope="module")
def evaluator(tiny):
    return Evaluator(tiny, CONFIG.background, CONFIG.candidates, Devices())


def test_in_the_optimisers_steps_no_device_waits_for_another(optimizer):
    assert collectives(optimizer._advance, optimizer._params, *optimizer.slots) == []


def test_where_an_image_enters_its_slot_no_device_waits_for_another(optimizer, photos):
    entering = (photos[0], np.int32(-1), np.int32(-1), np.uint32(0))
    arguments = (optimizer._params, entering, np.int32(1), None, optimizer.slots)
    assert collectives(optimizer._put, *arguments) == []


def test_where_masks_are_judged_no_device_waits_for_another(evaluator, photos):
    pixels, mask = photos[0], np.ones((32, 32), bool)
    count = evaluator.batch_size
    decision = Decision(np.int32(0), np.int32(ALL_OTHERS), np.float32(-np.inf))
    one = (pixels, decision, mask, np.True_)
    batch = jax.tree.map(lambda x: np.stack([x] * count), one)
    assert collectives(evaluator._plain, evaluator._params, *batch) == []
    keys, kinds = np.zeros((count, 2), np.uint32), np.zeros(count, np.int32)
    unseen = evaluator._unseen
    assert collectives(unseen, evaluator._params, pixels, decision, mask, kinds, keys) == []
    views = (*batch[:3], kinds, keys, batch[3])
    assert collectives(evaluator._in_search, evaluator._params, *views) == []


def test_a_chunk_whose_backgrounds_are_chosen_costs_one_pass_a_mask(tiny, photos):
    """``vmap`` computes both sides of a choice, so no side of one may hold the classifier."""
    together = Evaluator(
        tiny, CONFIG.background, 4, Devices(jax.devices()[:1], chunk=4), kinds=("black",)
    )
    decision = Decision(np.int32(0), np.int32(ALL_OTHERS), np.float32(-np.inf))
    one = (photos[0], decision, np.ones((32, 32), bool))
    asked, background = jax.tree.map(
        lambda x: np.stack([x] * 4), (one, (np.int32(-1), np.zeros(2, np.uint32)))
    )
    used = np.ones(4, bool)

    def operations(program, *arguments):
        return program.lower(together._params, *arguments).compile().cost_analysis()["flops"]

    plain = operations(together._plain, *asked, used)
    assert operations(together._in_search, *asked, *background, used) < 1.3 * plain


@pytest.mark.slow
def test_all_devices_give_the_bits_that_one_gives(tiny, photos):
    config = replace(CONFIG, batch_size=3)
    many, one = (Explainer(tiny, config, jax.devices()[:n])(list(photos)) for n in (ALL, 1))
    for mine, its in zip(many, one, strict=True):
        assert mine.certificate.sufficient and 0 < mine.optimized_mask.mean() < 1
        for name in ("mask", "ranking", "optimized_mask"):
            assert getattr(mine, name).tobytes() == getattr(its, name).tobytes(), name
        assert (mine.certificate, mine.steps, mine.calls) == (its.certificate, its.steps, its.calls)


@pytest.mark.skipif("JAX_NUM_CPU_DEVICES" in os.environ, reason="is that process")
@pytest.mark.parametrize("which", ["wait", pytest.param("test", marks=pytest.mark.slow)])
def test_all_of_this_is_so_on_eight_devices(which):
    which = f"({which} or as_many) and not eight"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, __file__],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.skipif("JAX_NUM_CPU_DEVICES" not in os.environ, reason="only in that process")
def test_there_are_as_many_devices_as_were_asked_for():
    assert int(os.environ["JAX_NUM_CPU_DEVICES"]) == ALL
