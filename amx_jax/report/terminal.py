"""Results as tables and lines for a terminal; knows records and names, prints nothing."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from textwrap import wrap
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from amx_jax.errors import one_line
from amx_jax.verify.words import per_cent

LEGEND = """\
p(x) p(e)    probability of the class: the photo, its kept pixels alone
area raw     share of the pixels kept, after and before pruning
suf nec min  sufficient, necessary, 1-minimal
parts calls  connected regions of the mask, classifier calls of pruning"""
CAUSES = 10  # of failures, that are told
ALIKE = 0.5  # rank correlation from which a ranking hardly depends on what the classifier learned
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

    The number of an instance stays: it is all that tells two masks of one photo apart.

    Examples:
        >>> shorten("Egyptian Cat", 8).plain, shorten("Egyptian Cat/12", 8).plain
        ('Egyptia…', 'Egyp…/12')
    """
    number = re.search(r"(/[0-9]+)?$", text)
    assert number is not None  # it may be empty
    short = Text(text[: number.start()])
    short.truncate(width - len(number[0]), overflow="ellipsis")
    return short.append(number[0])


class Column(NamedTuple):
    """A column of :func:`methods_table`: what it says of a summary, and when it goes.

    Attributes:
        heading: above it; ``{}`` stands for the reference's name.
        cell: from a summary to its text, empty where nothing was measured.
        rank: where there is no room the highest goes first; those of rank 0 stay.
        meaning: what it is, in a line.
    """

    heading: str
    cell: Callable[[Mapping[str, Any]], str | Text]
    rank: int
    meaning: str


class Filled(NamedTuple):
    """A column with what it says of some summaries.

    Attributes:
        column: which.
        heading: above it.
        cells: one for each summary.
        room: its width in characters, with the gap before it.
    """

    column: Column
    heading: str
    cells: list[Text]
    room: int


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
    columns = _shown(summaries, width)
    longest = max(width - sum(shown.room for shown in columns), 12)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for shown in columns:
        table.add_column(shown.heading, justify="right", no_wrap=True)
    for row, summary in enumerate(summaries):
        name = shorten(summary["method"], longest)
        table.add_row(name, *(shown.cells[row] for shown in columns))
    return table


def methods_legend(summaries: Sequence[Mapping[str, Any]], width: int) -> str:
    """What the columns of :func:`methods_table` are, a line each, of those that it shows alone.

    Args:
        summaries: as for the table.
        width: likewise.

    Examples:
        >>> methods_legend([], 20).splitlines()[0]
        'holds %  masks that satisfy the notion by their certificate'
    """
    columns = _shown(summaries, width)
    longest = max((len(shown.heading) for shown in columns), default=0)
    return "\n".join(f"{shown.heading:<{longest}}  {shown.column.meaning}" for shown in columns)


def _shown(summaries: Sequence[Mapping[str, Any]], width: int) -> list[Filled]:
    """The columns that have a value and for which there is room."""
    reference = summaries[0]["reference"] if summaries else ""
    columns = []
    for column in COLUMNS:
        cells = [Text.assemble(column.cell(summary)) for summary in summaries]
        if any(cells) or not summaries:
            heading = column.heading.format(reference)
            room = max(cell_len(heading), *(cell.cell_len for cell in cells), 0) + 1
            columns.append(Filled(column, heading, cells, room))
    longest = max(map(cell_len, ["method", *(summary["method"] for summary in summaries)]))
    while longest + sum(shown.room for shown in columns) > width:
        last = max(columns, key=lambda shown: shown.column.rank, default=None)
        if last is None or last.column.rank == 0:
            break
        columns.remove(last)
    return columns


