"""The table of methods: it fits, says what it was given, and gives up the least important first."""

import io
import itertools

import pytest
from rich.cells import cell_len
from rich.console import Console

from amx_jax.report.terminal import methods_legend, methods_table, randomised_lines

WIDE = 180  # room for every column
STAY = ["method", "holds %", "area %"]
ALL = [
    *["method", "n", "holds %", "area %", "vs amx", "suf %", "nec %", "drop %", "energy ×"],
    *["matched ×", "ins", "del", "sens", "spec %", "leak %", "IoU seeds", "parts", "s", "passes"],
]


def summary(method, **values):
    def figure(value):
        return {"value": value, "photos": 60}

    def interval(value, lower, upper):
        return {"value": value, "lower": lower, "upper": upper, "photos": 60}

    return {
        "method": method,
        "reference": "amx",
        "photos": 60,
        "holds": figure(0.5),
        "sufficient": figure(1.0),
        "necessary": figure(0.25),
        "area": interval(0.1043, 0.0881, 0.1362),
        "ratio": interval(5.321, 3.6, 7.125),
        "drop": 0.437,
        "energy": {"lift": figure(2.04)},
        "energy_matched": {"lift": figure(2.55)},
        "insertion": figure(0.61),
        "deletion": figure(0.125),
        "sensitivity": figure(0.3333),
        "specific": figure(0.9),
        "leaking": figure(0.0),
        "stability": figure(0.42),
        "components": figure(5.0),
        "seconds": figure(10.84),
        "passes": figure(12345.0),
    } | values


SUMMARIES = [summary(name) for name in ("amx", "gradcam pruned", "integrated gradients pruned")]


def lines(summaries, width, colour=False):
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, force_terminal=colour)
    console.print(methods_table(summaries, width))
    return file.getvalue().splitlines()


def headings(summaries, width):
    return [str(column.header) for column in methods_table(summaries, width).columns]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 50])
def test_the_table_fits_the_terminal_and_no_number_is_cut(width):
    table = lines(SUMMARIES, width)
    assert len(table) == 4 and all(cell_len(line) <= width for line in table)
    assert all("10.4 [8.8 13.6]" in line for line in table[1:])
    assert not any("…" in line.split("50")[1] for line in table[1:])


def test_every_column_is_there_where_there_is_room():
    assert headings(SUMMARIES, WIDE) == ALL
    row = lines([summary("amx"), summary("rise")], WIDE)[2]
    numbers = (
        "60 50 10.4 [8.8 13.6] 5.32 [3.60 7.12] 100 25 44 2.0 2.5 0.61 0.12 0.33 90 0 0.42 5 10.8 12345"
    )
    assert row.split() == ["rise", *numbers.split()]


def test_a_narrower_terminal_loses_columns_and_gains_none():
    widths = range(130, 30, -5)
    found = [headings(SUMMARIES[:2], width) for width in widths]
    for wider, narrower in itertools.pairwise(found):
        assert set(narrower) <= set(wider)
    assert found[-1] == STAY
    assert {"vs amx", "suf %", "energy ×"} <= set(headings(SUMMARIES[:2], 80))


def test_a_long_name_is_shortened_only_where_nothing_else_can_go():
    assert "integrated gradients pruned" in lines(SUMMARIES, 80)[3]
    [line] = [line for line in lines(SUMMARIES, 40) if line.startswith("integrated")]
    assert "…" in line and "10.4 [8.8 13.6]" in line


def test_nought_and_a_hundred_per_cent_are_none_and_all():
    for share, text in [(0, "0"), (0.001, "1"), (0.5, "50"), (0.999, "99"), (1, "100"), (None, "")]:
        table = methods_table([summary("amx", holds={"value": share}), summary("rise")], WIDE)
        assert [str(cell) for cell in table.columns[2].cells] == [text, "50"]


def test_green_is_all_and_yellow_is_not():
    [_, row] = lines([summary("amx", necessary={"value": None})], WIDE, colour=True)
    assert "\x1b[33m50\x1b[0m" in row and "\x1b[32m100\x1b[0m" in row
    assert row.count("\x1b[3") == 4
    for leaking, colour in [(0.0, 32), (0.5, 33), (1.0, 33)]:  # none is the best
        summaries = [summary("amx", leaking={"value": leaking})]
        assert f"\x1b[{colour}m{100 * leaking:.0f}\x1b[0m" in lines(summaries, WIDE, colour=True)[1]


def test_the_reference_is_named_and_is_one_times_itself():
    ours, rise = summary("rex", reference="rex"), summary("rise", reference="rex")
    table = methods_table([ours, rise], WIDE)
    [column] = [column for column in table.columns if column.header == "vs rex"]
    assert [str(cell) for cell in column.cells] == ["1", "5.32 [3.60 7.12]"]


def test_a_column_without_a_value_is_left_out_and_a_missing_one_is_empty():
    unknown = {"energy": {"lift": {"value": None}}}
    assert "energy ×" not in headings([summary("amx", **unknown)], WIDE)
    table = methods_table([summary("amx", **unknown), summary("rise")], WIDE)
    [column] = [column for column in table.columns if column.header == "energy ×"]
    assert [str(cell) for cell in column.cells] == ["", "2.0"]
    no_end = summary("rise", ratio={"value": 2.0, "lower": 1.0, "upper": None})
    [column] = [c for c in methods_table([no_end], WIDE).columns if c.header == "vs amx"]
    assert [str(cell) for cell in column.cells] == ["2.00"]


def test_the_table_of_no_method_has_headings_only():
    assert methods_table([], 80).row_count == 0


def test_names_are_not_markup():
    assert "[red]amx" in lines([summary("[red]amx")], WIDE)[1]


@pytest.mark.parametrize("width", [WIDE, 100, 80, 50])
def test_the_legend_fits_and_explains_the_columns_that_are_shown_and_no_other(width):
    explained = methods_legend(SUMMARIES, width).splitlines()
    shown = headings(SUMMARIES, width)[1:]
    assert len(explained) == len(shown) and all(cell_len(line) <= 80 for line in explained)
    for heading, line in zip(shown, explained, strict=True):
        assert line.startswith(f"{heading} ") and line.removeprefix(heading).strip()


def against_random(**values):
    figures = {"rank_correlation": 0.03, "iou": 0.024, "iou_chance": 0.02} | values
    return {
        "photos": 16,
        "holds": 15,
        "empty": 12,
        **{key: {"value": value, "photos": 16} for key, value in figures.items()},
    }


def test_a_method_that_explains_the_randomised_classifier_alike_is_told_so():
    [amx] = [summary("amx", randomised=against_random())]
    assert randomised_lines([amx]) == (
        "amx: of the randomised classifier 15 of 16 masks hold (12 empty: it gives its class to the "
        "bare background), rank correlation 0.03, IoU 0.02 (0.02 by chance)"
    )
    alike = summary("centre", randomised=against_random(rank_correlation=0.51))
    assert "hardly depends" in randomised_lines([alike])
    unknown = dict.fromkeys(("rank_correlation", "iou", "iou_chance"))
    bare = summary("rise", randomised=against_random(**unknown) | {"empty": 0})
    assert randomised_lines([bare]) == "rise: of the randomised classifier 15 of 16 masks hold"
    none = summary("rise", randomised=against_random() | {"photos": 0})
    assert randomised_lines([none, amx]).count("\n") == 0
