"""Results as tables and lines for a terminal; knows records and names, prints nothing."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

LEGEND = """\
p(x) p(e)    probability of the class: the photo, its kept pixels alone
area raw     share of the pixels kept, after and before pruning
suf nec min  sufficient, necessary, 1-minimal
parts calls  connected regions of the mask, classifier calls of pruning"""
NUMBERS = ("p(x)", "p(e)", "area %", "raw %", "suf", "nec", "min", "parts", "calls", "s")


def explanations_table(names: Sequence[str], records: Sequence[Mapping[str, Any]], width: int) -> Table:
    """One row for each explanation; long names are shortened to what ``width`` leaves them.

    Args:
        names: what each photo is called.
        records: as :meth:`amx_jax.Explanation.record` returns them.
        width: of the terminal, in characters; below about 75 nothing more can be saved.

    Returns:
        The table.
    """
    rows = [_numbers(record) for record in records]
    labels = [record["target"]["name"] for record in records]
    taken = sum(max(map(len, column)) + 1 for column in zip(NUMBERS, *rows, strict=True)) + 1
    longest = [max(map(cell_len, column)) for column in (names, labels)]
    photo, label = _share(max(width - taken, 16), *longest)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("photo", "class"):
        table.add_column(heading, no_wrap=True)
    for heading in NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, target, numbers in zip(names, labels, rows, strict=True):
        cells = [Text(cell, {"yes": "green", "no": "yellow"}.get(cell, "")) for cell in numbers]
        table.add_row(shorten(name, photo), shorten(target, label), *cells)
    return table


def _numbers(record: Mapping[str, Any]) -> list[str]:
    probability, before = record["probability"], record["before_pruning"]
    holds = (record["sufficient"], record["necessary"], record["minimal"]["holds"])
    return [
        f"{probability['image']:.2f}",
        f"{probability['explanation']:.2f}",
        f"{100 * record['area']:.1f}",
        f"{100 * before['area']:.1f}",
        *("yes" if claim else "no" for claim in holds),
        str(record["components"]),
        str(record["minimal"]["calls"]),
        f"{record['seconds']:.1f}",
    ]


def _share(room: int, first: int, second: int) -> tuple[int, int]:
    """Room for two columns: what one does not need, the other has."""
    half = room // 2
    first = min(first, max(half, room - second))
    return first, min(second, room - first)


def shorten(text: str, width: int) -> Text:
    """The text with its end replaced by … where it is wider than ``width`` characters.

    Examples:
        >>> shorten("Egyptian Cat", 8).plain
        'Egyptia…'
    """
    short = Text(text)
    short.truncate(width, overflow="ellipsis")
    return short


def summary(records: Sequence[Mapping[str, Any]], total: int, folder: str) -> str:
    """The outcome of a run, and where it is.

    Args:
        records: of the explained photos, at least one.
        total: how many photos were asked for.
        folder: where the results are.

    Examples:
        >>> record = {"area": 0.0125, "sufficient": True, "minimal": {"holds": True}}
        >>> print(summary([record] * 4, 5, "out"))
        4 of 5 photos explained, median area 1.2 %, all sufficient and 1-minimal
        results in out/
    """
    sufficient = sum(record["sufficient"] for record in records)
    minimal = sum(record["minimal"]["holds"] for record in records)
    claim = (
        "all sufficient and 1-minimal"
        if sufficient == minimal == len(records)
        else f"{sufficient} sufficient, {minimal} 1-minimal"
    )
    area = median(record["area"] for record in records)
    return (
        f"{len(records)} of {total} photo{'s' if total > 1 else ''} explained, "
        f"median area {100 * area:.1f} %, {claim}\nresults in {folder.rstrip('/') or folder}/"
    )


def ranking(name: str, classes: Sequence[Mapping[str, Any]]) -> str:
    """A photo and its most probable classes, a line each.

    Args:
        name: what the photo is called.
        classes: ``index``, ``name`` and ``probability`` of each.

    Examples:
        >>> print(ranking("cat.jpg", [{"index": 285, "name": "Egyptian Cat", "probability": 0.5}]))
        cat.jpg
           50.0 %  Egyptian Cat (285)
    """
    lines = [f"  {100 * c['probability']:5.1f} %  {c['name']} ({c['index']})" for c in classes]
    return "\n".join([name, *lines])


def classifiers_table(rows: Sequence[tuple[str, float, int, str]]) -> Table:
    """The classifiers: name, millions of parameters, side of the input in pixels, and weights."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("classifier", no_wrap=True)
    for heading in ("parameters", "input"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights")
    for name, parameters, size, weights in rows:
        table.add_row(name, f"{parameters:.1f} M", f"{size} px", Text(weights))
    return table
