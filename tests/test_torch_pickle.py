"""Weight files: PyTorch writes what is read here, and nothing in a file is ever run."""

import io
import os
import pickle
import shutil
import struct
import subprocess
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from amx_jax.classifiers.registry import CLASSIFIERS
from amx_jax.classifiers.torch_pickle import ELEMENT_TYPES, MAGIC, PROTOCOL, read_state_dict
from amx_jax.errors import WeightsError


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.pth"


def save(state, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def message_of(path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.isprintable()
    assert Path(path).name in message
    return message


# The opcodes of a pickle, to write what no PyTorch would.


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    encoded = value.to_bytes(9, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def tuple_of(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + pickle.REDUCE


def attribute(item: bytes, name: str, value: bytes) -> bytes:
    """The item after ``setattr``: a pickle may do so to what it has built."""
    state = pickle.EMPTY_DICT + text(name) + value + pickle.SETITEM
    return item + pickle.NONE + state + pickle.TUPLE2 + pickle.BUILD


def dictionary(value: bytes, name: str = "w") -> bytes:
    return pickle.EMPTY_DICT + text(name) + value + pickle.SETITEM


REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def storage(length: int = 6, key: str = "0", view: bytes = pickle.NONE) -> bytes:
    kind = named("torch", "FloatStorage")
    items = (text("storage"), kind, text(key), text("cpu"), integer(length), view)
    return tuple_of(*items) + pickle.BINPERSID


def tensor(offset: int, size: tuple, stride: tuple, of: bytes | None = None) -> bytes:
    hooks = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return call(
        REBUILD,
        storage() if of is None else of,
        integer(offset),
        tuple_of(*map(integer, size)),
        tuple_of(*map(integer, stride)),
        pickle.NEWFALSE,
        hooks,
    )


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + body + pickle.STOP


def legacy(body: bytes, keys=("0",), values=range(6)) -> bytes:
    """A file of PyTorch's legacy format around the opcodes of its state dict."""
    data = np.array(values, "<f4")
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True})]
    parts += [program(body), pickle.dumps(list(keys), 2), struct.pack("<q", len(data)), data.tobytes()]
    return b"".join(parts)


# --- what PyTorch writes --------------------------------------------------------------------------


def test_every_element_type_is_read_bit_by_bit(path):
    state = {
        "DoubleStorage": torch.tensor([1 / 3, -np.inf, np.nan, 5e-324], dtype=torch.float64),
        "FloatStorage": torch.tensor([1 / 3, -0.0, np.nan, 1e-45]),
        "HalfStorage": torch.tensor([1 / 3, 65504, -np.inf], dtype=torch.float16),
        "LongStorage": torch.tensor([-(2**63), 2**63 - 1, 7]),
        "IntStorage": torch.tensor([-(2**31), 2**31 - 1, 7], dtype=torch.int32),
        "ShortStorage": torch.tensor([-(2**15), 2**15 - 1, 7], dtype=torch.int16),
        "CharStorage": torch.tensor([-128, 127, 7], dtype=torch.int8),
        "ByteStorage": torch.tensor([0, 255, 7], dtype=torch.uint8),
        "BoolStorage": torch.tensor([True, False, True]),
    }
    assert set(state) == set(ELEMENT_TYPES)
    save(state, path)
    found = read_state_dict(path)
    assert list(found) == list(state)
    for name, expected in state.items():
        assert found[name].dtype == expected.numpy().dtype
        assert found[name].tobytes() == expected.numpy().tobytes()


def test_strides_offsets_and_shared_storages_are_resolved(path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    state = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "every second": base[:, ::2, 1::2],
        "tail": base[2, 3],
        "last": base[2, 3, 4],
        "diagonal": base[0].diagonal(),
        "windows": torch.arange(6.0).unfold(0, 3, 3),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0),
        "empty rows": torch.zeros(3, 0, 2),
    }
    save(state, path)
    found = read_state_dict(path)
    for name, expected in state.items():
        assert found[name].shape == expected.shape, name
        np.testing.assert_array_equal(found[name], expected.numpy())


def test_arrays_of_a_shared_storage_are_separate(path):
    base = torch.arange(4.0)
    save({"a": base, "b": base[1:]}, path)
    found = read_state_dict(path)
    found["a"][:] = -1
    assert found["b"].tolist() == [1, 2, 3]


