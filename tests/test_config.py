"""Configurations: what is out of range is refused by name, what is accepted cannot change."""

import dataclasses

import numpy as np
import pytest

from amx_jax import Config, Weights, preset
from amx_jax.config import KINDS
from amx_jax.errors import ConfigError

NAN, INF = float("nan"), float("inf")
WRONG = {
    "generator": ("unet", ""),
    "grid": (3, 513, -28),
    "background": ((0, 0), (0, 0, 0, 0), (0, 0, 256), (-1, 0, 0)),
    "free_gain": (-1.0, INF, NAN),
    "shrink": (0.0, -0.5, 1.01, NAN),
    "grow": (0.99, -1.0, INF, NAN),
    "dual": (-0.1, INF, NAN),
    "steps": (0, -1),
    "patience": (-1,),
    "progress": (-0.01, 1.0, INF, NAN),
    "learning_rate": (0.0, -0.1, INF, NAN),
    "temperature": (0.0, -0.5, INF, NAN),
    "hardening": ("annealing", ""),
    "cell": (-1,),
    "trials": (-1,),
    "controls": (-1,),
    "seeds": (0, -1),
    "method": ("saliency", ""),
    "notion": ("certain", ""),
    "kinds": ((), ("colour", "fog"), ("noise", "noise")),
    "delta": (0.0, 1.0, -0.1, NAN),
    "certainty": (0.0, 1.0, NAN),
    "backgrounds": (0, -1),
    "confidence": (-0.1, 1.1, NAN),
    "goal": ("both", ""),
    "threshold": (0.0, 1.0, -0.5, NAN),
    "seed": (-1, 2**32),
    "batch_size": (0, -8),
    "candidates": (0, -1),
    "chunk": (-1,),
    "dtype": ("float16", "float64", ""),
}
# By the classifier, below, and the last three by nothing but their type.
CHECKED_ELSEWHERE = {"stages", "objective", "budget", "prune", "remat"}
AT_THE_EDGE = {
    "grid": (4, 512),
    "background": ((0, 0, 0), (255, 255, 255)),
    "free_gain": (0.0, 1.0),
    "shrink": (1e-6, 1.0),
    "grow": (1.0, 100.0),
    "dual": (0.0,),
    "steps": (1,),
    "patience": (0, 1),
    "progress": (0.0, 0.999),
    "learning_rate": (1e-9,),
    "temperature": (1e-9,),
    "hardening": ("straight-through", "annealed"),
    "cell": (0, 1),
    "trials": (0, 1),
    "controls": (0, 1),
    "seeds": (1,),
    "method": ("amx", "gradcam"),
    "notion": ("plain", "robust", "worst"),
    "kinds": (("photo",), KINDS),
    "delta": (1e-6, 0.999),
    "certainty": (0.5, 0.999),
    "backgrounds": (1,),
    "confidence": (0.0, 1.0),
    "goal": ("sufficient", "necessary", "complete"),
    "threshold": (1e-6, 0.999),
    "seed": (0, 2**32 - 1),
    "batch_size": (1,),
    "candidates": (1,),
    "chunk": (0, 1),
    "dtype": ("float32", "bfloat16"),
}


def cases(table):
    return [pytest.param(name, v, id=f"{name}={v}") for name, values in table.items() for v in values]


def test_every_field_has_a_wrong_value_to_try():
    assert {f.name for f in dataclasses.fields(Config)} == set(WRONG) | CHECKED_ELSEWHERE


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_a_value_out_of_range_is_refused_with_its_name_what_was_found_and_what_is_expected(name, value):
    with pytest.raises(ConfigError) as error:
        Config(**{name: value})
    field, _, rest = str(error.value).partition(": found ")
    found, _, expected = rest.partition(", expected ")
    assert (field, found) == (name, repr(value))
    assert expected
    assert "\n" not in expected


