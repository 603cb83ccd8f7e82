"""The picture at the top of README, from what ``amx explain`` wrote for the bundled photos.

amx explain --output amx-explanations
python -m benchmarks.readme_picture amx-explanations benchmarks/explanations.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from amx_jax.data.results import read_explanations
from amx_jax.report.pictures import strip


def main() -> None:
    """Photos above, the pixels that decide below, their share of all pixels as caption."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("explanations", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    records = read_explanations(options.explanations)
    folders = [options.explanations / Path(record["image"]).stem for record in records]
    photos, overlays = (
        [np.asarray(Image.open(folder / name)) for folder in folders]
        for name in ("input.png", "overlay.png")
    )
    captions = [f"{record['area']:.1%}" for record in records]
    columns = [
        np.concatenate([photo, np.full((6, photo.shape[1], 3), 255, np.uint8), cover])
        for photo, cover in zip(photos, overlays, strict=True)
    ]
    Image.fromarray(strip(columns, captions)).save(options.picture, quality=88)


if __name__ == "__main__":
    main()
