"""A real classifier, random and tiny: five classes, inputs of 32 × 32, two convolutions."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amx_jax import Classifier, Explainer, Preprocess

# Before any computation. test_lift.py asks for eight, in a process of its own.
jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", 2)))

SIDE = 32
LABELS = ("ant", "bee", "cat", "dog", "never")  # the last never wins


def _convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def _apply(params, image):
    x = out1 = jax.nn.relu(_convolve(image, params["kernel1"]) + params["bias1"])
    x = out2 = jax.nn.relu(_convolve(x, params["kernel2"]) + params["bias2"])
    logits = x.ravel() @ params["head"] + params["bias"]
    return logits, {"stage1": out1, "stage2": out2}


def make_tiny() -> Classifier:
    """The classifier; tests of other processes make it there."""
    rng = np.random.default_rng(0)
    shapes = {
        "kernel1": (3, 3, 3, 8),
        "bias1": (8,),
        "kernel2": (3, 3, 8, 8),
        "bias2": (8,),
        "head": (SIDE // 4 * SIDE // 4 * 8, len(LABELS)),
    }
    params = {
        name: jnp.asarray(rng.normal(size=shape) / np.prod(shape[:-1]) ** 0.5, jnp.float32)
        for name, shape in shapes.items()
    }
    params |= {"bias1": jnp.zeros(8), "bias2": jnp.zeros(8), "head": 20 * params["head"]}
    params["bias"] = jnp.array([0.5, 0.0, 0.0, 0.0, -100.0])  # what the bare background gives
    preprocess = Preprocess(size=SIDE, resize=SIDE, mean=127.0, scale=128.0)
    return Classifier(
        name="tiny",
        apply=_apply,
        params=params,
        preprocess=preprocess,
        labels=LABELS,
        stages=("stage1", "stage2"),
    )


@pytest.fixture(scope="session")
def tiny() -> Classifier:
    return make_tiny()


@pytest.fixture(scope="session")
def explainers():
    """Stands for Explainer, and compiles each but once; photos have no hash."""
    made = {}

    def explainer(classifier, config=None, devices=None, others=()):
        key = classifier, config, tuple(devices or ()), tuple(photo.tobytes() for photo in others)
        if key not in made:
            made[key] = Explainer(classifier, config, devices, others)
        return made[key]

    return explainer


@pytest.fixture(scope="session")
def unit_power(tiny) -> Classifier:
    """The same on the image over its root mean square: not finite where the image is all zero."""

    def apply(params, image):
        return _apply(params, image / jnp.sqrt(jnp.mean(image**2)))

    return dataclasses.replace(tiny, name="unit_power", apply=apply)


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """Six inputs of the tiny classifier, uint8: noise with a bright or dark disk in it."""
    rng = np.random.default_rng(1)
    pixels = rng.normal(127, 25, (6, SIDE, SIDE, 3))
    rows, columns = np.indices((SIDE, SIDE))
    for photo in pixels:
        row, column = rng.uniform(8, SIDE - 8, 2)
        photo[(rows - row) ** 2 + (columns - column) ** 2 < 49] += rng.normal(0, 90, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def compilations():
    """A list that grows with every compilation."""
    found = []

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)
