"""Masks of single instances: how many lie in one object, and how many objects have one.

    python -m benchmarks.instances --data FOLDER [FOLDER …] [--photos 24] [--methods …] [--output DIR]

takes of each folder (layouts as of ``amx evaluate``) the first photos whose top class has at least two
annotated objects that the classifier's crop shows, and asks each method for masks of that class:

| method | how its masks come apart |
| --- | --- |
| ``windows`` | ``explain_instances``: squares as telling as the photo, none overlapping |
| ``every`` | the same with ``sure=0``: every square that keeps the class |
| ``exclude`` | the search again and again, each time without what the masks before it kept |
| ``joint`` | masks optimised together, their overlap punished; then a search in the part of each |
| ``gradcam`` | the connected components of Grad-CAM above half its greatest value |
| ``rex`` | rex-xai's ten spotlights, of which the most that do not overlap (see benchmarks.outside) |

One judge says of every mask whether it keeps the class by itself, on gray. ``DIR/<photo>/<method>.npz``
holds what a method found; a second run makes only what is missing, or was found for another photo of
that name, another class or another number of steps.
"""

import functools
import io
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy import ndimage, optimize

from amx_jax import Classifier, Config, Explainer, Explanation, load_classifier
from amx_jax.config import SURE
from amx_jax.data.annotated import find_annotations
from amx_jax.data.photos import read_photo, unique_stems
from amx_jax.data.results import check_output, write_json, write_whole
from amx_jax.evaluate.metrics import bootstrap_interval
from amx_jax.evaluate.peers import METHODS
from amx_jax.explanation import Unexplained
from amx_jax.instances import explain_instances
from amx_jax.lift import share_cores
from amx_jax.objective.decision import MARGIN, Decision
from amx_jax.objective.terms import total_variation
from benchmarks.programs import device_name

INSIDE = 0.8  # of a mask's pixels, for it to be of one object
MOST = 6  # masks of the methods that could go on for ever, or must know how many there are
GRID, STEPS, RATE = 28, 175, 0.1  # of the joint search
AREA, ROUGHNESS, OVERLAP = 1.0, 0.1, 10.0  # its weights


class Case(NamedTuple):
    """A photo with several objects of its top class.

    Attributes:
        name: of the photo.
        pixels: the classifier's input, uint8 ``(size, size, 3)``.
        target: the class.
        objects: bool ``(size, size)`` each, where they are.
    """

    name: str
    pixels: np.ndarray
    target: int
    objects: list[np.ndarray]


Method = Callable[[Explainer, Case], Sequence[np.ndarray]]


def purities(masks: Sequence[np.ndarray], objects: Sequence[np.ndarray]) -> np.ndarray:
    """What share of each mask lies in each object.

    Args:
        masks: bool ``(H, W)`` each; an empty one lies in none.
        objects: likewise.

    Returns:
        float64 ``(masks, objects)`` in 0 … 1.

    Examples:
        >>> left, upper = np.tile([True, False], (2, 1)), np.tile([[True], [False]], (1, 2))
        >>> purities([left, left & upper, left & ~left], [left, upper]).tolist()
        [[1.0, 0.5], [1.0, 1.0], [0.0, 0.0]]
    """
    shares = [[(m & o).sum() / max(m.sum(), 1) for o in objects] for m in masks]
    return np.array(shares, float).reshape(len(masks), len(objects))


def covered(purity: np.ndarray, inside: float = INSIDE) -> int:
    """How many objects have a mask of their own: one lies in it, and counts for no other.

    Args:
        purity: as :func:`purities` returns it.
        inside: the share of a mask that must lie in the object.

    Examples:
        >>> covered(np.array([[1.0, 0.9], [0.1, 0.2]])), covered(np.array([[1.0, 0.9], [0.8, 0.2]]))
        (1, 2)
    """
    fits = purity >= inside
    return int(fits[optimize.linear_sum_assignment(fits, maximize=True)].sum())


