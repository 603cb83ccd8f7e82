"""Results as tables and lines for a terminal; knows records and names, prints nothing."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

LEGEND = """\
p(x) p(e)    probability of the class: the photo, its kept pixels alone
area raw     share of the pixels kept, after and before pruning
suf nec min  sufficient, necessary, 1-minimal
parts calls  connected regions of the mask, classifier calls of pruning"""
METHODS_LEGEND = """\
n holds %      photos, share whose mask satisfies the notion by its certificate
area % vs      median share of the pixels kept, by masks that hold or not; over
               the reference's, on the photos of both; with 95 % intervals
suf % nec %    sufficient, necessary
drop %         probability of the class that the kept pixels alone lose
energy ×       share of the mask on the object, over that by chance
parts s passes connected regions, seconds, images the classifier saw: medians"""
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


class Column(NamedTuple):
    """A column of :func:`methods_table`: what it says of a summary, and when it goes.

    Attributes:
        heading: above it; ``{}`` stands for the reference's name.
        cell: from a summary to its text, empty where nothing was measured.
        rank: where there is no room the highest goes first; those of rank 0 stay.
    """

    heading: str
    cell: Callable[[Mapping[str, Any]], str | Text]
    rank: int


def methods_table(summaries: Sequence[Mapping[str, Any]], width: int) -> Table:
    """One row for each method; the least important columns go where the terminal is narrow.

    A column in which no method has a value is left out. The share of masks that hold is green where it
    is all of them, else yellow; 0 and 100 % are none and all, not nearly.

    Args:
        summaries: as :func:`amx_jax.evaluate.summary.summarise` returns them.
        width: of the terminal, in characters; below about 50 nothing more can be saved.

    Returns:
        The table.

    Examples:
        >>> methods_table([], 80).row_count
        0
    """
    reference = summaries[0]["reference"] if summaries else ""
    columns = []
    for column in COLUMNS:
        cells = [Text.assemble(column.cell(summary)) for summary in summaries]
        if any(cells) or not summaries:
            heading = column.heading.format(reference)
            room = max(cell_len(heading), *(cell.cell_len for cell in cells), 0) + 1
            columns.append((heading, cells, room, column.rank))
    names = [summary["method"] for summary in summaries]
    longest = max(map(cell_len, ["method", *names]))
    while longest + sum(room for *_, room, _ in columns) > width:
        last = max(columns, key=lambda column: column[-1], default=None)
        if last is None or last[-1] == 0:
            break
        columns.remove(last)
    longest = max(width - sum(room for *_, room, _ in columns), 12)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for heading, *_ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, name in enumerate(names):
        table.add_row(shorten(name, longest), *(cells[row] for _, cells, *_ in columns))
    return table


def _claim(key: str) -> Callable[[Mapping[str, Any]], Text]:
    """A share of photos in per cent; 0 and 100 mean none and all."""

    def cell(summary: Mapping[str, Any]) -> Text:
        share = summary[key]["value"]
        if share is None:
            return Text()
        rounded = round(100 * share)
        whole = share in (0, 1)
        return Text(
            str(rounded if whole else min(max(rounded, 1), 99)), "green" if share == 1 else "yellow"
        )

    return cell


def _median(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(summary: Mapping[str, Any]) -> str:
        value = summary[key]["value"]
        return "" if value is None else format(value, form)

    return cell


def _lift(summary: Mapping[str, Any]) -> str:
    lift = summary["energy"]["lift"]["value"]
    return "" if lift is None else f"{lift:.1f}"


def _area(summary: Mapping[str, Any]) -> str:
    return _interval(summary["area"], 100, 1)


def _ratio(summary: Mapping[str, Any]) -> str:
    if summary["method"] == summary["reference"]:
        return "1"  # by definition: it has no interval
    return _interval(summary["ratio"], 1, 2)


def _interval(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
    value, *ends = (
        None if estimate[key] is None else f"{scale * estimate[key]:.{digits}f}"
        for key in ("value", "lower", "upper")
    )
    if value is None or None in ends:
        return value or ""
    return f"{value} [{ends[0]} {ends[1]}]"


COLUMNS = (
    Column("n", lambda summary: str(summary["photos"]), 3),
    Column("holds %", _claim("holds"), 0),
    Column("area %", _area, 0),
    Column("vs {}", _ratio, 1),
    Column("suf %", _claim("sufficient"), 2),
    Column("nec %", _claim("necessary"), 5),
    Column("drop %", lambda summary: f"{100 * summary['drop']:.0f}", 7),
    Column("energy ×", _lift, 4),
    Column("parts", _median("components", ".0f"), 8),
    Column("s", _median("seconds", ".1f"), 6),
    Column("passes", _median("passes", ".0f"), 9),
)


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
    notion = records[0].get("notion", {"name": "plain", "goal": "sufficient"})
    asked = [name for name in (notion["name"], notion["goal"]) if name not in ("plain", "sufficient")]
    word = " ".join(asked) or "sufficient"
    held = sum(r["notion"]["holds"] if asked else r["sufficient"] for r in records)
    minimal = sum(record["minimal"]["holds"] for record in records)
    claim = (
        f"all {word} and 1-minimal"
        if held == minimal == len(records)
        else f"{held} {word}, {minimal} 1-minimal"
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
