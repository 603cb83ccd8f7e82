"""Weight files of any kind: the same arrays whoever wrote them, and one line where there are none."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from amx_jax.classifiers import hub
from amx_jax.classifiers.files import PREFIXES, SAFETENSORS_TYPES, WRAPPERS, read_arrays
from amx_jax.errors import WeightsError


def message_of(function, argument, *names) -> str:
    """The line that ``function(argument)`` fails with; it has the names in it."""
    with pytest.raises(WeightsError) as caught:
        function(argument)
    message = str(caught.value)
    assert message.isprintable()
    assert all(name in message for name in names), message
    return message


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def state() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.arange(54.0).reshape(2, 3, 3, 3),
        "conv.half": torch.tensor([1 / 3, 65504], dtype=torch.float16),
        "conv.narrow": torch.tensor([[1 / 3, -np.inf, 1e-40]], dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }


def numpy_of(tensors) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def save_legacy(tensors, path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


WRITERS = {"zip": torch.save, "legacy": save_legacy, "safetensors": safetensors.torch.save_file}


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors", "npz", "h5", ""])
def test_the_content_says_what_a_file_is_not_its_name(tmp_path, writer, suffix):
    path = tmp_path / f"weights.{suffix}"
    WRITERS[writer](state(), path)
    for name in (path, str(path)):
        found = read_arrays(name)
        assert_same({name: found[name] for name in state()}, state())
        assert len(found) == len(state())


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_is_read_without_what_is_not_numeric(tmp_path, write):
    arrays = {
        "63_b": np.arange(4, dtype=np.float32),
        "block/w": np.arange(6, dtype=">f8").reshape(2, 3),
        "half": np.float16(0.5),
        "flags": np.array([True, False]),
    }
    other = {"graph": np.array(["conv", "relu"]), "when": np.array(["2020-01-01"], "M8[D]")}
    with (tmp_path / "weights.pth").open("wb") as file:
        write(file, **other, **arrays, raw=np.array([b"text"]))
    with zipfile.ZipFile(tmp_path / "weights.pth", "a") as archive:
        archive.writestr("readme.txt", "not an array")
    found = read_arrays(tmp_path / "weights.pth")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_every_element_type_of_safetensors_is_read_bit_by_bit(tmp_path):
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 48, np.uint8))
    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    assert set(types) == set(SAFETENSORS_TYPES)
    tensors = {name: random.clone().view(dtype) for name, dtype in types.items() if name != "BOOL"}
    tensors |= {"BOOL": random > 100, "scalar": torch.tensor(1.5), "none": torch.zeros(2, 0, 3)}
    safetensors.torch.save_file(tensors, tmp_path / "weights")
    assert_same(dict(sorted(read_arrays(tmp_path / "weights").items())), dict(sorted(tensors.items())))


def test_a_safetensors_header_that_begins_as_a_pickle_does_is_read(tmp_path):
    path = tmp_path / "weights"
    for length in range(1, 600):
        data = safetensors.torch.save({"w" * length: torch.ones(1)})
        if data.startswith(b"\x80\x02"):
            break
    path.write_bytes(data)
    assert data.startswith(pickle.PROTO + b"\x02")
    assert read_arrays(path)["w" * length].tolist() == [1]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("writer", ["zip", "legacy"])
def test_a_state_dict_is_taken_out_of_its_checkpoint(tmp_path, writer, wrapper):
    path = tmp_path / "checkpoint.pth"
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    checkpoint = {
        "epoch": 3,
        "best_acc1": torch.tensor(76.1),
        "arch": "resnet18",
        "optimizer": optimizer,
    }
    WRITERS[writer]({**checkpoint, wrapper: OrderedDict(state())}, path)
    assert_same(read_arrays(path), state())


def test_a_model_with_a_layer_that_is_called_like_a_wrapper_is_read(tmp_path):
    tensors = {"model": torch.ones(2), "net": torch.zeros(1), "params": torch.ones(3)}
    torch.save(tensors, tmp_path / "weights.pth")
    assert_same(read_arrays(tmp_path / "weights.pth"), tensors)


def test_a_checkpoint_that_keeps_the_models_settings_as_its_model_is_read(tmp_path):
    torch.save({"model": {"depth": 18}, "state_dict": state()}, tmp_path / "weights.pth")
    assert_same(read_arrays(tmp_path / "weights.pth"), state())


@pytest.mark.parametrize(
    "prefix",
    [*PREFIXES, "module._orig_mod.", "_orig_mod.module.", "model.module.net.", "module.module."],
)
def test_a_prefix_that_all_names_share_is_taken_off(tmp_path, prefix):
    path = tmp_path / "weights"
    prefixed = {prefix + name: tensor for name, tensor in state().items()}
    for save, wrapped in (
        (torch.save, {"state_dict": prefixed}),
        (safetensors.torch.save_file, prefixed),
    ):
        save(wrapped, path)
        assert set(read_arrays(path)) == set(state())
    np.savez(tmp_path / "weights.npz", **numpy_of(prefixed))
    assert list(read_arrays(tmp_path / "weights.npz")) == list(state())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_the_prefixes_are_what_the_wrappers_of_pytorch_add(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    wrapped = torch.compile(torch.nn.DataParallel(module))
    torch.save(wrapped.state_dict(), tmp_path / "weights.pth")
    assert "_orig_mod.module.0.weight" in wrapped.state_dict()
    assert_same(read_arrays(tmp_path / "weights.pth"), module.state_dict())


@pytest.mark.parametrize(
    "names", [("module.a", "b"), ("modules.a", "modules.b"), ("a.module.b",), ("model",)]
)
def test_a_prefix_of_some_names_or_of_the_models_own_stays(tmp_path, names):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "weights.pth")
    assert tuple(read_arrays(tmp_path / "weights.pth")) == names


def test_an_empty_file_of_each_kind_has_no_arrays(tmp_path):
    for write in WRITERS.values():
        write({}, tmp_path / "weights")
        assert read_arrays(tmp_path / "weights") == {}


# --- what is refused ------------------------------------------------------------------------------


def test_a_checkpoint_with_several_state_dicts_lists_them(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 1, "state_dict": state(), "state_dict_ema": state()}, path)
    assert message_of(read_arrays, path) == (
        f"{path}: found several state dicts, 'state_dict', 'state_dict_ema'; expected one: "
        "save the one you want alone"
    )


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"epoch": 3, "weights": {"w": torch.ones(1)}},
        {"epoch": 3, "weights": None, "state_dict": {}},
        {"epoch": 3, "weights": [torch.ones(1)]},
        {"epoch": 3, "weights": "resnet18.pth"},
    ],
)
def test_a_checkpoint_without_a_state_dict_lists_what_it_has(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    message = message_of(
        read_arrays, path, "'state_dict', 'model_state_dict'", "save model.state_dict()"
    )
    assert message.startswith(f"{path}: found a dictionary of 'epoch', 'weights'")


def test_many_entries_are_counted_not_listed(tmp_path):
    torch.save({f"layer{n}": {"w": torch.ones(1)} for n in range(1000)}, tmp_path / "nested.pth")
    assert len(message_of(read_arrays, tmp_path / "nested.pth", "'layer9', 990 more, expected")) < 600


def test_what_is_no_array_in_a_state_dict_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    for wrap in (lambda tensors: tensors, lambda tensors: {"net": tensors}):
        torch.save(wrap({**state(), "version": 2}), path)
        message_of(read_arrays, path, "weights.pth: found 'version' beside the arrays")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"\x1c\0\0\0TFL3\0\0", "TensorFlow Lite"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (bytes(257) + b"ustar\0" + bytes(300), "a tar archive"),
        (b"\x93NUMPY\x01\0", "a single NumPy array (.npy)"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b'{"w": [1, 2]}\n', "text"),
        ("Gewichte für später".encode(), "begins with the bytes 47 65 77 69 63 68 74 65"),
        (b"\x08\x07\x12\x04tf2onnx", "begins with the bytes 08 07 12 04 74 66 32 6f"),
    ],
)
def test_another_kind_of_file_is_refused_by_what_it_is(tmp_path, data, found):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    message = message_of(read_arrays, path, found)
    assert message.startswith(f"{path}: found ")
    assert message.endswith(", expected a file of PyTorch (torch.save), safetensors or NumPy (.npz)")


def test_another_zip_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    message_of(read_arrays, tmp_path / "model.keras", "found a zip archive with no data.pkl or .npy")


def test_a_pickle_that_runs_code_is_refused_in_each_format_and_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "weights.npz"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    objects = np.array([Evil()], object)
    for write in (
        lambda: torch.save({"state_dict": {"w": Evil()}}, path),
        lambda: save_legacy(Evil(), path),
        lambda: path.write_bytes(pickle.dumps(Evil())),
    ):
        write()
        message_of(read_arrays, path, f"refused: the pickle asks for {os.mkdir.__module__}.mkdir")
    np.savez(path, w=np.ones(2), evil=objects)
    message_of(read_arrays, path, "Object arrays cannot be loaded when allow_pickle=False")
    assert not marker.exists()
    np.load(path, allow_pickle=True)["evil"]
    assert marker.exists(), "the attack is none"


def test_an_npz_that_unpacks_to_much_more_than_itself_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, w=np.zeros(10**6))
    message_of(read_arrays, path, "it unpacks to 8000", "more than 100 times its size")


def test_an_npz_that_promises_more_than_it_has_is_refused(tmp_path):
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (2**45,)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "weights.npz", "w") as archive:
        archive.writestr("w.npy", header.getvalue() + bytes(64))
    message_of(read_arrays, tmp_path / "weights.npz", "not a readable NumPy weight file")


def test_an_element_type_numpy_lacks_is_named(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2, dtype=torch.float8_e4m3fn)}, tmp_path / "w")
    message_of(read_arrays, tmp_path / "w", "found arrays of type F8_E4M3, expected one of F64, F32")


def written(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, **numpy_of(state()))
    elif kind == "safetensors":
        buffer.write(safetensors.torch.save(state()))
    else:
        torch.save({"state_dict": state()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "npz", "safetensors"])
def test_a_file_cut_at_any_length_is_refused(tmp_path, kind):
    path, data = tmp_path / "weights", written(kind)
    for length in [*range(0, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        message_of(read_arrays, path, str(path))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_with_any_byte_changed_gives_arrays_or_one_line(tmp_path, kind):
    path, data = tmp_path / "weights", written(kind)
    messages = []
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 17]) + data[position + 1 :])
        try:
            found = read_arrays(path)
        except WeightsError as error:
            messages.append(str(error))
        else:
            assert all(isinstance(array, np.ndarray) for array in found.values())
    assert all(message.isprintable() and str(path) in message for message in messages)
    assert len(messages) > 50


def test_a_missing_file_and_names_that_break_the_line_are_told_in_one(tmp_path):
    path = tmp_path / "no.pth"
    assert message_of(read_arrays, path) == f"{path}: cannot be read: No such file or directory"
    (tmp_path / "two\nlines.pth").write_bytes(b"x")
    for name in ("two\nlines.pth", "no\nfile.pth", "a\0b"):
        message_of(read_arrays, tmp_path / name)


# --- a repository of the hub ----------------------------------------------------------------------

CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "num_features": 512,
    "global_pool": "avg",
    "label_names": ["n01", "n02", "n03"],
    "label_descriptions": {"n01": "tench", "n03": "great white shark"},
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "first_conv": "conv1",
        "classifier": "fc",
    },
}


def write_repository(folder: Path, config=CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    safetensors.torch.save_file(state(), folder / "model.safetensors")
    return folder


def changed(section: str | None, **fields) -> dict:
    """The configuration with fields set; those set to None are left out."""
    config = json.loads(json.dumps(CONFIG))
    part = config[section] if section else config
    part.update(fields)
    for name in [name for name, value in fields.items() if value is None]:
        del part[name]
    return config


def test_a_repository_is_described_as_timm_states_it(tmp_path):
    assert hub.describe(write_repository(tmp_path)) == hub.Repository(
        weights=tmp_path / "model.safetensors",
        architecture="resnet18",
        classes=3,
        size=288,
        crop=0.95,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        labels=("tench", "n02", "great white shark"),
    )


def test_a_folder_is_read_as_the_weights_in_it(tmp_path):
    write_repository(tmp_path)
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert set(read_arrays(tmp_path)) == set(state())
    (tmp_path / "model.safetensors").unlink()
    assert set(read_arrays(str(tmp_path))) == {"other"}
    (tmp_path / "pytorch_model.bin").unlink()
    assert message_of(read_arrays, tmp_path) == (
        f"{tmp_path}: found no model.safetensors or pytorch_model.bin beside config.json"
    )


def test_what_a_configuration_does_not_state_is_none(tmp_path):
    found = hub.describe(write_repository(tmp_path, {"architecture": "resnet18"}))
    assert found == hub.Repository(tmp_path / "model.safetensors", "resnet18", *[None] * 6)


def test_a_configuration_of_timm_before_2023_is_read(tmp_path):
    old = {"architecture": "vit_tiny_patch16_224", "labels": ["cat", "dog"], **CONFIG["pretrained_cfg"]}
    found = hub.describe(write_repository(tmp_path, {**old, "num_classes": 2}))
    assert (found.classes, found.size, found.labels) == (2, 288, ("cat", "dog"))


def test_names_by_index_are_put_in_order(tmp_path):
    by_index = {"label_names": {"2": "c", "0": "a", "1": "b"}, "label_descriptions": None}
    assert hub.describe(write_repository(tmp_path, changed(None, **by_index))).labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (None, "architecture", 18),
        (None, "architecture", ""),
        (None, "num_classes", 0),
        (None, "num_classes", 10.0),
        (None, "num_classes", True),
        (None, "label_names", []),
        (None, "label_names", "cat"),
        (None, "label_names", ["cat", 1]),
        (None, "label_names", {"0": "a", "2": "c"}),
        (None, "label_names", {"0": "a", "1": 2}),
        (None, "label_descriptions", ["tench"]),
        (None, "label_descriptions", {"n01": 1}),
        (None, "pretrained_cfg", [1]),
        ("pretrained_cfg", "num_classes", "1000"),
        ("pretrained_cfg", "input_size", 224),
        ("pretrained_cfg", "input_size", []),
        ("pretrained_cfg", "input_size", [224, 224, 3]),
        ("pretrained_cfg", "input_size", [3, 224, 192]),
        ("pretrained_cfg", "input_size", [3, 224]),
        ("pretrained_cfg", "input_size", [3, 0, 0]),
        ("pretrained_cfg", "input_size", [3, -1, -1]),
        ("pretrained_cfg", "input_size", [3, 224.0, 224.0]),
        ("pretrained_cfg", "input_size", ["3", "x", "x"]),
        ("pretrained_cfg", "crop_pct", 0),
        ("pretrained_cfg", "crop_pct", 1.5),
        ("pretrained_cfg", "crop_pct", "0.9"),
        ("pretrained_cfg", "mean", 0.5),
        ("pretrained_cfg", "mean", [0.5, 0.5]),
        ("pretrained_cfg", "mean", [0.5, 0.5, float("nan")]),
        ("pretrained_cfg", "mean", [0.5, 0.5, None]),
        ("pretrained_cfg", "std", [0.5, 0.5, 0]),
    ],
)
def test_a_field_without_a_valid_value_is_named(tmp_path, section, field, value):
    write_repository(tmp_path, changed(section, **{field: value}))
    message = message_of(hub.describe, tmp_path)
    assert message.startswith(f"{tmp_path}/config.json: found {field} ")
    assert ", expected " in message


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("", "found broken JSON (Expecting value"),
        ('{"architecture": "resnet18"', "found broken JSON"),
        ("[" * 100_000, "found broken JSON"),
        ("[1, 2]", "found [1, 2], expected an object"),
        (changed(None, architecture=None), "found no field architecture"),
        ({"architectures": ["ResNetForImageClassification"]}, "found no field architecture"),
        (
            '{"architecture": "' + "long" * 10_000 + '", "num_classes": [' + "1," * 9999 + "1]}",
            "num_classes",
        ),
    ],
)
def test_a_broken_configuration_is_told_in_a_short_line(tmp_path, config, complaint):
    write_repository(tmp_path, config)
    assert len(message_of(hub.describe, tmp_path, f"{tmp_path}/config.json: ", complaint)) < 400


def test_a_configuration_that_is_missing_or_no_text_is_told(tmp_path):
    message_of(hub.describe, tmp_path, f"{tmp_path}/config.json: cannot be read: No such file")
    message_of(read_arrays, tmp_path, f"{tmp_path}/config.json: cannot be read: No such file")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    message_of(hub.describe, tmp_path, "found broken JSON ('utf-8' codec")


# --- the hub itself, of which a small one stands here ---------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import json, sys, warnings
warnings.simplefilter("error")
from amx_jax.classifiers import hub
from amx_jax.errors import WeightsError

def outcome(name):
    try:
        return str(hub.fetch(name))
    except WeightsError as error:
        return f"failed: {error}"

print(json.dumps([outcome(name) for name in sys.argv[1:]]))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's protocol that the download of a model's snapshot uses."""

    files: dict[str, bytes]
    asked: list[str]

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(path := self.path.partition("?")[0])
        if path.startswith("/api/models/some/net/tree/"):
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.answer(json.dumps(listing).encode(), Content_Type="application/json")
        elif path in (f"/api/models/some/net/revision/{name}" for name in ("main", "v1", COMMIT)):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "some/net", "sha": COMMIT, "siblings": siblings}
            self.answer(json.dumps(about).encode(), Content_Type="application/json")
        elif path.startswith(f"/some/net/resolve/{COMMIT}/"):
            data = self.files[path.rpartition("/")[2]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.answer(data, ETag=etag, X_Repo_Commit=COMMIT)
        else:
            missing = "RevisionNotFound" if "/some/net/" in path else "RepoNotFound"
            self.answer(b"{}", 404, X_Error_Code=missing, X_Error_Message="not here")

    do_HEAD = do_GET

    def log_message(self, *about) -> None:
        pass


@pytest.fixture(scope="module")
def hub_server(tmp_path_factory):
    folder = write_repository(tmp_path_factory.mktemp("repository") / "net")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    files |= {"README.md": b"# net", "training.bin": bytes(1000)}
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def fetched(home: Path, *names: str, **environment: str) -> list[str]:
    """What ``hub.fetch`` gives for each name, in a process of its own: settings are read at import."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    run = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        env={**kept, "HF_HOME": str(home), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_repository_is_fetched_once_and_then_found_without_the_hub(tmp_path, hub_server):
    address, handler = hub_server
    names = ["hf:some/net", "hf:some/net@v1", "hf:some/net@no", "hf:no/net"]
    folder, tagged, revision, missing = fetched(tmp_path, *names, HF_ENDPOINT=address)
    assert Path(folder).is_dir(), folder
    assert tagged == folder
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
    assert hub.describe(Path(folder)).architecture == "resnet18"
    assert set(read_arrays(folder)) == set(state())
    assert not any("README" in path or "training" in path for path in handler.asked)
    assert revision == "failed: hf:some/net@no: the repository has no revision no"
    assert missing == (
        "failed: hf:no/net: the hub has no such repository, or it is private or gated (hf auth login)"
    )

    asked = len(handler.asked)
    again, other = fetched(
        tmp_path, "hf:some/net", "hf:other/net", HF_HUB_OFFLINE="1", HF_ENDPOINT=address
    )
    assert again == folder
    assert other.startswith("failed: hf:other/net: cannot be downloaded (LocalEntryNotFoundError: ")
    assert other.isprintable() and "HF_HUB_OFFLINE" in other
    assert len(handler.asked) == asked


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:net", "hf:a/b/c", "hf:a/b@", "hf:a/b@v 1", "hf:a/b@v@w", "a/b", "hf:a/b\n", "hf:ä/b"],
)
def test_what_is_no_name_of_a_repository_is_refused(name):
    expected = f"found {name!r}, expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
    assert message_of(hub.fetch, name) == expected


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    assert message_of(hub.fetch, "hf:some/net") == (
        "hf:some/net: huggingface_hub is not installed: pip install 'amx-jax[hub]'"
    )