def search(explainer: Explainer, case: Case, regions: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The masks that keep the class, of those that each keep pixels of one region only."""
    count = len(regions)
    found = explainer([case.pixels] * count, [case.target] * count, within=list(regions))
    return holding(found)


def holding(found: Iterable[Explanation | Unexplained]) -> list[np.ndarray]:
    """The masks whose certificate says that they hold."""
    return [one.mask for one in found if isinstance(one, Explanation) and one.certificate.holds]


def by_windows(explainer: Explainer, case: Case, sure: float = SURE) -> list[np.ndarray]:
    """The library's own; none where it explains the whole photo, as no window shows an instance."""
    [found] = explain_instances(explainer, [case.pixels], [case.target], sure=sure)
    return holding(one.explanation for one in found if one.window)


def by_exclusion(explainer: Explainer, case: Case) -> list[np.ndarray]:
    """One mask after another, each without the pixels of those before and a cell around them."""
    free = np.ones(case.pixels.shape[:2], bool)
    masks: list[np.ndarray] = []
    while len(masks) < MOST and free.any():
        new = search(explainer, case, [free])
        if not new:
            break
        masks += new
        free = free & ~ndimage.binary_dilation(new[0], iterations=explainer.cell)
    return masks


def by_parts(explainer: Explainer, case: Case) -> list[np.ndarray]:
    """Where each of several masks is the greatest, of masks that keep the class and shun each other."""
    classifier = explainer.classifier
    image = classifier.preprocess.normalize(case.pixels.astype(np.float32))
    found = _joint(classifier, explainer.config.background)
    soft = np.asarray(found(classifier.params, image, case.target))
    owner = soft.argmax(axis=0)
    regions = [owner == number for number in range(MOST)]
    return search(explainer, case, [region for region in regions if region.any()])


@functools.cache
def _joint(classifier: Classifier, background: tuple[int, int, int]) -> Callable[..., jax.Array]:
    """The joint search, from parameters, input and class to soft masks ``(MOST, size, size)``."""
    fill = classifier.preprocess.limits(background)[0]
    size = classifier.preprocess.size

    def masks(grids):
        return jax.nn.sigmoid(jax.image.resize(grids, (MOST, size, size), "bilinear"))

    def loss(grids, params, image, target):
        soft = masks(grids)
        composed = soft[..., None] * image + (1 - soft[..., None]) * fill
        logits = jax.vmap(lambda one: classifier.apply(params, one)[0])(composed)
        keeps = -jax.nn.log_softmax(logits)[:, target].mean()
        both = (soft.sum(axis=0) ** 2 - (soft**2).sum(axis=0)).mean() / 2
        rough = jax.vmap(total_variation)(soft).mean()
        return keeps + AREA * soft.mean() + ROUGHNESS * rough + OVERLAP * both

    @jax.jit
    def found(params, image, target):
        optimizer = optax.adam(RATE)
        grids = jax.random.normal(jax.random.key(0), (MOST, GRID, GRID))

        def step(state, _):
            grids, moments = state
            slope = jax.grad(loss)(grids, params, image, target)
            updates, moments = optimizer.update(slope, moments)
            return (optax.apply_updates(grids, updates), moments), None

        (grids, _), _ = jax.lax.scan(step, (grids, optimizer.init(grids)), length=STEPS)
        return masks(grids)

    return found


def by_components(explainer: Explainer, case: Case) -> list[np.ndarray]:
    """Where Grad-CAM's map exceeds half its greatest value, a mask for each connected part."""
    classifier = explainer.classifier
    fill = classifier.preprocess.limits(explainer.config.background)[0]
    image = classifier.preprocess.normalize(case.pixels.astype(np.float32))
    rank = METHODS["gradcam"].rank
    asked = Decision(jnp.int32(case.target))
    heat = np.asarray(rank(classifier, classifier.params, image, asked, jax.random.key(0), fill))
    labels, count = ndimage.label(heat > heat.max() / 2)
    return [labels == number for number in range(1, count + 1)]


def by_spotlights(explainer: Explainer, case: Case) -> list[np.ndarray]:
    """ReX's several explanations, in PyTorch."""
    from benchmarks import outside

    if (reason := outside.TOOLS["rex"].missing()) is not None:
        raise SystemExit(reason)
    model = _in_pytorch(explainer.classifier.name)
    return list(outside.rex_multi(model, case.pixels, case.target, 0))


@functools.cache
def _in_pytorch(name: str) -> Any:
    """The classifier, read once for all photos."""
    from benchmarks.recheck import load_model

    return load_model(name).requires_grad_(False)


BY: dict[str, Method] = {
    "windows": by_windows,
    "every": functools.partial(by_windows, sure=0.0),
    "exclude": by_exclusion,
    "joint": by_parts,
    "gradcam": by_components,
    "rex": by_spotlights,
}


@dataclass(frozen=True)
class Options:
    """Masks of single instances, of several methods.

    Attributes:
        data: folders of photos with annotations.
        photos: how many of each with several objects of the top class, the first by name.
        skip: how many of these to leave out before.
        methods: some of windows, every, exclude, joint, gradcam, rex.
        output: where masks and instances.json go.
        steps: of each search.
        batch_size: images that are optimised at a time.
    """

    data: tuple[Path, ...]
    photos: int = 24
    skip: int = 0
    methods: tuple[str, ...] = ("windows", "exclude", "joint", "gradcam")
    output: Path = Path("instances")
    steps: int = Config.steps
    batch_size: int = 8


def cases(explainer: Explainer, folder: Path) -> Iterator[Case]:
    """A folder's photos, by name, that show several objects of their top class."""
    preprocess = explainer.classifier.preprocess
    places = find_annotations(folder)
    photos = sorted(places)
    for photo, stem in zip(photos, unique_stems(photos), strict=True):
        pixels = preprocess.crop(read_photo(photo))
        target = int(explainer.decision(pixels).target)
        objects = places[photo].regions(target, preprocess)
        if len(objects) >= 2:
            yield Case(stem, pixels, target, objects)


def masks_of(name: str, explainer: Explainer, case: Case, output: Path) -> tuple[np.ndarray, float]:
    """What a method finds, or has found before, ``(masks, size, size)``; and its seconds."""
    path = output / case.name / f"{name}.npz"
    asked = json.dumps([zlib.crc32(case.pixels.tobytes()), case.target, explainer.config.steps])
    if path.exists():
        with np.load(path) as file:
            if str(file["asked"]) == asked:
                return file["masks"], float(file["seconds"])
    start = time.perf_counter()
    masks = BY[name](explainer, case)
    seconds = time.perf_counter() - start
    stacked = np.array(list(masks), bool).reshape(-1, *case.pixels.shape[:2])
    content = io.BytesIO()
    np.savez_compressed(content, masks=stacked, seconds=seconds, asked=asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
    return stacked, seconds


def record_of(name: str, explainer: Explainer, case: Case, output: Path) -> dict[str, Any]:
    """What is measured of a method on a photo."""
    masks, seconds = masks_of(name, explainer, case, output)
    purity = purities(list(masks), case.objects)
    alone: list[bool] = []
    if len(masks):
        asked = explainer.decision(case.pixels, case.target)
        judged = explainer.judge([case.pixels] * len(masks), asked, list(masks))
        alone = (judged.margins > MARGIN).tolist()
    return {
        "method": name,
        "image": case.name,
        "objects": len(case.objects),
        "masks": len(masks),
        "area": [float(mask.mean()) for mask in masks],
        "sufficient": alone,
        "purity": purity.max(axis=1).tolist() if len(masks) else [],
        "covered": covered(purity),
        "seconds": seconds,
    }


def table(records: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    """A row for each method, in Markdown."""
    lines = [
        "| method | photos | masks a photo | keep the class alone | ≥ 80 % in one object "
        "| objects with a mask of their own | of so many | median area | median seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in methods:
        mine = [record for record in records if record["method"] == name]
        masks = sum(record["masks"] for record in mine)
        pure = sum(share >= INSIDE for record in mine for share in record["purity"])
        alone = sum(sum(record["sufficient"]) for record in mine)
        areas = [area for record in mine for area in record["area"]]
        seconds = np.median([record["seconds"] for record in mine])
        mean = bootstrap_interval(np.array([r["covered"] for r in mine]), statistic=np.mean)
        lines.append(
            f"| {name} | {len(mine)} | {masks / len(mine):.1f} | {alone / max(masks, 1):.0%} | "
            f"{pure / max(masks, 1):.0%} | {mean.value:.2f} ({mean.lower:.2f} to {mean.upper:.2f}) | "
            f"{np.mean([r['objects'] for r in mine]):.1f} | "
            f"{np.median(areas) if areas else np.nan:.1%} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def run(options: Options, explainer: Explainer) -> str:
    """Make what is missing, and compare.

    Args:
        options: which photos and methods.
        explainer: of the classifier that is explained.

    Raises:
        SystemExit: a method is unknown, or no photo shows several objects.
    """
    unknown = [name for name in options.methods if name not in BY]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: unknown methods, expected some of {', '.join(BY)}")
    output = check_output(options.output)
    records = []
    for folder in options.data:
        chosen = islice(cases(explainer, folder), options.skip, options.skip + options.photos)
        for case in chosen:
            for name in options.methods:
                records.append(record_of(name, explainer, case, output))
                print(json.dumps(records[-1]), flush=True)
    if not records:
        raise SystemExit("no photo with two annotated objects of its top class")
    write_json(output / "instances.json", {"device": device_name(), "records": records})
    return table(records, options.methods)


def main() -> None:
    """Parse and run."""
    options = tyro.cli(Options)
    share_cores(options.batch_size)
    config = Config(steps=options.steps, batch_size=options.batch_size, controls=0)
    print(run(options, Explainer(load_classifier(), config)))


if __name__ == "__main__":
    main()
