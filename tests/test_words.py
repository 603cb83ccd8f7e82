"""The words of a certificate say its numbers, and take sides as it does."""

import copy

import pytest

from amx_jax.verify.words import in_words

RECORD = {
    "target": {"index": 3, "name": "beagle"},
    "decision": {"kind": "top"},
    "probability": {"image": 0.87, "explanation": 0.12, "complement": 0.01},
    "area": 0.017,
    "sufficient": True,
    "necessary": True,
    "minimal": {"holds": True, "cell": 8, "calls": 200},
    "notion": {"name": "plain", "goal": "sufficient", "confidence": 0.0, "holds": True},
    "method": {"name": "amx", "start": "amx", "pruned": True},
    "robustness": {"colour": {"kept": 4, "trials": 32}},
    "robustness_bound": {"share": 0.044, "certainty": 0.95},
    "controls": {
        "specificity": {
            "own": True,
            "displaced": {"kept": 1, "trials": 20},
            "scattered": {"kept": 0, "trials": 19},
            "holds": True,
        },
        "leakage": {
            "constants": {"leaked": 2, "trials": 20},
            "photos": {"leaked": 0, "trials": 4},
            "flagged": True,
        },
        "stability": {"seeds": 3, "iou": 0.21},
        "flags": ["the shape leaks"],
    },
    "background": {"name": "#7f7f7f", "rgb": [127, 127, 127]},
}


def words(**changes):
    record = copy.deepcopy(RECORD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = record
        for parent in parents:
            part = part[parent]
        part[last] = value
    return "\n".join(in_words(record))


def test_every_figure_is_said():
    assert words().splitlines() == [
        "1.7 % of the pixels, on #7f7f7f, keep beagle the top class: p 0.12, of the photo 0.87.",
        "Without them it is not: p 0.01.",
        "No square of 8 × 8 pixels can be taken from them.",
        "On backgrounds that no search has seen they keep it: colour 4 of 32; of all such at "
        "least 4.4 % (95.0 % confidence).",
        "Of wrong masks 1 of 20 of the same shape elsewhere and 0 of 19 of random squares keep it.",
        "Its shape gives it to 2 of 20 images of two colours and 0 of 4 other photos.",
        "Masks of 3 seeds overlap by an IoU of 0.21.",
        "Flag: the shape leaks.",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sufficient": False}, "do not keep beagle the top class"),
        ({"necessary": False}, "Without them it still is"),
        ({"minimal__holds": False}, "They are not minimal."),
        ({"method__pruned": False, "method__start": "rise"}, "smallest top share that holds of the "),
        ({"notion__name": "robust"}, "So the mask is robust."),
        ({"notion__name": "robust", "notion__holds": False}, "So the mask is not robust."),
        ({"decision": {"kind": "rather", "rival": {"name": "cat"}}}, "keep beagle above cat:"),
        ({"decision": {"kind": "above", "threshold": 0.5}}, "keep beagle at 0.5 or more:"),
        ({"notion__goal": "necessary"}, "they are needed for it: colour 4 of 32"),
    ],
)
def test_words_take_the_side_of_the_certificate(changes, said):
    assert said in words(**changes) and said not in words()


def test_what_was_not_controlled_is_not_mentioned():
    none = {"specificity": None, "leakage": None, "stability": None, "flags": []}
    said = words(controls=none, robustness={})
    assert said.count("\n") == 2 and "wrong masks" not in said and "IoU" not in said
