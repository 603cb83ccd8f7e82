"""Weight files: PyTorch writes what is read here, and nothing in a file is ever run."""

import copy
import io
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from amx_jax.classifiers.torch_pickle import ELEMENT_TYPES, MAGIC, PROTOCOL, read_state_dict
from amx_jax.classifiers.zoo import CLASSIFIERS
from amx_jax.errors import WeightsError

PACKAGED = [name for name, entry in CLASSIFIERS.items() if entry.distribution]
SUFFIX = "; save model.state_dict() alone"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(params=["zip", "legacy"])
def save(request):
    return partial(torch.save, _use_new_zipfile_serialization=request.param == "zip")


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


VALUES = np.arange(6, dtype="<f4").tobytes()


def legacy(body: bytes) -> bytes:
    """A file of PyTorch's legacy format around the opcodes of its state dict."""
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, {"little_endian": True})]
    keys = ["0"] if text("storage") in body else []
    parts += [program(body), pickle.dumps(keys, 2)] + [struct.pack("<q", 6) + VALUES for _ in keys]
    return b"".join(parts)


def zipped(body: bytes, records=None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of PyTorch's zip format around the opcodes of its state dict."""
    records = {"data/0": VALUES} if records is None else records
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {"data.pkl": program(body), **records}.items():
            archive.writestr(f"weights/{name}", data)
    return buffer.getvalue()


@pytest.fixture(params=[zipped, legacy])
def packed(request):
    return request.param


# --- what PyTorch writes --------------------------------------------------------------------------


ONE_OF_EACH_TYPE = {
    "DoubleStorage": torch.tensor([1 / 3, -np.inf, np.nan, 5e-324], dtype=torch.float64),
    "FloatStorage": torch.tensor([1 / 3, -0.0, np.nan, 1e-45]),
    "HalfStorage": torch.tensor([1 / 3, 65504, -np.inf], dtype=torch.float16),
    "BFloat16Storage": torch.tensor([1 / 3, -0.0, np.nan, -np.inf, 1e-40], dtype=torch.bfloat16),
    "LongStorage": torch.tensor([-(2**63), 2**63 - 1, 7]),
    "IntStorage": torch.tensor([-(2**31), 2**31 - 1, 7], dtype=torch.int32),
    "ShortStorage": torch.tensor([-(2**15), 2**15 - 1, 7], dtype=torch.int16),
    "CharStorage": torch.tensor([-128, 127, 7], dtype=torch.int8),
    "ByteStorage": torch.tensor([0, 255, 7], dtype=torch.uint8),
    "BoolStorage": torch.tensor([True, False, True]),
}


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def test_every_element_type_is_read_bit_by_bit(path, save):
    assert set(ONE_OF_EACH_TYPE) == set(ELEMENT_TYPES)
    save(ONE_OF_EACH_TYPE, path)
    found = read_state_dict(path)
    assert list(found) == list(ONE_OF_EACH_TYPE)
    for name, expected in ONE_OF_EACH_TYPE.items():
        assert found[name].dtype == numpy_of(expected).dtype
        assert found[name].tobytes() == numpy_of(expected).tobytes()


def test_every_bfloat16_is_read_as_the_float32_it_is(path, save):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    save({"w": bits.view(torch.bfloat16)}, path)
    expected = bits.view(torch.bfloat16).float().numpy()
    assert read_state_dict(path)["w"].tobytes() == expected.tobytes()


def test_a_file_from_a_big_endian_machine_is_read_as_pytorch_reads_it(path):
    torch.save(ONE_OF_EACH_TYPE, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            folder, _, key = name.rpartition("/")
            if name.endswith("/byteorder"):
                assert data == b"little"
                data = b"big"
            if folder.endswith("/data"):
                element = list(ONE_OF_EACH_TYPE.values())[int(key)].element_size()
                data = np.frombuffer(data, f"u{element}").byteswap().tobytes()
            archive.writestr(name, data)
    found, expected = read_state_dict(path), torch.load(path, weights_only=True)
    for name, tensor in expected.items():
        assert found[name].dtype == numpy_of(tensor).dtype and found[name].dtype.isnative
        assert found[name].tobytes() == numpy_of(tensor).tobytes()
        np.testing.assert_array_equal(found[name], numpy_of(ONE_OF_EACH_TYPE[name]))


def test_strides_offsets_and_shared_storages_are_resolved(path, save):
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


def test_arrays_of_a_shared_storage_are_separate(path, save):
    base = torch.arange(4.0)
    save({"a": base, "b": base[1:]}, path)
    found = read_state_dict(path)
    found["a"][:] = -1
    assert found["b"].tolist() == [1, 2, 3]


def test_the_state_dict_of_a_module_is_read_with_its_metadata_left_out(path, save):
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
def test_every_pickle_protocol_that_keeps_storage_types_is_read(path, save, protocol):
    save({"w": torch.arange(3.0), "raw": b"\0\xff", "none": b""}, path, pickle_protocol=protocol)
    found = read_state_dict(path)
    assert found["w"].tolist() == [0, 1, 2]
    assert (found["raw"], found["none"]) == (b"\0\xff", b"")


def test_parameters_are_read_as_the_tensors_they_are(path, save):
    module = torch.nn.Linear(3, 2)
    save(dict(module.named_parameters()), path)
    assert torch.load(path, weights_only=True)["weight"].requires_grad
    found = read_state_dict(path)
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(found[name], expected.numpy())


def test_tensors_as_pytorch_first_described_them_are_read(path, packed):
    described = (storage(), integer(1), tuple_of(integer(2)), tuple_of(integer(2)))
    path.write_bytes(packed(dictionary(call(named("torch._utils", "_rebuild_tensor"), *described))))
    assert read_state_dict(path)["w"].tolist() == [1, 3]


def same(found, expected) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(found, np.ndarray) and np.array_equal(found, expected.numpy())
    if isinstance(expected, dict):
        names = [str(name) for name in expected]
        return list(found) == names and all(map(same, found.values(), expected.values()))
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def test_a_checkpoint_with_more_than_tensors_comes_as_it_is_nested(path, save):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 3,
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": torch.tensor(0.75),
        "plain": [1, -0.5, True, None, "text", b"raw", b"", (), {"deeper": [torch.arange(2), ()]}],
        "same": [module.state_dict()] * 2,
    }
    save(state, path)
    found = read_state_dict(path)
    assert same(found, state) and same(found, torch.load(path, weights_only=False))
    assert found["optimizer"]["state"]["0"]["exp_avg"].shape == (2, 3)


def test_tied_weights_are_an_array_each_but_not_without_bound(path, save):
    weight = torch.arange(10_000.0)
    save({f"layer{n}": weight for n in range(12)}, path)
    assert all(array.tolist() == weight.tolist() for array in read_state_dict(path).values())
    save({f"layer{n}": weight[n:] for n in range(40)}, path)
    assert "its tensors repeat its bytes more than 16 times" in message_of(path)


def test_text_of_python_2_and_names_that_are_no_text_are_read(path, packed):
    name = pickle.SHORT_BINSTRING + b"\x01w"
    body = pickle.EMPTY_DICT + name + tensor(0, (6,), (1,)) + pickle.SETITEM
    path.write_bytes(packed(body + integer(3) + tensor(5, (), ()) + pickle.SETITEM))
    found = read_state_dict(path)
    assert found["w"].tolist() == [0, 1, 2, 3, 4, 5] and found["3"] == 5


def test_an_empty_state_dict_is_empty(path, save):
    save({}, path)
    assert read_state_dict(path) == {}


@pytest.mark.parametrize("name", PACKAGED)
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
            files = [b"".join(map(dumps, parts)), zipped(dumps(attack)[:-1])]
            for file in files:
                path.write_bytes(file)
                assert message_of(path) == (
                    f"{path}: refused: the pickle asks for {name}, which a dictionary of tensors does "
                    f"not need and which could run code{SUFFIX}"
                )
    assert not (tmp_path / "marker").exists()


def test_a_call_inside_what_pytorch_saves_is_refused(tmp_path, path, save):
    marker = tmp_path / "ran"
    evil = Call(os.system, f"touch {marker}")
    annotated = OrderedDict(w=torch.zeros(2))
    annotated._metadata = evil  # type: ignore[attr-defined]
    for state in (evil, {"w": torch.zeros(2), "x": evil}, {evil: 1}, annotated):
        save(state, path)
        assert f"refused: the pickle asks for {os.system.__module__}.system" in message_of(path)
    assert not marker.exists()


def test_a_call_inside_the_description_of_a_tensor_is_refused(tmp_path, path, packed):
    marker = tmp_path / "ran"
    evil = call(named("os", "system"), text(f"touch {marker}"))
    pickle.loads(program(evil))
    assert marker.exists()
    marker.unlink()
    for body in (
        tuple_of(text("storage"), evil) + pickle.BINPERSID,
        call(REBUILD, evil),
        call(named("torch._utils", "_rebuild_parameter"), evil),
        call(named("_codecs", "encode"), evil),
        call(named("collections", "OrderedDict"), tuple_of(tuple_of(text("w"), evil))),
        attribute(tensor(0, (6,), (1,)), "stride", evil),
        named("os", "system") + pickle.POP + tensor(0, (6,), (1,)),  # asked for, but not called
    ):
        path.write_bytes(packed(dictionary(body)))
        assert "refused: the pickle asks for os.system" in message_of(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "float32"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.jit", "load"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "defaultdict"),
        ("_codecs", "decode"),
        ("builtins", "bytes"),
        ("builtins", "getattr"),
        ("__builtin__", "getattr"),
        ("builtins", "__import__"),
        ("amx_jax.classifiers.torch_pickle", "read_state_dict"),
        ("no.such.module", "thing"),
        ("", ""),
    ],
)
def test_any_other_global_is_refused_by_name(path, packed, module, name):
    path.write_bytes(packed(dictionary(named(module, name))))
    assert f"weights.pth: refused: the pickle asks for {module}.{name}, which" in message_of(path)


