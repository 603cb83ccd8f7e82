"""The picture at the top of README, from what ``amx explain`` wrote for the bundled photos.

amx explain --output amx-explanations
python -m benchmarks.readme_picture amx-explanations benchmarks/explanations.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from amx_jax.data.explained import own_photo, read_pictures, read_records
from amx_jax.report.pictures import overlay, strip
from amx_jax.verify.words import per_cent

PHOTOS = ("coffee", "camera", "rocket")  # whose classes have short names
SIDE, TEXT = 320, 38  # pixels; on a phone a third of that


def main() -> None:
    """Photos above with their class, the pixels that alone keep it below with their share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("explanations", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    photos, overlays, classes, shares = [], [], [], []
    for place, record in read_records(options.explanations):
        if place.name not in PHOTOS:
            continue
        found = read_pictures(place, record)
        photo, preprocess = own_photo(found, place, 10**6)
        left, top, side = preprocess.square((photo.shape[1], photo.shape[0]))
        box = left, top, left + side, top + side
        square = Image.fromarray(photo).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)
        mask = Image.fromarray(found.mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        photos.append(np.asarray(square))
        overlays.append(overlay(np.asarray(square), np.asarray(mask)))
        classes.append(record["target"]["name"])
        shares.append(f"{per_cent(record['area'])} is enough")
    rows = strip(photos, classes, TEXT), strip(overlays, shares, TEXT)
    Image.fromarray(np.concatenate(rows)).save(options.picture, quality=88)


if __name__ == "__main__":
    main()