def test_the_state_dict_of_a_module_is_read_with_its_metadata_left_out(path):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    state = module.state_dict()
    assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
    save(state, path)
    found = read_state_dict(str(path))
    assert list(found) == list(state)
    for name, expected in state.items():
        np.testing.assert_array_equal(found[name], expected.numpy())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_that_keeps_storage_types_is_read(path, protocol):
    save_options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
    torch.save({"w": torch.arange(3.0)}, path, **save_options)
    assert read_state_dict(path)["w"].tolist() == [0, 1, 2]


def test_text_of_python_2_and_names_that_are_no_text_are_read(path):
    name = pickle.SHORT_BINSTRING + b"\x01w"
    body = pickle.EMPTY_DICT + name + tensor(0, (6,), (1,)) + pickle.SETITEM
    path.write_bytes(legacy(body + integer(3) + tensor(5, (), ()) + pickle.SETITEM))
    found = read_state_dict(path)
    assert found["w"].tolist() == [0, 1, 2, 3, 4, 5] and found["3"] == 5


def test_an_empty_state_dict_is_empty(path):
    save({}, path)
    assert read_state_dict(path) == {}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_published_weights_are_what_pytorch_reads(name):
    file = CLASSIFIERS[name].weights_file()
    assert file is not None
    expected = torch.load(file, weights_only=True)
    found = read_state_dict(file)
    assert list(found) == list(expected)
    for key, array in found.items():
        assert array.dtype == expected[key].numpy().dtype
        np.testing.assert_array_equal(array, expected[key].numpy())


# --- what would run code --------------------------------------------------------------------------


