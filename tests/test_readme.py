"""The README's examples of your own model run as they are written."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from amx_jax import Explanation

README = Path(__file__).parents[1] / "README.md"


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), strides=4, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(8, 8, (3, 3), rngs=rngs)])
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.conv2(nnx.relu(self.conv1(x)))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(x.mean(axis=(1, 2)))


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.bn1(self.conv1(x))).mean(dim=(2, 3)))


def blocks() -> list[str]:
    """The Python examples of the section about classifiers."""
    section = README.read_text(encoding="utf-8").split("## Which classifier")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_there_are_examples_of_a_flax_module_a_function_and_a_pytorch_model():
    found = blocks()
    assert len(found) == 3
    for example, name in zip(found, ("from_nnx(", "Classifier(", "read_arrays("), strict=True):
        assert name in example


def test_the_examples_run_as_they_are_written(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theirs = TorchNet().eval()
    theirs.bn1.running_mean += 0.3
    torch.save(theirs.state_dict(), "net.pth")
    flax, function, pytorch = blocks()

    names = {"model": Net(nnx.Rngs(0)), "photo": photo}
    exec(flax, names)
    [explanation] = names["explanations"]
    assert isinstance(explanation, Explanation) and explanation.certificate.sufficient
    names["preprocess"] = names["classifier"].preprocess
    image = names["preprocess"].normalize(photo)
    logits = names["classifier"].apply(names["classifier"].params, image)[0]
    np.testing.assert_allclose(logits, names["model"](image[None])[0], rtol=1e-4, atol=1e-5)

    names |= {
        "encoder": lambda params, image: jnp.tanh(image.mean(axis=(0, 1)) @ params["in"]),
        "params": {"in": jnp.ones((3, 4)), "head": jax.random.normal(jax.random.key(0), (4, 2))},
    }
    exec(function, names)
    assert names["classifier"].stages == ("features",)

    exec(pytorch, names)
    found = names["classifier"].apply(names["classifier"].params, image)[0]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
