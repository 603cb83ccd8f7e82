"""Outside tools' own masks beside ours, on the same crops, judged by PyTorch.

    amx evaluate FOLDER --methods amx --output ours
    python -m benchmarks.outside --data FOLDER/images --tools rex --output theirs
    python -m benchmarks.peers --evaluation ours --outside theirs

Of each tool that names a mask: on how many photos it is sufficient on gray, its median area, and the
median ratio of its area to ours, photo by photo, with a 95 % interval (bootstrap of the photos).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from amx_jax.data.results import read_evaluation
from amx_jax.evaluate.metrics import paired_bootstrap
from benchmarks.outside import CLASSIFIER, MEAN
from benchmarks.recheck import load_model, logits


@dataclass(frozen=True)
class Options:
    """Outside tools' masks beside ours.

    Attributes:
        evaluation: what ``amx evaluate`` wrote.
        outside: what ``benchmarks.outside`` wrote.
        method: of the evaluation.
    """

    evaluation: Path
    outside: Path
    method: str = "amx"


def main() -> None:
    options = tyro.cli(Options)
    records, _ = read_evaluation(options.evaluation)
    ours = {Path(r["image"]).stem: r["area"] for r in records if r["method"] == options.method}
    model = load_model(CLASSIFIER)
    tools = sorted({path.stem for path in options.outside.glob("*/*.npz")})
    print("| tool | photos | sufficient | median area | ours | ratio | seconds | passes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for tool in tools:
        rows = []
        for path in sorted(options.outside.glob(f"*/{tool}.npz")):
            with np.load(path) as found:
                if "mask" not in found or path.parent.name not in ours:
                    continue
                mask, pixels = found["mask"], found["pixels"].astype(np.float32)
                seen = np.where(mask[..., None], pixels, MEAN)[None]
                sufficient = logits(model, seen)[0].argmax() == found["target"]
                own = ours[path.parent.name]
                rows.append(
                    (mask.mean(), own, sufficient, float(found["seconds"]), int(found["passes"]))
                )
        if not rows:
            continue
        theirs, own, sufficient, seconds, passes = (
            np.array(column) for column in zip(*rows, strict=True)
        )
        ratio = paired_bootstrap(theirs, own, of="ratio")
        print(
            f"| {tool} | {len(rows)} | {100 * sufficient.mean():.0f} % "
            f"| {100 * np.median(theirs):.1f} % "
            f"| {100 * np.median(own):.1f} % "
            f"| {ratio.value:.1f} ({ratio.lower:.1f} to {ratio.upper:.1f}) "
            f"| {np.median(seconds):.0f} | {np.median(passes):.0f} |"
        )


if __name__ == "__main__":
    main()