class Call:
    """Pickled as a call of ``function``: unpickling runs it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(marker: str) -> dict[str, Call]:
    """Calls that make the file or folder ``marker``, by the name that each is refused by."""
    code = f"open({marker!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
        f"{os.mkdir.__module__}.mkdir": Call(os.mkdir, marker),
        "subprocess.check_call": Call(subprocess.check_call, ["touch", marker]),
        "shutil.copy": Call(shutil.copy, __file__, marker),
        "torch.serialization.save": Call(torch.save, 0, marker),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.list": Call(list, Call(map, exec, [code])),
    }


@pytest.mark.parametrize("name", calls(""))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_call_is_refused_by_name_and_not_made_wherever_it_stands(tmp_path, path, name, protocol):
    evil, harmed = calls(str(tmp_path / "marker"))[name], calls(str(tmp_path / "harmed"))[name]
    dumps = partial(pickle.dumps, protocol=protocol, fix_imports=False)
    pickle.loads(dumps(harmed))
    assert (tmp_path / "harmed").exists(), "the attack is none"

    nested = {"w": OrderedDict(a=[(1, {"b": evil})])}
    for place in range(5):
        for attack in (evil, nested):
            parts = [MAGIC, PROTOCOL, {}, {"w": 0}, ["0"]]
            parts[place] = attack
            path.write_bytes(b"".join(map(dumps, parts)))
            assert message_of(path) == (
                f"{path}: refused: the pickle asks for {name}, which a dictionary of tensors does "
                "not need and which could run code"
            )
    assert not (tmp_path / "marker").exists()


def test_a_call_inside_what_pytorch_saves_is_refused(tmp_path, path):
    marker = tmp_path / "ran"
    evil = Call(os.system, f"touch {marker}")
    annotated = OrderedDict(w=torch.zeros(2))
    annotated._metadata = evil  # type: ignore[attr-defined]
    for state in (evil, {"w": torch.zeros(2), "x": evil}, {evil: 1}, annotated):
        save(state, path)
        assert f"refused: the pickle asks for {os.system.__module__}.system" in message_of(path)
    assert not marker.exists()


def test_a_call_inside_the_description_of_a_tensor_is_refused(tmp_path, path):
    marker = tmp_path / "ran"
    evil = call(named("os", "system"), text(f"touch {marker}"))
    pickle.loads(program(evil))
    assert marker.exists()
    marker.unlink()
    for body in (
        tuple_of(text("storage"), evil) + pickle.BINPERSID,
        call(REBUILD, evil),
        attribute(tensor(0, (6,), (1,)), "stride", evil),
        named("os", "system") + pickle.POP + tensor(0, (6,), (1,)),  # asked for, but not called
    ):
        path.write_bytes(legacy(dictionary(body)))
        assert "refused: the pickle asks for os.system" in message_of(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "float32"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.jit", "load"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "defaultdict"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("amx_jax.classifiers.torch_pickle", "read_state_dict"),
        ("no.such.module", "thing"),
        ("", ""),
    ],
)
def test_any_other_global_is_refused_by_name(path, module, name):
    path.write_bytes(legacy(dictionary(named(module, name))))
    assert f"weights.pth: refused: the pickle asks for {module}.{name}, which" in message_of(path)


def test_a_refused_name_cannot_break_the_line(path):
    path.write_bytes(legacy(dictionary(named("os\n\x1b[2J", "sys\rtem"))))
    assert r"'os\n\x1b[2J.sys\rtem'" in message_of(path)


def test_a_whole_module_is_refused(path):
    save(torch.nn.Linear(2, 2), path)
    assert "asks for torch.nn.modules.linear.Linear" in message_of(path)


@pytest.mark.parametrize("name", ["array", "_asdict", "storage", "__class__"])
def test_what_a_pickle_builds_keeps_its_methods_and_fields(path, name):
    value = named("collections", "OrderedDict")
    path.write_bytes(legacy(dictionary(attribute(tensor(0, (6,), (1,)), name, value))))
    assert "not a readable" in message_of(path)


@pytest.mark.parametrize(
    "body",
    [
        attribute(REBUILD, "__defaults__", pickle.EMPTY_TUPLE),
        attribute(REBUILD, "__kwdefaults__", dictionary(integer(1), "storage")),
        attribute(named("collections", "OrderedDict"), "items", REBUILD),
        attribute(named("torch", "FloatStorage"), "names", pickle.EMPTY_TUPLE),
        # numpy.dtype.__setstate__: big-endian
        named("torch", "FloatStorage")
        + tuple_of(integer(3), text(">"), *[pickle.NONE] * 3, integer(-1), integer(-1), integer(0))
        + pickle.BUILD,
    ],
    ids=["function", "function's keywords", "type", "dtype's names", "dtype's byte order"],
)
def test_what_one_file_does_to_a_global_does_not_reach_the_next(tmp_path, path, body):
    (tmp_path / "good.pth").write_bytes(legacy(dictionary(tensor(0, (2, 3), (3, 1)))))
    path.write_bytes(legacy(dictionary(body)))
    message_of(path)
    for _ in range(2):
        assert read_state_dict(tmp_path / "good.pth")["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


# --- what is damaged or of another kind -----------------------------------------------------------


def test_hand_written_opcodes_are_read_where_they_are_right(path):
    path.write_bytes(legacy(dictionary(tensor(1, (2, 2), (3, 1)))))
    assert read_state_dict(path)["w"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (6, (1,), (1,)),
        (6, (), ()),
        (2**62, (1,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (3,), (3,)),
        (0, (2,), (2**62,)),
        (0, (2**40, 2**40), (0, 0)),
        (0, (100_000, 100_000), (0, 0)),
        (0, (7,), (0,)),
        (-1, (2,), (1,)),
        (5, (6,), (-1,)),
        (0, (-1,), (1,)),
        (0, (-2, -3), (3, 1)),
        (0, (2, 3), (1,)),
        (0, (1,) * 70, (1,) * 70),
        (0, (2**64,), (1,)),
        (0, (0, 2**64), (1, 1)),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(path, offset, size, stride):
    path.write_bytes(legacy(dictionary(tensor(offset, size, stride))))
    assert "not a readable PyTorch weight file" in message_of(path)


@pytest.mark.parametrize(
    "body",
    [
        pickle.NONE,
        pickle.EMPTY_LIST,
        storage(),
        tensor(0, (6,), (1,)),
        dictionary(pickle.NONE),
        dictionary(storage()),
        dictionary(dictionary(tensor(0, (6,), (1,)))),
        dictionary(tensor(0, (6,), (1,), of=text("storage"))),
        dictionary(tensor(0, (6,), (1,), of=storage(key="1"))),
        dictionary(tensor(0, (6,), (1,), of=storage(length=7))),
        dictionary(tensor(0, (6,), (1,), of=storage(view=tuple_of(text("1"), integer(2), integer(3))))),
        dictionary(tensor(0, (6,), (1,), of=integer(0) + pickle.BINPERSID)),
        dictionary(tensor(0, (6,), (1,), of=tuple_of(text("module")) + pickle.BINPERSID)),
        dictionary(call(REBUILD, storage(), pickle.NONE, pickle.NONE, pickle.NONE)),
        dictionary(call(REBUILD, storage(), integer(0), text("ab"), text("ab"))),
        dictionary(call(REBUILD)),
        dictionary(call(named("torch", "FloatStorage"))),
        dictionary(pickle.BINGET + b"\x07"),
        b"",
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(path, body):
    path.write_bytes(legacy(body))
    assert "not a readable PyTorch weight file" in message_of(path)


def test_a_checkpoint_with_more_than_tensors_is_told_what_is_no_tensor(path):
    save({"epoch": 3, "state_dict": {"w": torch.zeros(2)}}, path)
    assert "'epoch' is not a tensor" in message_of(path)


def test_an_element_type_numpy_lacks_is_named(path):
    save({"w": torch.zeros(2, dtype=torch.bfloat16)}, path)
    message = message_of(path)
    assert "found tensors of type torch.BFloat16Storage, expected one of DoubleStorage" in message
    assert "code" not in message


def saved() -> bytes:
    buffer = io.BytesIO()
    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor([True, False]))
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_a_file_cut_at_any_length_is_refused(path):
    data = saved()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        message_of(path)
    path.write_bytes(data)
    assert set(read_state_dict(path)) == {"a", "b"}


def test_a_storage_cut_behind_what_its_tensors_use_is_refused(path):
    data = legacy(dictionary(tensor(0, (2,), (1,))))
    path.write_bytes(data)
    assert read_state_dict(path)["w"].tolist() == [0, 1]
    path.write_bytes(data[:-4])
    assert "storage '0' is cut short" in message_of(path)


def test_the_published_weights_cut_are_refused(path):
    file = CLASSIFIERS["efficientnet_lite0"].weights_file()
    assert file is not None
    data = file.read_bytes()
    for length in (1, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "truncated" in message_of(path)


def test_a_file_with_any_byte_changed_gives_arrays_or_one_line(path):
    data = saved()
    messages = []
    for position in range(len(data)):
        for changed in (data[position] ^ 1, data[position] ^ 128, 255):
            path.write_bytes(data[:position] + bytes([changed]) + data[position + 1 :])
            try:
                found = read_state_dict(path)
            except WeightsError as error:
                messages.append(str(error))
            else:
                assert all(isinstance(array, np.ndarray) for array in found.values())
    assert len(messages) > len(data) and all(map(str.isprintable, messages))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0" * 4096,
        b"\xff" * 4096,
        b"text\n" * 100,
        b"PK",
        b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
        pickle.dumps({"w": [1.0, 2.0]}),
        pickle.dumps(MAGIC, 2),
        pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL + 1, 2) * 4,
        b"(" * 100_000,
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
    ids=lambda data: f"{data[:8]!r} and so on",
)
def test_another_kind_of_file_is_refused(path, data):
    path.write_bytes(data)
    assert "not a readable PyTorch weight file (legacy pickle format)" in message_of(path)


def test_random_bytes_are_refused(path):
    random = np.random.default_rng(0)
    for length in range(1, 300):
        path.write_bytes(random.bytes(length))
        message_of(path)


def test_a_file_of_the_newer_format_is_told_apart_and_what_to_do(path):
    torch.save({"w": torch.zeros(2)}, path)
    message = message_of(path)
    assert "found a zip archive, PyTorch's newer format; expected the legacy one" in message
    assert "_use_new_zipfile_serialization=False" in message


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert (
        message_of(tmp_path / "no.pth")
        == f"{tmp_path}/no.pth: cannot be read: No such file or directory"
    )
    assert message_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_file_name_cannot_break_the_line(tmp_path):
    (tmp_path / "two\nlines.pth").write_bytes(b"x")
    for name in ("two\nlines.pth", "no\nfile.pth", "a\0b"):
        with pytest.raises(WeightsError) as caught:
            read_state_dict(tmp_path / name)
        assert str(caught.value).isprintable()
