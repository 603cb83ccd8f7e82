"""What README and the documentation show works: Python runs as it is, commands are understood."""

import contextlib
import io
import re
import shlex
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from amx_jax import Explanation
from amx_jax.cli import main, parse

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [README, ROOT / "benchmarks/README.md", *DOCS]


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


def fenced(text: str, language: str) -> list[str]:
    """The blocks of code in a language, those in lists too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def blocks() -> list[str]:
    """The Python examples of the section about classifiers."""
    section = README.read_text(encoding="utf-8").split("## Which classifier")[1].split("\n## ")[0]
    return fenced(section, "python")


def commands(page: Path) -> list[list[str]]:
    """The arguments of each command line of ``amx``, in blocks and in sentences."""
    text = page.read_text(encoding="utf-8")
    lines = "".join(fenced(text, "sh")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split(" && ")]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    parts += (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("amx ")]


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


def understood(arguments: list[str]) -> bool:
    """Whether the command takes the arguments; one that is only named has help."""
    if arguments == ["--version"]:
        return main(arguments) == 0
    if all(word.isalpha() for word in arguments):
        arguments = [*arguments, "--help"]
    try:
        parse(arguments)
    except SystemExit as stop:
        return not stop.code
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # of the files in configs/
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        wrong = [arguments for arguments in commands(page) if not understood(arguments)]
    assert not wrong


def test_commands_are_found_and_wrong_ones_are_not_understood(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("`amx explain`, `a` and\n```sh\npip x && amx explain a.jpg --stepz 3  # no\n```\n")
    found = commands(page)
    assert found == [["explain", "a.jpg", "--stepz", "3"], ["explain"]]
    assert [understood(arguments) for arguments in found] == [False, True]
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.fixture
def folder(tiny, explainers, monkeypatch, tmp_path):
    """A folder with what the examples read, where the classifier costs nothing."""
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
    monkeypatch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
    monkeypatch.setattr("amx_jax.explainer.Explainer", explainers)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cat.jpg", "dog.jpg", "photos/a.jpg", "photos/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_one_after_the_other(page, folder, capsys):
    examples = fenced(page.read_text(encoding="utf-8"), "python")
    if any('read_explanations("out")' in example for example in examples):
        small = "--generator grid --grid 8 --steps 6 --cell 8 --trials 2 --controls 0 --quiet"
        assert main(["explain", "dog.jpg", "--output", "out", *small.split()]) == 0
    names = {}
    for example in examples:
        exec(example, names)
    if page.name in ("quickstart.md", "results.md"):
        assert capsys.readouterr().out


def test_the_example_of_the_explainer_runs(folder, capsys):
    text = README.read_text(encoding="utf-8").split("## From Python")[1].split("\n## ")[0]
    [example] = fenced(text, "python")
    exec(example, {})
    assert capsys.readouterr().out.count("Certificate(") == 2