def test_a_refused_name_cannot_break_the_line(path):
    path.write_bytes(legacy(dictionary(named("os\n\x1b[2J", "sys\rtem"))))
    assert r"'os\n\x1b[2J.sys\rtem'" in message_of(path)


def test_a_whole_module_is_refused(path, save):
    save(torch.nn.Linear(2, 2), path)
    assert "asks for torch.nn.modules.linear.Linear" in message_of(path)


@pytest.mark.parametrize("name", ["array", "_asdict", "storage", "__class__"])
def test_what_a_pickle_builds_keeps_its_methods_and_fields(path, packed, name):
    value = named("collections", "OrderedDict")
    for built in (tensor(0, (6,), (1,)), storage(), named("torch", "FloatStorage")):
        path.write_bytes(packed(dictionary(attribute(built, name, value))))
        assert "not a readable" in message_of(path)


def test_an_attribute_of_a_dictionary_hides_none_of_its_arrays(path, packed):
    ordered = call(named("collections", "OrderedDict"))
    state = ordered + text("w") + tensor(0, (6,), (1,)) + pickle.SETITEM
    path.write_bytes(packed(attribute(state, "items", named("collections", "OrderedDict"))))
    assert list(read_state_dict(path)) == ["w"]


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
def test_what_one_file_does_to_a_global_does_not_reach_the_next(tmp_path, path, packed, body):
    (tmp_path / "good.pth").write_bytes(packed(dictionary(tensor(0, (2, 3), (3, 1)))))
    path.write_bytes(packed(dictionary(body)))
    message_of(path)
    for _ in range(2):
        assert read_state_dict(tmp_path / "good.pth")["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


# --- what is damaged or of another kind -----------------------------------------------------------


def test_hand_written_opcodes_are_read_where_they_are_right(path, packed):
    path.write_bytes(packed(dictionary(tensor(1, (2, 2), (3, 1)))))
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
def test_a_tensor_beyond_its_storage_is_refused(path, packed, offset, size, stride):
    path.write_bytes(packed(dictionary(tensor(offset, size, stride))))
    assert "not a readable PyTorch weight file" in message_of(path)


@pytest.mark.parametrize(
    "body",
    [
        pickle.NONE,
        pickle.EMPTY_LIST,
        storage(),
        tensor(0, (6,), (1,)),
        dictionary(storage()),
        dictionary(named("torch", "FloatStorage")),
        dictionary(REBUILD),
        dictionary(named("collections", "OrderedDict")),
        dictionary(pickle.EMPTY_SET),
        dictionary(pickle.MARK + pickle.FROZENSET),
        dictionary(pickle.EMPTY_LIST + REBUILD + pickle.APPEND),
        dictionary(pickle.BYTEARRAY8 + struct.pack("<Q", 1) + b"a"),
        pickle.EMPTY_DICT + tuple_of(integer(1)) + integer(2) + pickle.SETITEM,
        pickle.EMPTY_DICT + pickle.MARK + tuple_of(integer(1)) + integer(2) + pickle.SETITEMS,
        pickle.MARK + tuple_of(integer(1)) + integer(2) + pickle.DICT,
        call(named("collections", "OrderedDict"), tuple_of(tuple_of(tuple_of(), integer(2)))),
        pickle.EMPTY_DICT + pickle.NONE + integer(2) + pickle.SETITEM,
        dictionary(integer(1), "1") + integer(1) + integer(2) + pickle.SETITEM,
        # a dictionary and a list that hold themselves
        pickle.EMPTY_DICT + pickle.MEMOIZE + text("w") + pickle.BINGET + b"\0" + pickle.SETITEM,
        dictionary(pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\0" + pickle.APPEND),
        dictionary(tensor(0, (6,), (1,), of=text("storage"))),
        dictionary(tensor(0, (6,), (1,), of=storage(key="1"))),
        dictionary(tensor(0, (6,), (1,), of=storage(length=7))),
        dictionary(tensor(0, (6,), (1,), of=storage(view=tuple_of(text("1"), integer(2), integer(3))))),
        dictionary(tensor(0, (6,), (1,), of=integer(0) + pickle.BINPERSID)),
        dictionary(tensor(0, (6,), (1,), of=tuple_of(text("module")) + pickle.BINPERSID)),
        dictionary(call(REBUILD, storage(), pickle.NONE, pickle.NONE, pickle.NONE)),
        dictionary(call(REBUILD, storage(), integer(0), text("ab"), text("ab"))),
        dictionary(call(REBUILD)),
        dictionary(call(named("torch._utils", "_rebuild_parameter"), storage())),
        dictionary(call(named("_codecs", "encode"), integer(10**12))),
        dictionary(call(named("_codecs", "encode"), text("a"), text("utf-8"))),
        dictionary(call(named("__builtin__", "bytes"), integer(10**12))),
        dictionary(call(REBUILD, storage(), *[integer(0)] * 3, *[pickle.NONE] * 2, text("negated"))),
        dictionary(tensor(0, (6,), (1,)))
        + text("v")
        + tensor(0, (1,), (1,), of=storage(length=5))
        + pickle.SETITEM,
        dictionary(call(named("torch", "FloatStorage"))),
        dictionary(pickle.BINGET + b"\x07"),
        b"",
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(path, packed, body):
    path.write_bytes(packed(body))
    assert "not a readable PyTorch weight file" in message_of(path)


def test_what_is_neither_a_tensor_nor_plain_is_named(path, packed):
    path.write_bytes(packed(dictionary(dictionary(REBUILD, "odd"))))
    assert "'odd' is neither a tensor nor a plain value" in message_of(path)


def test_lists_that_hold_the_same_list_twice_fifty_deep_are_read_once(path, packed):
    nest = pickle.EMPTY_LIST
    for index in range(50):
        again = bytes([index])
        nest += pickle.BINPUT + again + pickle.POP + pickle.EMPTY_LIST
        nest += 2 * (pickle.BINGET + again + pickle.APPEND)
    path.write_bytes(packed(dictionary(nest)))
    assert len(read_state_dict(path)["w"]) == 2


def test_a_key_that_is_nested_so_deep_that_its_hash_overflows_the_stack_is_refused(path, packed):
    deep = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000
    for body in (
        pickle.EMPTY_DICT + deep + pickle.NONE + pickle.SETITEM,
        call(named("collections", "OrderedDict"), tuple_of(tuple_of(deep, pickle.NONE))),
        tuple_of(text("storage"), named("torch", "FloatStorage"), deep, text("cpu"), integer(6))
        + pickle.BINPERSID,
    ):
        path.write_bytes(packed(body))
        message_of(path)
    parts = [pickle.dumps(part) for part in (MAGIC, PROTOCOL, {}, {})]
    path.write_bytes(b"".join([*parts, program(tuple_of(deep))]))
    assert "a storage with a name that is no text" in message_of(path)


def test_a_high_number_in_the_pickles_memory_takes_no_more_of_ours(path, packed):
    path.write_bytes(
        packed(dictionary(tensor(0, (6,), (1,)) + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f"))
    )
    assert read_state_dict(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_element_type_numpy_lacks_is_named(path, save):
    save({"w": torch.zeros(2, dtype=torch.complex64)}, path)
    message = message_of(path)
    assert "found tensors of type torch.ComplexFloatStorage, expected one of DoubleStorage" in message
    assert "code" not in message


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.zeros(2, dtype=torch.uint16), "_rebuild_tensor_v3"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "_rebuild_tensor_v3"),
        (torch.zeros(2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_tensors_of_another_build_are_refused_by_name(path, save, tensor, name):
    save({"w": tensor}, path)
    assert f"asks for torch._utils.{name}, which" in message_of(path)


def test_a_bare_storage_is_refused(path, save):
    save({"w": torch.zeros(2).untyped_storage()}, path)
    message_of(path)


def test_a_tensor_that_is_stored_negated_is_refused(path, save):
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg()
    save({"w": negated}, path)
    assert "stored negated" in message_of(path)


def saved(save) -> bytes:
    buffer = io.BytesIO()
    save(OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor([True, False])), buffer)
    return buffer.getvalue()


def test_a_file_cut_at_any_length_is_refused(path, save):
    data = saved(save)
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


def test_a_file_with_any_byte_changed_gives_arrays_or_one_line(path, save):
    data = saved(save)
    checked = data.startswith(b"PK")  # a zip has checksums
    path.write_bytes(data)
    whole = read_state_dict(path)
    messages = []
    for position in range(len(data)):
        changes = (data[position] ^ 1, data[position] ^ 128, 255)
        for changed in changes[position % 3 :][:1] if checked else changes:
            path.write_bytes(data[:position] + bytes([changed]) + data[position + 1 :])
            try:
                found = read_state_dict(path)
            except WeightsError as error:
                messages.append(str(error))
            else:
                assert all(
                    isinstance(value, np.ndarray | int | float | str) for value in found.values()
                )
                if checked:
                    assert list(found) == list(whole)
                    assert all(map(np.array_equal, found.values(), whole.values()))
    assert len(messages) > len(data) / 3 and all(map(str.isprintable, messages))


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
    assert "not a readable PyTorch weight file" in message_of(path)


def test_random_bytes_are_refused(path):
    random = np.random.default_rng(0)
    for length in range(1, 300):
        path.write_bytes(random.bytes(length))
        message_of(path)


# --- zip archives that PyTorch would not write ----------------------------------------------------

GOOD = dictionary(tensor(0, (6,), (1,)))


def test_other_records_are_ignored(path):
    others = {
        "version": b"3\n",
        ".data/serialization_id": b"1",
        ".format_version": b"1",
        "extra/x": b"?",
    }
    path.write_bytes(zipped(GOOD, {"data/0": VALUES, **others}))
    assert read_state_dict(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ({}, "the record 'weights/data/0' is missing"),
        ({"data/1": VALUES}, "the record 'weights/data/0' is missing"),
        ({"data/0": VALUES[:-1]}, "'weights/data/0' has 23 bytes, not 24"),
        ({"data/0": VALUES + b"\0"}, "'weights/data/0' has 25 bytes, not 24"),
        ({"data/0": b""}, "'weights/data/0' has 0 bytes, not 24"),
        ({"data/0": VALUES, "byteorder": b"middle"}, "KeyError: b'middle'"),
        ({"data/0": VALUES, "deeper/data.pkl": b""}, "found 2 records data.pkl, expected one"),
    ],
)
def test_a_record_that_is_missing_or_of_another_size_is_named(path, records, complaint):
    path.write_bytes(zipped(GOOD, records))
    assert complaint in message_of(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_record_is_refused_before_it_is_unpacked(path, compression):
    path.write_bytes(zipped(GOOD, {"data/0": bytes(10**6)}, compression))
    assert message_of(path).endswith(
        "the record 'weights/data.pkl' is compressed, expected it as torch.save stores it"
    )


def test_two_records_of_a_name_are_refused(path):
    path.write_bytes(zipped(GOOD))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("weights/data/0", VALUES)
    assert "found two records 'weights/data/0', expected one" in message_of(path)


def test_records_that_share_their_bytes_are_refused(path):
    path.write_bytes(zipped(GOOD, {"data/0": bytes(1000)}))
    with zipfile.ZipFile(path, "a") as archive:
        for key in ("1", "2"):
            record = copy.copy(archive.getinfo("weights/data/0"))
            record.filename = f"weights/data/{key}"
            archive.filelist.append(record)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "its records are larger than the file" in message_of(path)


def test_an_archive_without_a_pickle_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no weights")
    assert "found 0 records data.pkl, expected one" in message_of(path)


# --- where no file can be read --------------------------------------------------------------------


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
