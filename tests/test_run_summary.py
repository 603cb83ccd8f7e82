"""A run in a few numbers and lines."""

import numpy as np
import pytest

from amx_jax.evaluate.run_summary import COLUMNS, summarise_run
from amx_jax.report.terminal import run_lines


def columns(areas, failures=()):
    """Of so many explained images, and of failed ones by id and reason."""
    count, failed = len(areas), len(failures)
    found = {name: [True] * count + [None] * failed for name in COLUMNS}
    found["id"] = [*(f"{i}.png" for i in range(count)), *(name for name, _ in failures)]
    found["failure"] = [None] * count + [reason for _, reason in failures]
    found["area"] = [*areas, *[None] * failed]
    found["probability_image"] = [0.8] * count + [None] * failed
    found["probability_explanation"] = [0.25] * count + [None] * failed
    found["flags"] = [["the shape leaks: to 1", "unstable: 0.1"][: i % 3] for i in range(count)]
    found["flags"] += [None] * failed
    return found


def test_quantiles_shares_and_flags_are_of_the_explained_alone():
    areas = np.linspace(0, 1, 101)
    found = columns(areas.tolist(), [("x", "x: gone")])
    found["necessary"][:100] = [False] * 100
    summary = summarise_run(found)
    assert (summary["explained"], summary["failed"]) == (101, 1)
    assert summary["area"] == pytest.approx(
        {"5 %": 0.05, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "95 %": 0.95}
    )
    assert (summary["sufficient"], summary["necessary"]) == (1.0, pytest.approx(1 / 101))
    assert summary["probability"] == {"image": 0.8, "explanation": 0.25}
    assert summary["flags"] == {"the shape leaks": 67, "unstable": 33}


def test_failures_are_counted_by_cause_whatever_the_names():
    failures = [(f"{i}.png", f"{i}.png: found an empty file") for i in range(7)]
    failures += [("two\nlines.png", "'two\\nlines.png': found an empty file"), ("z", "z: too large")]
    found = summarise_run(columns([], failures), examples=2)["failures"]
    assert found == {
        "found an empty file": {"count": 8, "examples": ["0.png", "1.png"]},
        "too large": {"count": 1, "examples": ["z"]},
    }


def test_nothing_explained_has_no_numbers():
    found = summarise_run(columns([], [("a", "a: gone")]))
    assert (found["sufficient"], found["area"]["50 %"], found["probability"]["image"]) == (None,) * 3
    assert run_lines(found, 80).startswith("0 explained, 1 failed\n")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal_and_break_for_no_name(width):
    failures = [("bad\nname.png", "bad\nname.png: found " + "words " * 40)]
    text = run_lines(summarise_run(columns([0.01, 0.02], failures)), width)
    assert max(map(len, text.splitlines())) <= max(width, 62)
    assert "'bad\\nname.png'" in text


def test_many_causes_are_not_all_told():
    failures = [(str(i), f"{i}: cause {i}") for i in range(300)]
    text = run_lines(summarise_run(columns([], failures)), 80)
    assert "and 290 more causes; --json has all" in text
    assert len(text.splitlines()) < 40


def test_hundred_per_cent_is_said_of_all_alone():
    found = columns([0.01] * 2000)
    found["minimal"][0] = False
    text = run_lines(summarise_run(found), 80)
    assert "minimal       99.9 %" in text
    assert "sufficient     100 %" in text