def randomised_lines(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for each method: how it explains a classifier that has learned nothing.

    Args:
        summaries: as :func:`amx_jax.evaluate.summary.summarise` returns them; one without such
            explanations has no line.

    Examples:
        >>> figures = {key: {"value": 0.02} for key in ("rank_correlation", "iou", "iou_chance")}
        >>> found = {"photos": 4, "holds": 4, "empty": 0, **figures}
        >>> print(randomised_lines([{"method": "amx", "randomised": found}]))
        amx: of the randomised classifier 4 of 4 masks hold, rank correlation 0.02, IoU 0.02
        (0.02 by chance)
    """
    return "\n".join(
        _randomised_line(summary["method"], summary["randomised"])
        for summary in summaries
        if summary["randomised"]["photos"]
    )


def _randomised_line(method: str, found: Mapping[str, Any]) -> str:
    correlation, overlap, chance = (
        found[key]["value"] for key in ("rank_correlation", "iou", "iou_chance")
    )
    empty = f" ({found['empty']} empty: it gives its class to the bare background)"
    parts = [
        f"of the randomised classifier {found['holds']} of {found['photos']} masks hold"
        f"{empty if found['empty'] else ''}"
    ]
    if correlation is not None:
        parts.append(f"rank correlation {correlation:.2f}")
    if overlap is not None:
        parts.append(f"IoU {overlap:.2f} ({chance:.2f} by chance)")
    line = f"{method}: {', '.join(parts)}"
    if correlation is not None and correlation > ALIKE:
        line += "; the ranking hardly depends on what the classifier has learned"
    return line


def _claim(key: str, best: int = 1) -> Callable[[Mapping[str, Any]], Text]:
    """A share of photos in per cent; 0 and 100 mean none and all, and green is the best of the two."""

    def cell(summary: Mapping[str, Any]) -> Text:
        share = summary[key]["value"]
        if share is None:
            return Text()
        rounded = round(100 * share)
        whole = share in (0, 1)
        return Text(
            str(rounded if whole else min(max(rounded, 1), 99)),
            "green" if share == best else "yellow",
        )

    return cell


def _number(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(summary: Mapping[str, Any]) -> str:
        value = summary[key]["value"]
        return "" if value is None else format(value, form)

    return cell


def _lift(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(summary: Mapping[str, Any]) -> str:
        lift = summary[key]["lift"]["value"]
        return "" if lift is None else f"{lift:.1f}"

    return cell


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
    Column("n", lambda summary: str(summary["photos"]), 4, "photos"),
    Column("holds %", _claim("holds"), 0, "masks that satisfy the notion by their certificate"),
    Column("area %", _area, 0, "pixels kept: median of all masks, 95 % interval"),
    Column("vs {}", _ratio, 1, "that over the reference's, on the photos of both"),
    Column("suf %", _claim("sufficient"), 2, "sufficient masks"),
    Column("nec %", _claim("necessary"), 6, "necessary masks"),
    Column(
        "drop %",
        lambda summary: f"{100 * summary['drop']:.0f}",
        8,
        "probability of the class that the kept pixels alone lose",
    ),
    Column("energy ×", _lift("energy"), 5, "share of the mask on the object, over that by chance"),
    Column(
        "matched ×", _lift("energy_matched"), 16, "that of as many pixels as the first method keeps"
    ),
    Column("ins", _number("insertion", ".2f"), 9, "area under the insertion curve, 1 is best"),
    Column("del", _number("deletion", ".2f"), 10, "area under the deletion curve, 0 is best"),
    Column("sens", _number("sensitivity", ".2f"), 3, "how far a little noise moves the ranking"),
    Column("spec %", _claim("specific"), 12, "masks that keep the label where wrong ones do not"),
    Column("leak %", _claim("leaking", best=0), 13, "masks whose shape alone gives the label"),
    Column("IoU seeds", _number("stability", ".2f"), 14, "overlap of the masks of several seeds"),
    Column("parts", _number("components", ".0f"), 11, "connected regions: median"),
    Column("s", _number("seconds", ".1f"), 7, "seconds a photo: median"),
    Column("passes", _number("passes", ".0f"), 15, "images the classifier saw: median"),
)


def remarks(names: Sequence[str], records: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Of a single photo its certificate in words, of several what is flagged.

    Args:
        names: what the photos are called.
        records: of the explained photos.
        width: of the terminal, in characters.

    Returns:
        Lines, the last one empty; none where there is nothing to say.

    Examples:
        >>> flagged, clean = ({"controls": {"flags": flags}} for flags in (["not specific"], []))
        >>> remarks(["cat", "dog"], [flagged, clean], 80)
        ['flagged: cat: not specific', '']
    """
    sentences = (
        records[0]["words"]
        if len(records) == 1
        else [
            f"flagged: {name}: {flag}"
            for name, record in zip(names, records, strict=True)
            for flag in record["controls"]["flags"]
        ]
    )
    lines = [line for sentence in sentences for line in wrap(sentence, width, subsequent_indent="  ")]
    return [*lines, ""] if lines else []


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
        >>> print(summary([{**record, "image": "two dogs"}] * 2, 1, "out").splitlines()[0])
        1 of 1 photo explained by 2 masks, median area 1.2 %, all sufficient and 1-minimal
    """
    photos = len({record.get("image", number) for number, record in enumerate(records)})
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
        f"{photos} of {total} photo{'s' if total > 1 else ''} explained"
        f"{f' by {len(records)} masks' if len(records) > photos else ''}, "
        f"median area {100 * area:.1f} %, {claim}\nresults in {folder.rstrip('/') or folder}/"
    )


def run_lines(found: Mapping[str, Any], width: int) -> str:
    """A run over a data set, in a few lines.

    Args:
        found: as :func:`amx_jax.evaluate.run_summary.summarise_run` returns it.
        width: of the terminal, in characters.

    Examples:
        >>> nothing = dict.fromkeys(("image", "explanation"))
        >>> found = {"explained": 0, "failed": 1, "area": {}, "probability": nothing, "flags": {}}
        >>> print(run_lines(found | {"failures": {"gone": {"count": 1, "examples": ["a"]}}}, 80))
        0 explained, 1 failed
        <BLANKLINE>
        failed: gone
          1 image: a
    """
    pending = f", {found['pending']:,} pending" if found.get("pending") else ""
    lines = [f"{found['explained']:,} explained, {found['failed']:,} failed{pending}"]
    if found["explained"]:
        names = ("sufficient", "minimal", "holds", "necessary")
        lines += ["", *(f"{name:<12}{per_cent(found[name]):>8}" for name in names)]
        quantiles = found["area"]
        head = "".join(f"{name:>8}" for name in quantiles)
        values = "".join(f"{100 * value:>6.1f} %" for value in quantiles.values())
        lines += ["", f"{'quantile':<12}{head}", f"{'area':<12}{values}"]
        image, explanation = found["probability"]["image"], found["probability"]["explanation"]
        lines += [
            "",
            f"median probability of the class: photo {image:.2f}, kept pixels {explanation:.2f}",
        ]
    for flag, count in found["flags"].items():
        lines.append(f"{count:,} flagged: {flag}")
    told_of = list(found["failures"].items())[:CAUSES]
    for cause, about in told_of:
        count, some = about["count"], ", ".join(one_line(name) for name in about["examples"])
        more = ", …" if count > len(about["examples"]) else ""
        told = f"{count:,} image{'s' if count > 1 else ''}: {some}{more}"
        lines += ["", *wrap(f"failed: {one_line(cause)}", width, subsequent_indent="  ")]
        lines += wrap(told, width, initial_indent="  ", subsequent_indent="  ")
    if len(found["failures"]) > CAUSES:
        lines += ["", f"and {len(found['failures']) - CAUSES:,} more causes; --json has all"]
    return "\n".join(lines)


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
