"""What each part of the method adds: the default against one change at a time, and pruning alone.

    python -m benchmarks.ablation --data FOLDER [--photos 12] [--notion plain|robust] [--rows NAME …]
        [--output DIR]

takes the first photos by name of a folder, or of a data set with images/ and annotations.json, explains
the top class of each in every way that ``variants`` lists, with one judge, and prints a table. The rows
`NAME+prune` and `full image` have no optimiser: what that adds is how far the best of them is from the
default.
``ablation.json`` in DIR holds the same numbers and a record of each photo and row.

Seconds are of all photos of a row together, shared among them, without XLA's compilation. Where the
notion is not plain, the default's mask comes from a race of the optimiser's ranking with Grad-CAM's, so
that is what the table speaks of.
"""

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from amx_jax import Classifier, Config, Explainer, Weights, load_classifier, preset
from amx_jax.data.annotated import find_annotations, finder, photo_folder
from amx_jax.data.photos import read_photo
from amx_jax.data.results import check_output, write_json
from amx_jax.evaluate.compare import Failure, compare, configured, record_of
from amx_jax.evaluate.summary import MethodSummary, summarise
from amx_jax.explanation import Unexplained
from amx_jax.lift import share_cores
from amx_jax.objective.decision import MARGIN
from benchmarks.programs import device_name, first_photos

DEFAULT, WHOLE = "default", "full image"
PRUNED = tuple(f"{name}+prune" for name in ("gradcam", "rise", "occlusion", "centre", "random"))
# The area's weight before its multiplier, and how fast that moves: of (2, 0.05), (2, 0.3) and these the
# smallest masks before pruning on four photos.
DUAL_AREA, DUAL = 5.0, 0.1
COMPILED = "/jax/core/compile/backend_compile_duration"
HEADINGS = (
    "row",
    "photos",
    "holds %",
    "area % [95 %]",
    "over default's [95 %]",
    "unseen kept %",
    "regions",
    "energy ×",
    "s",
    "passes",
)


@dataclass(frozen=True)
class Options:
    """The default against one change at a time.

    Attributes:
        data: folder of photos, or a data set with images/ and annotations.json.
        photos: how many of them, the first by name.
        notion: when a mask holds.
        rows: which, the default besides; all where none is named.
        output: where ablation.json goes; by default nowhere.
        classifier: one of ``amx classifiers``.
    """

    data: Path
    photos: int = 12
    notion: Literal["plain", "robust"] = "plain"
    rows: tuple[str, ...] = ()
    output: Path | None = None
    classifier: str = "efficientnet_lite0"


def variants(config: Config, stages: Sequence[str]) -> dict[str, Config]:
    """Every row by name.

    Args:
        config: the default.
        stages: the classifier's, first to last; fewer than two cannot be told apart.

    Returns:
        The configurations; ``full image`` stands for :class:`FromWhole` with its own.

    Examples:
        >>> list(variants(Config(), ()))[:4]
        ['default', 'full image', 'gradcam+prune', 'rise+prune']
    """
    terms: Weights = config.objective
    rows = {DEFAULT: config, WHOLE: replace(config, method="centre")}
    rows |= {name: configured(config, name) for name in PRUNED}
    for name in Weights.__dataclass_fields__:
        if getattr(terms, name):
            rows[f"no {name.replace('_', ' ')}"] = replace(
                config, objective=replace(terms, **{name: 0.0})
            )
    rows["pixel logits"] = replace(config, generator="grid")
    rows["no free logits"] = replace(config, free_gain=0.0)
    if len(stages) > 1:
        rows["first stage"] = replace(config, stages=(stages[0],))
        rows["last stage"] = replace(config, stages=(stages[-1],))
    rows["annealed"] = replace(config, hardening="annealed")
    rows["dual"] = replace(config, budget=False, dual=DUAL, objective=replace(terms, area=DUAL_AREA))
    paper = preset("paper")
    rows["paper"] = replace(config, budget=paper.budget, objective=paper.objective)
    return rows


def picked(rows: Mapping[str, Config], names: Sequence[str]) -> dict[str, Config]:
    """The default and the rows of some names, in the table's order; ends the program at others.

    Examples:
        >>> list(picked(variants(Config(), ()), ["dual", "full image"]))
        ['default', 'full image', 'dual']
    """
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: unknown rows; there are {', '.join(rows)}")
    return {name: own for name, own in rows.items() if name == DEFAULT or name in names or not names}


class FromWhole(Explainer):
    """Prunes the whole photo, in the order of a ranking that says nothing.

    For a method's name as of ``Config``, which must not be ``amx``. The prefix of its ranking that a
    method's pruning would begin with is found as ever, and dropped; its passes are not counted.
    """

    def _ranking(self, name):
        return lambda params, pixels, decision, key: jnp.zeros(pixels.shape[:2])

    def _search(self, job, decision, notion, mask, holds, ranking, refused):
        notion.views = 0
        whole = np.ones_like(mask)
        holds = (yield from notion.test([whole]))[0] > MARGIN
        return (yield from super()._search(job, decision, notion, whole, holds, ranking, refused))


