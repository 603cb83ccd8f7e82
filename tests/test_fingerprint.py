"""Fingerprints: equal for equal parameters however they are held, different after any change."""

import hashlib
import time
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from amx_jax import load_classifier
from amx_jax.classifiers.fingerprint import fingerprint


def some_params():
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(2, 3)).astype(np.float32),
        "half": rng.normal(size=4).astype(ml_dtypes.bfloat16),
        "blocks": [{"bias": np.arange(3, dtype=np.int32)}, {"bias": np.float32(0.5)}],
        "flag": np.array([True, False]),
        "none": np.zeros((0, 3), np.float32),
    }


PARAMS = some_params()


def test_it_is_sha256_of_what_the_docstring_says():
    """Written out for two leaves: path, type and shape, a zero, the bits."""
    a, b = np.float32([1, 2]), np.int32(7)
    expected = hashlib.sha256(
        repr((("'a'",), "float32", (2,))).encode()
        + b"\0\x00\x00\x80\x3f\x00\x00\x00\x40"
        + repr((("'b'", "0"), "int32", ())).encode()
        + b"\0\x07\x00\x00\x00"
    )
    assert fingerprint({"b": [b], "a": a}) == "sha256:" + expected.hexdigest()


def test_how_arrays_are_held_does_not_count():
    expected = fingerprint(PARAMS)
    kernel = PARAMS["kernel"]
    held = {
        "JAX": jax.tree.map(jnp.asarray, PARAMS),
        "the second device": jax.device_put(PARAMS, jax.devices()[1]),
        "other strides": PARAMS | {"kernel": np.asfortranarray(kernel)},
        "a view": PARAMS | {"kernel": np.repeat(kernel, 2, axis=1)[:, ::2]},
        "other byte order": PARAMS | {"kernel": kernel.astype(">f4")},
        "other order": OrderedDict(reversed(PARAMS.items())),
        "a tuple": PARAMS | {"blocks": tuple(PARAMS["blocks"])},
    }
    for how, params in held.items():
        assert fingerprint(params) == expected, how


def test_sharded_over_two_devices_is_the_same():
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("i"))
    sharded = PARAMS | {"kernel": jax.device_put(PARAMS["kernel"], sharding)}
    assert len(sharded["kernel"].sharding.device_set) == 2
    assert fingerprint(sharded) == fingerprint(PARAMS)


def flipped(array, bit):
    changed = np.frombuffer(array.tobytes(), np.uint8).copy()
    changed[bit // 8] ^= 1 << bit % 8
    return np.frombuffer(changed.tobytes(), array.dtype).reshape(array.shape)


@pytest.mark.parametrize("name", ["kernel", "half"])
def test_every_single_bit_counts(name):
    array = PARAMS[name]
    some = [PARAMS | {name: flipped(array, bit)} for bit in range(8 * array.nbytes)]
    found = {fingerprint(params) for params in some}
    assert len(found - {fingerprint(PARAMS)}) == 8 * array.nbytes


def test_shape_type_key_and_place_count():
    x = np.arange(6, dtype=np.float32)
    trees = [
        {"a": x},
        {"b": x},
        {"a": x.reshape(2, 3)},
        {"a": x.reshape(3, 2)},
        {"a": x.view(np.int32)},
        {"a": x.view(np.uint32)},
        {"a": x.astype(ml_dtypes.bfloat16)},
        {"a": x.astype(np.float16)},
        {"a": x[:3], "b": x[3:]},
        {"a": x[:3], "c": x[3:]},
        {"a": x[3:], "b": x[:3]},
        {"a": {"b": x}},
        {"b": {"a": x}},
        {"a']['b": x},
        {"a": [x]},
        {"a": {"0": x}},
        [x[:3], x[3:]],
        [x[3:], x[:3]],
        x,
        {},
        {"a": x, "empty": np.zeros(0, np.float32)},
        {"a": np.float32(0)},
        {"a": -np.float32(0)},
    ]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)


def test_typed_keys_are_read_by_their_data():
    trees = [{"rng": jax.random.key(seed)} for seed in (0, 0, 1)]
    trees.append({"rng": jax.random.key_data(trees[0]["rng"])})  # numbers, and no key
    first, again, other, data = map(fingerprint, trees)
    assert first == again and len({first, other, data}) == 3


def test_the_state_of_a_module_is_the_dictionary_of_its_values():
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    values = {name: np.asarray(state[name][...]) for name in ("kernel", "bias")}
    assert fingerprint(state) == fingerprint(values)
    assert fingerprint(jax.tree.map(np.asarray, state)) == fingerprint(values)
    assert fingerprint(state) != fingerprint(values | {"bias": values["bias"] + 1})


@pytest.mark.parametrize("leaf", ["text", np.array([None]), np.array(["a"])])
def test_what_is_no_number_is_refused(leaf):
    with pytest.raises(TypeError, match="at 'head'/0, expected an array or a number"):
        fingerprint({"head": [leaf]})


def test_a_loaded_classifier_has_always_the_same_quickly():
    """Measured: 0.02 s."""
    params = load_classifier("efficientnet_lite0").params
    begun = time.perf_counter()
    found = fingerprint(params)
    assert time.perf_counter() - begun < 5
    assert found == fingerprint(load_classifier("efficientnet_lite0").params)
    assert found == fingerprint(jax.tree.map(np.asarray, params))
    params["classify"]["bias"][...] = params["classify"]["bias"][...].at[0].add(1e-6)
    assert fingerprint(params) != found
