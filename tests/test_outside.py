"""The outside tools: what is counted, written and resumed; each tool itself where it is installed."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import outside
from benchmarks.outside import TOOLS, Options, Outcome, Tool, as_input, counted, is_done, run, write

SIDE = 64
INSTALLED = outside.available()
OUTCOME = Outcome(np.eye(4, dtype=np.float32), np.eye(4, dtype=bool), seconds=1.5, passes=7)
PIXELS = np.zeros((4, 4, 3), np.uint8)


class Corner(torch.nn.Module):
    """Class 1 where the upper left quarter is brighter than gray, else class 0."""

    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(1, 3, SIDE, SIDE)
        self.weight[..., : SIDE // 2, : SIDE // 2] = 8 / (3 * (SIDE // 2) ** 2)
        self._avg_pooling = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        evidence = self._avg_pooling(images * self.weight).sum(dim=(1, 2, 3)) * SIDE**2
        return torch.stack([torch.full_like(evidence, 0.5), evidence], dim=1)


def corner_photo():
    pixels = np.full((SIDE, SIDE, 3), 127, np.uint8)
    pixels[: SIDE // 2, : SIDE // 2] = 255
    return pixels


@pytest.fixture
def fake(monkeypatch):
    """A tool of the standard library that notes its calls."""
    calls = []

    def search(model, pixels, target, seed):
        calls.append((target, seed))
        model(torch.cat([as_input(pixels)] * 3))
        return np.zeros(pixels.shape[:2]), None

    monkeypatch.setitem(TOOLS, "fake", Tool("fake", "json", search))
    return calls


def test_gray_is_zero():
    assert not as_input(np.full((2, 2, 3), 127, np.uint8)).any()


def test_images_are_counted_until_the_hook_goes():
    model = torch.nn.Identity()
    with counted(model) as count:
        model(torch.zeros(5, 1))
        model(torch.zeros(2, 1))
    model(torch.zeros(9, 1))
    assert count() == 7


def test_the_hook_goes_after_a_failure():
    model = torch.nn.Identity()
    with pytest.raises(ZeroDivisionError), counted(model):
        raise ZeroDivisionError
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("mask", [OUTCOME.mask, None])
def test_what_is_written_reads_back(tmp_path, mask):
    path = tmp_path / "photo" / "tool.npz"
    write(path, Outcome(OUTCOME.ranking, mask, 1.5, 7), PIXELS, target=3, seed=0)
    with np.load(path) as file:
        assert ("mask" in file) == (mask is not None)
        assert mask is None or np.array_equal(file["mask"], mask)
        assert np.array_equal(file["ranking"], OUTCOME.ranking)
        assert (file["target"], file["seconds"], file["passes"]) == (3, 1.5, 7)
    assert [file.name for file in path.parent.iterdir()] == ["tool.npz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "tool.npz"
    write(path, OUTCOME, PIXELS, target=3, seed=0)
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="disk full"):
        write(path, OUTCOME, PIXELS, target=4, seed=0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_same_question_is_done(tmp_path):
    path = tmp_path / "tool.npz"
    assert not is_done(path, PIXELS, 3, 0)
    write(path, OUTCOME, PIXELS, target=3, seed=0)
    assert is_done(path, PIXELS, 3, 0)
    assert not is_done(path, PIXELS, 4, 0)
    assert not is_done(path, PIXELS, 3, 1)
    assert not is_done(path, PIXELS + 1, 3, 0)


@pytest.mark.slow
def test_a_second_run_makes_only_what_is_missing(tmp_path, fake):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        Image.effect_noise((250, 240), 60).convert("RGB").save(tmp_path / "in" / f"{name}.png")
    output = tmp_path / "out"
    options = Options(data=tmp_path / "in", photos=2, tools=("fake",), output=output)
    run(options)
    first, second = output / "a" / "fake.npz", output / "b" / "fake.npz"
    assert sorted(output.glob("*/*")) == [first, second]
    with np.load(first) as file:
        assert file["passes"] == 3 and file["pixels"].shape == (224, 224, 3)
    kept = first.stat().st_mtime_ns
    second.unlink()
    run(options)
    assert len(fake) == 3
    assert second.exists() and first.stat().st_mtime_ns == kept


def test_unknown_and_missing_tools_end_the_run(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nonesuch: unknown tools"):
        run(Options(data=tmp_path, tools=("nonesuch",)))
    absent = Tool("absent-package", "absent_package", lambda *_: (np.zeros((1, 1)), None))
    monkeypatch.setitem(TOOLS, "absent", absent)
    assert "absent" not in outside.available()
    with pytest.raises(SystemExit, match="absent-package: No module"):
        run(Options(data=tmp_path, tools=("absent",)))


@pytest.mark.parametrize("name", list(TOOLS))
def test_every_tool_finds_the_corner_that_decides(name, monkeypatch):
    tool = TOOLS[name]
    if name not in INSTALLED:
        pytest.skip(tool.missing())
    monkeypatch.setattr(outside, "ITERATIONS", 20)
    pixels, model = corner_photo(), Corner()
    outcome = tool(model, pixels, 1, 0)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[: SIDE // 2, : SIDE // 2] = True
    assert outcome.ranking.dtype == np.float32 and outcome.ranking.shape == (SIDE, SIDE)
    assert outcome.ranking[inside].mean() > outcome.ranking[~inside].mean()
    assert outcome.passes > 0 and outcome.seconds > 0
    if outcome.mask is not None:
        assert 0 < outcome.mask.mean() < 0.5
        composed = np.where(outcome.mask[..., None], pixels, 127).astype(np.uint8)
        assert model(as_input(composed)).argmax() == 1
    again = tool(model, pixels, 1, 0)
    assert np.array_equal(again.ranking, outcome.ranking) and again.passes == outcome.passes


@pytest.mark.skipif("rex" not in INSTALLED, reason="rex-xai is not installed")
def test_rex_refuses_what_is_not_the_top_class():
    with pytest.raises(ValueError, match="top class"):
        TOOLS["rex"](Corner(), corner_photo(), 0, 0)


def test_warnings_and_progress_bars_stay_inside(capsys):
    def search(model, pixels, target, seed):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        print("50 %", file=sys.stderr)
        return np.zeros(pixels.shape[:2]), None

    outcome = Tool("fake", "json", search)(torch.nn.Identity(), PIXELS, 0, 0)
    assert outcome.passes == 0 and capsys.readouterr().err == ""