def measure(
    classifier: Classifier,
    photos: Sequence[np.ndarray],
    names: Sequence[str],
    regions: Sequence[Any],
    rows: Mapping[str, Config],
) -> Iterator[dict[str, Any] | Failure]:
    """Row by row, photo by photo, what :func:`amx_jax.evaluate.compare.compare` yields.

    Args:
        classifier: f.
        photos: its inputs, uint8 ``(H, W, C)``.
        names: as of ``compare``.
        regions: likewise.
        rows: by name, as :func:`variants` makes them.
    """
    with compiling() as compiled:
        others = {name: own for name, own in rows.items() if name != WHOLE}
        before = compiled()
        for found in compare(classifier, photos, names, regions, others):
            if isinstance(found, Failure):
                yield found
                continue
            now = compiled()
            found["seconds"] = max(found["seconds"] - (now - before), 0.0)
            before = now
            yield found
    if WHOLE in rows:
        explainer = FromWhole(classifier, rows[WHOLE])
        for name, region, whole in zip(names, regions, explainer.stream(photos), strict=True):
            if isinstance(whole, Unexplained):
                yield Failure(whole.reason, name, WHOLE)
            else:
                record = record_of(WHOLE, name, whole, region(whole.target), whole.seconds)
                yield record | {"start": WHOLE}


@contextmanager
def compiling() -> Iterator[Any]:
    """A function that says how many seconds XLA has compiled since."""
    spent = [0.0]

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == COMPILED:
            spent[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: spent[0]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def shared_seconds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records, with each row's seconds shared equally among its photos.

    Results come in bursts, a batch at a time, so that the time between two says nothing of either.

    Examples:
        >>> [r["seconds"] for r in shared_seconds([{"method": "a", "seconds": s} for s in (9.0, 1.0)])]
        [5.0, 5.0]
    """
    by_row: dict[str, list[float]] = {}
    for record in records:
        by_row.setdefault(record["method"], []).append(record["seconds"])
    return [dict(r) | {"seconds": float(np.mean(by_row[r["method"]]))} for r in records]


def table(summaries: Sequence[MethodSummary]) -> str:
    """A Markdown table, and a last line that says what the optimiser adds.

    Args:
        summaries: of the rows, in order.
    """
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, summaries)]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*rows, "", verdict(summaries)])


def _cells(row: MethodSummary) -> list[str]:
    kept, trials = (sum(kind[n] for kind in row["retention"].values()) for n in ("kept", "trials"))
    return [
        row["method"],
        str(row["photos"]),
        _number(row["holds"]["value"], 100, 0),
        _interval(row["area"], 100, 1),
        "1" if row["method"] == row["reference"] else _interval(row["ratio"], 1, 2),
        _number(kept / trials if trials else None, 100, 1),
        _number(row["components"]["value"], 1, 1),
        _number(row["energy"]["lift"]["value"], 1, 1),
        _number(row["seconds"]["value"], 1, 1),
        _number(row["passes"]["value"], 1, 0),
    ]


def _number(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def _interval(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
    value, lower, upper = (_number(estimate[k], scale, digits) for k in ("value", "lower", "upper"))
    return value if value == "–" else f"{value} [{lower} {upper}]"


def verdict(summaries: Sequence[MethodSummary]) -> str:
    """What the optimiser adds, in a sentence: the best pruning alone against the default.

    The best is the smallest by median area of the rows whose masks hold on most photos.
    """
    alone = [row for row in summaries if row["method"] in (WHOLE, *PRUNED)]
    default = next((row for row in summaries if row["method"] == DEFAULT), None)
    if not alone or default is None:
        return "pruning alone: not measured"
    best = min(alone, key=lambda row: (-(row["holds"]["value"] or 0), row["area"]["value"] or 0))
    return (
        f"pruning alone, best start {best['method'].removesuffix('+prune')}: "
        f"{_number(best['area']['value'], 100, 1)} % against "
        f"{_number(default['area']['value'], 100, 1)} % (ratio {_interval(best['ratio'], 1, 2)})"
    )


def run(options: Options, classifier: Classifier, config: Config) -> str:
    """Measure, write, and return what there is to print.

    Args:
        options: what to compare, and on what.
        classifier: f, in place of the options'.
        config: the default.
    """
    rows = picked(variants(config, classifier.stages or ()), options.rows)
    output = options.output and check_output(options.output)
    places = find_annotations(options.data)
    files = first_photos(photo_folder(options.data), options.photos)
    preprocess = classifier.preprocess

    regions = [finder(places.get(file), preprocess) for file in files]
    names = [file.name for file in files]
    crops = [preprocess.crop(read_photo(file, preprocess.resize)) for file in files]
    records = []
    try:
        for found in measure(classifier, crops, names, regions, rows):
            if isinstance(found, Failure):
                print(f"\n{found.image} ({found.method}): {found.reason}", file=sys.stderr)
                continue
            records.append(found)
            done = f"{len(records)} of {len(rows) * len(files)}: {found['method']}"
            print(f"\r{done:<40}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # what is finished is kept
        print("\ninterrupted", end="", file=sys.stderr)
    print(file=sys.stderr)
    records = shared_seconds(records)
    summaries = sorted(summarise(records, DEFAULT), key=lambda s: list(rows).index(s["method"]))
    if output:
        about = {"machine": f"{platform.machine()}, {device_name()}", "classifier": classifier.name}
        content = {**about, "notion": config.notion, "summaries": summaries, "records": records}
        write_json(Path(output, "ablation.json"), content)
    return table(summaries)


def main() -> None:
    """Compare, print."""
    options = tyro.cli(Options)
    config = Config(notion=options.notion, controls=0)  # no row of the table shows them
    share_cores(min(options.photos, config.batch_size))
    print(run(options, load_classifier(options.classifier), config))


if __name__ == "__main__":
    main()