def test_a_grid_of_logits_that_never_learn_is_refused():
    with pytest.raises(ConfigError, match=r"free_gain: found 0\.0, expected above 0 for the grid"):
        Config(generator="grid", free_gain=0.0)


def test_a_multiplier_of_the_area_needs_an_area_term_and_no_budget():
    with pytest.raises(
        ConfigError, match=r"objective\.area: found 0\.0, expected above 0 where dual is"
    ):
        Config(budget=False, dual=0.1)
    with pytest.raises(ConfigError, match=r"dual: found 0\.1, expected 0 where there is a budget"):
        Config(dual=0.1, objective=Weights(area=1.0))
    assert Config(budget=False, dual=0.1, objective=Weights(area=1.0)).dual == 0.1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "175", "a whole number"),
        ("steps", 1.5, "a whole number"),
        ("seed", True, "a whole number"),
        ("shrink", "0.98", "a number"),
        ("shrink", None, "a number"),
        ("delta", True, "a number"),
        ("budget", "no", "True or False"),
        ("prune", 1, "True or False"),
        ("remat", None, "True or False"),
        ("method", None, "text"),
        ("notion", ["plain"], "text"),
        ("kinds", "noise", "a tuple, each of it text"),
        ("kinds", ["noise"], "a tuple, each of it text"),
        ("stages", ("a", 1), "a tuple, each of it text"),
        ("background", [0, 0, 0], "a tuple, each of it a whole number"),
        ("background", (0, 0, 0.5), "a tuple, each of it a whole number"),
        ("objective", {"area": 1.0}, "Weights"),
    ],
)
def test_another_type_is_refused_in_words(name, value, expected):
    with pytest.raises(ConfigError) as error:
        Config(**{name: value})
    assert str(error.value) == f"{name}: found {value!r}, expected {expected}"


def test_a_weight_of_another_type_is_refused_by_the_name_of_its_term():
    with pytest.raises(ConfigError, match=r"^objective\.area: found '1', expected a number$"):
        Config(objective=Weights(area="1"))


def test_numbers_of_numpy_are_numbers():
    config = Config(steps=np.int64(3), shrink=np.float32(0.5), background=tuple(np.uint8([1, 2, 3])))
    assert config == Config(steps=3, shrink=0.5, background=(1, 2, 3))
    assert Config(shrink=1).shrink == 1  # a whole number where any will do


@pytest.mark.parametrize(("name", "value"), cases(AT_THE_EDGE))
def test_the_ends_of_the_range_are_accepted(name, value):
    assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize("value", [-0.1, NAN, INF])
@pytest.mark.parametrize("term", [f.name for f in dataclasses.fields(Weights)])
def test_a_weight_out_of_range_is_refused_by_the_name_of_its_term(term, value):
    with pytest.raises(ConfigError, match=rf"objective\.{term}: found {value!r}, expected at least 0"):
        Config(objective=Weights(**{term: value}))


def test_an_objective_without_terms_is_refused():
    nothing = Weights(**dict.fromkeys((f.name for f in dataclasses.fields(Weights)), 0.0))
    with pytest.raises(
        ConfigError, match=r"objective: found Weights\(.*\), expected at least one above 0"
    ):
        Config(objective=nothing)


def test_the_presets_are_the_default_and_the_papers_objective():
    assert preset("default") == Config()
    paper = preset("paper")
    assert not paper.budget
    assert all(dataclasses.asdict(paper.objective).values())  # the paper has all eight terms
    with pytest.raises(ConfigError, match=r"no preset 'papre'; nearest: paper; there are .*default"):
        preset("papre")


@pytest.mark.parametrize("frozen", [Config(), Weights()])
def test_a_configuration_cannot_change(frozen):
    for field in dataclasses.fields(frozen):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field.name, getattr(frozen, field.name))


def test_equal_configurations_are_one_key():
    assert len({Config(steps=7), Config(steps=7), Config(steps=8)}) == 2
