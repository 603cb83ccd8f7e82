"""How long ImageNet takes on slices of TPU v5e, worked out: nothing here has run on one.

    python -m benchmarks.slices [--reached 0.333] [--steps 175] …

Every assumption is an option; :mod:`benchmarks.scale` measures what can be measured on one machine.
"""

from dataclasses import dataclass

import tyro

CHIPS = (1, 16, 256)
DATA_SETS = {"validation": 50_000, "training": 1_281_167}  # images of ImageNet-1k


@dataclass(frozen=True)
class Assumptions:
    """What the time is worked out from.

    Attributes:
        steps: of the optimiser, for each image.
        step: least milliseconds of one, by the bytes that it moves (benchmarks.aot, 64 images a chip).
        passes: forward passes that verify an image.
        forward: least milliseconds of one.
        reached: which share of that speed a chip reaches.
        begin: seconds until the first step, and from the last image's entry to the end.
    """

    steps: int = 175
    step: float = 0.44
    passes: int = 400
    forward: float = 0.15
    reached: float = 1 / 3
    begin: float = 120.0

    def image(self) -> float:
        """Seconds of a chip for one image.

        Examples:
            >>> round(Assumptions(steps=100, step=1.0, passes=0, reached=0.5).image(), 6)
            0.2
        """
        return (self.steps * self.step + self.passes * self.forward) / 1000 / self.reached

    def seconds(self, images: int, chips: int) -> float:
        """Of a slice for a data set.

        Examples:
            >>> half = Assumptions(steps=100, step=1.0, passes=0, reached=0.5, begin=60.0)
            >>> round(half.seconds(1000, 10), 6)
            80.0
        """
        return self.begin + images * self.image() / chips


def duration(seconds: float) -> str:
    """Examples:
    >>> [duration(s) for s in (150, 7_200, 400_000)]
    ['2.5 min', '2.0 h', '4.6 days']
    """
    for unit, length in (("days", 86_400), ("h", 3_600)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.1f} min"


def main() -> None:
    """Print the table."""
    assumed = tyro.cli(Assumptions)
    print(f"{1 / assumed.image():.1f} images a second and chip\n")
    headings = ("ImageNet", "images", *(f"v5e-{chips}" for chips in CHIPS))
    rows = [
        (name, f"{images:,}", *(duration(assumed.seconds(images, chips)) for chips in CHIPS))
        for name, images in DATA_SETS.items()
    ]
    print("\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)))


if __name__ == "__main__":
    main()
