"""How good the masks are: area, proof, compactness and cost over a folder of photos.

    python -m benchmarks.quality --data FOLDER [--photos 64] [--output DIR] [--batch-size 8 …]

takes the first photos of the folder by name, explains the top class of each, saves what
``amx explain`` saves, has PyTorch recompute sufficiency and 1-minimality from the PNGs, and prints a
table. Every field of the configuration is an option. ``quality.json`` in DIR holds the same numbers.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from amx_jax import Config, Explainer, Explanation, load_classifier
from amx_jax.data.photos import read_photo, unique_stems
from amx_jax.data.results import check_output, write_explanation, write_index
from amx_jax.lift import share_cores
from amx_jax.report.pictures import explanation_pictures
from amx_jax.verify.prune import components
from benchmarks.programs import device_name, first_photos
from benchmarks.recheck import recheck_all


@dataclass(frozen=True)
class Options:
    """Quality of explanations over a folder of photos.

    Attributes:
        data: folder of photos.
        photos: how many of them, the first by name.
        output: where the explanations and quality.json go.
        classifier: one of ``amx classifiers``.
        config: how to explain.
    """

    data: Path
    photos: int = 64
    output: Path = Path("quality")
    classifier: str = "efficientnet_lite0"
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def summarise(explanations: list[Explanation], rechecked: list[dict[str, bool]]) -> dict[str, float]:
    """The figures of the table; shares in 0 … 1."""
    certificates = [explanation.certificate for explanation in explanations]

    def percentile(values, q: float) -> float:
        return float(np.percentile(list(values), q))

    before = [float(e.optimized_mask.mean()) for e in explanations]
    area = [c.area for c in certificates]
    kinds = certificates[0].robustness
    figures = {
        "photos": len(explanations),
        "before pruning: sufficient": float(np.mean([e.optimized_sufficient for e in explanations])),
        "before pruning: no mask but the whole photo": float(np.mean([b == 1.0 for b in before])),
        "before pruning: median area": percentile(before, 50),
        "before pruning: 90th percentile of area": percentile(before, 90),
        "before pruning: median components": statistics.median(
            components(e.optimized_mask) for e in explanations
        ),
        "sufficient, by PyTorch from the PNGs": float(np.mean([r["sufficient"] for r in rechecked])),
        "1-minimal, by PyTorch from the PNGs": float(np.mean([r["minimal"] for r in rechecked])),
        "necessary, by PyTorch from the PNGs": float(np.mean([r["necessary"] for r in rechecked])),
        "certificates that PyTorch confirms": float(np.mean([r["agrees"] for r in rechecked])),
        "median area": percentile(area, 50),
        "90th percentile of area": percentile(area, 90),
        "median components": statistics.median(c.components for c in certificates),
        "median classifier calls of pruning": statistics.median(e.calls for e in explanations),
        "mean classifier calls of pruning": statistics.mean(e.calls for e in explanations),
        "median p(photo)": percentile((c.probability_image for c in certificates), 50),
        "median p(explanation)": percentile((c.probability_explanation for c in certificates), 50),
    }
    for kind in kinds:
        figures[f"unseen backgrounds that keep the label: {kind}"] = float(
            np.mean([c.robustness[kind][0] / c.robustness[kind][1] for c in certificates])
        )
    return figures


def main() -> None:
    """Explain, recheck, print."""
    options = tyro.cli(Options)
    output = check_output(options.output)
    photos = first_photos(options.data, options.photos)
    share_cores(options.config.batch_size)
    explainer = Explainer(load_classifier(options.classifier), options.config)
    explainer([read_photo(photos[0])])  # compiles
    start = time.perf_counter()
    explanations, records = [], []
    for photo, stem, explanation in zip(
        photos,
        unique_stems(photos),
        explainer.stream(read_photo(photo) for photo in photos),
        strict=True,
    ):
        if not isinstance(explanation, Explanation):
            raise SystemExit(f"{photo}: {explanation.reason}")
        pictures = explanation_pictures(explanation.pixels, explanation.mask, options.config.background)
        records.append(explanation.record(str(photo)))
        write_explanation(output, stem, pictures, records[-1])
        explanations.append(explanation)
        print(f"\r{len(explanations)} of {len(photos)}", end="", flush=True)
    seconds = time.perf_counter() - start
    write_index(output, records)
    print("\nrechecking with PyTorch …", flush=True)
    figures = summarise(explanations, recheck_all(output))
    figures["median steps"] = statistics.median(e.steps for e in explanations)
    figures["mean steps"] = statistics.mean(e.steps for e in explanations)
    figures["seconds a photo, from file to files"] = seconds / len(photos)
    figures["batch size"] = options.config.batch_size
    report = {"machine": f"{platform.machine()}, {device_name()}", **figures}
    (output / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()
