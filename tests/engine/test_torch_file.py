"""Files of torch.save read without torch: both forms, views, modules, and everything that is refused.

The files are written by the standard library's pickler (`scripts.drills.fuzz.pth`); tests/peers reads torch's own.
"""

import io
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store import torch_file, torch_pickle, weight_files
from leanax.engine.store.torch_arrays import Unread
from leanax.engine.store.torch_pickle import Damaged
from scripts.drills.fuzz import drill, pth
from scripts.drills.fuzz.pth import Made, Name, Stored, archive, module, packed, parameter, stream, tensor

RNG = np.random.default_rng(0)
DTYPES = (
  "bool",
  "uint8",
  "int8",
  "int16",
  "int32",
  "int64",
  "float16",
  "float32",
  "float64",
  "complex64",
  "complex128",
)
FORMS = [
  *(pytest.param(archive, protocol, id=f"archive{protocol}") for protocol in (2, 4, 5)),
  *(pytest.param(stream, protocol, id=f"stream{protocol}") for protocol in (2, 4)),
]


def same(found, wanted):
  assert found.dtype == wanted.dtype
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("write", "protocol"), FORMS)
def test_every_dtype(write, protocol):
  arrays = {name: (RNG.normal(size=(3, 5)) * 3).astype(name) for name in DTYPES}
  arrays["bfloat16"] = RNG.normal(size=7).astype(ml_dtypes.bfloat16)
  found = torch_file.read(write(OrderedDict((name, tensor(array)) for name, array in arrays.items()), protocol))
  assert list(found) == list(arrays)
  for name, array in arrays.items():
    same(found[name], array)


@pytest.mark.parametrize(("write", "protocol"), FORMS)
def test_views_of_one_storage(write, protocol):
  numbers = np.arange(24, dtype=np.float32)
  stored = Stored(numbers)
  found = torch_file.read(
    write(
      {
        "all": tensor(stored, (2, 3, 4), 0, (12, 4, 1)),
        "moved": tensor(stored, (4, 2, 3), 0, (1, 12, 4)),
        "part": tensor(stored, (2, 2), 5, (8, 2)),
        "spread": tensor(stored, (3, 2), 7, (0, 0)),
        "last": tensor(stored, (), 23, ()),
        "none": tensor(stored, (0, 4), 24, (4, 1)),
      },
      protocol,
    )
  )
  cube = numbers.reshape(2, 3, 4)
  same(found["all"], cube)
  same(found["moved"], cube.transpose(2, 0, 1))
  same(found["part"], np.array([[5, 7], [13, 15]], np.float32))
  same(found["spread"], np.full((3, 2), 7, np.float32))
  assert found["last"] == 23 and found["none"].shape == (0, 4)
  assert np.shares_memory(found["all"], found["moved"]) and not found["all"].flags.writeable


def test_a_part_of_a_storage():
  """Streams of old could name a part, whose own first entry a tensor counts from."""
  numbers = np.arange(24, dtype=np.float32)
  found = torch_file.read(stream({"a": tensor(Stored(numbers, ("p", 5, 4)), (2,), 1, (2,))}))
  same(found["a"], np.array([6, 8], np.float32))
  with pytest.raises(Damaged, match="storage '0' has 96 bytes; its tensors read 100"):
    torch_file.read(stream({"a": tensor(Stored(numbers, ("p", 21, 4)), (2,), 0, (1,))}))


def test_truths_are_zero_or_one():
  found = torch_file.read(archive({"a": tensor(Stored(np.array([0, 1, 2], np.uint8).view(bool)), (3,), 0, (1,))}))
  np.testing.assert_array_equal(found["a"].view(np.uint8), [0, 1, 1])


def test_the_other_order_of_bytes():
  arrays = {"a": RNG.normal(size=5).astype(np.float32), "b": np.arange(4), "c": np.arange(3, dtype=np.int8)}
  found = torch_file.read(archive({name: tensor(array) for name, array in arrays.items()}, order="big"))
  for name, array in arrays.items():
    same(found[name], array)


def test_dtypes_without_a_storage_of_their_own():
  bits = Made("torch._utils _rebuild_tensor_v3", Stored(np.arange(6, dtype=np.uint8)), 1, (2,), (1,), False, {})
  bits.reduced = (*bits.reduced[:1], (*bits.reduced[1], Name("torch uint16")), None)
  same(torch_file.read(archive({"a": bits}))["a"], np.array([0x0302, 0x0504], np.uint16))


@pytest.mark.parametrize(("write", "protocol"), FORMS)
def test_a_pickled_module_has_the_names_of_its_state_dict(write, protocol):
  w, b = RNG.normal(size=(2, 3)).astype(np.float32), np.ones(2, np.float32)
  linear = module("Linear", {"weight": parameter(w), "bias": parameter(b)}, {}, {})
  bare = module("Linear", {"weight": parameter(b), "bias": None}, {}, {})
  buffers = {"mean": tensor(b), "passing": tensor(w)}
  net = module("Net", {"scale": parameter(b)}, buffers, {"layers": module("List", {}, {}, {"0": linear, "1": bare})})
  wanted = {"scale": b, "mean": b, "layers.0.weight": w, "layers.0.bias": b, "layers.1.weight": b}
  for prefix, value in (("", net), ("ema/", {"epoch": 1, "ema": net})):
    found = torch_file.read(write(value, protocol))
    assert set(found) == {prefix + name for name in wanted}
    for name, array in wanted.items():
      same(found[prefix + name], array)


def test_arrays_of_numpy_in_a_checkpoint():
  array = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))
  value = {"step": 3, "a": array, "b": np.float32(2.5), "c": np.array(["x"]), "d": np.array([None]), "e": {1: [array]}}
  for protocol in (2, 3, 4, 5):
    content = packed({"data.pkl": pickle.dumps(value, protocol)})
    found = torch_file.read(content)
    assert set(found) == {"a", "b", "e/1/0"}, protocol
    same(found["a"], array)
    assert found["b"] == np.float32(2.5) and found["b"].dtype == np.float32


class Evil:
  def __reduce__(self):
    return (exec, ("raise SystemExit('run')",))


def test_nothing_is_run():
  """What a pickle would import and call is data; only a tensor that depends on it cannot be read."""
  value = {"w": np.ones(2), "hook": Evil(), "state": [Evil(), {"deep": Evil()}]}
  with pytest.raises(SystemExit):
    pickle.loads(pickle.dumps(value))
  found = torch_file.read(packed({"data.pkl": pickle.dumps(value)}))
  assert set(found) == {"w"}
  found = torch_file.read(archive({"w": Made("os system", tensor(np.ones(2))), "v": tensor(np.ones(2))}))
  assert found["w"] == Unread("what 'os.system' makes of a tensor")
  same(found["v"], np.ones(2))


def of(*args, **more):
  """A file of one tensor with these arguments after its storage of 24 entries."""
  return archive({"w": tensor(Stored(np.arange(24, dtype=np.float32)), *args, **more)})


def numbers():
  return {"w": tensor(np.ones(4, np.float32))}


def truncated(content):
  return content[:-3]


def of_parts(**parts):
  with zipfile.ZipFile(io.BytesIO(archive(numbers()))) as file:
    found = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
  return packed({name: content for name, content in {**found, **parts}.items() if content is not None})


def flipped():
  content = bytearray(archive({"w": tensor(np.full(4, 1.25))}))
  content[content.index(np.full(4, 1.25).tobytes())] ^= 1
  return bytes(content)


def bomb(levels=60):
  """A list in a list twice, and so on: 2^60 lists of a few bytes."""
  return b"\x80\x02]" + b"".join(b"q%c0](h%ch%ce" % (k, k, k) for k in range(levels)) + b"."


def aliases():
  """One dict of 2,000 entries, 20,000 times in a list."""
  one = pickle.dumps(dict.fromkeys(range(2000)), 2)[:-1]
  return one + b"q\xff0" + b"]" + b"(" + b"h\xff" * 20_000 + b"e."


REFUSED = {
  "too long": (lambda: of((25,), 0, (1,)), r"a tensor of \(25,\) reads beyond the end of storage '0'"),
  "offset": (lambda: of((2,), 23, (1,)), "reads beyond the end of storage '0'"),
  "stride": (lambda: of((2, 2), 0, (23, 1)), "reads beyond the end of storage '0'"),
  "negative stride": (lambda: of((2,), 3, (-1,)), "a tensor of what are no sizes"),
  "negative offset": (lambda: of((2,), -1, (1,)), "a tensor of what are no sizes"),
  "negative size": (lambda: of((-2,), 0, (1,)), "a tensor of what are no sizes"),
  "axes": (lambda: of((2, 2), 0, (1,)), "a tensor of what are no sizes"),
  "text": (lambda: of(("2",), 0, (1,)), "a tensor of what are no sizes"),
  "expanded": (lambda: of((2**40, 2**40), 0, (0, 0)), "a tensor of 2 axes and 2\\^81 entries"),
  "empty and huge": (lambda: of((0, 2**61), 0, (0, 0)), "a tensor of 2 axes and"),
  "many axes": (lambda: of((1,) * 40, 0, (1,) * 40), "a tensor of 40 axes"),
  "damaged": (flipped, "'archive/data/0' does not match its checksum"),
  "cut": (lambda: truncated(archive(numbers())), "its archive is damaged"),
  "cut stream": (lambda: truncated(stream(numbers())), "storage '0' ends behind the file; is it cut off?"),
  "missing": (lambda: of_parts(**{"data/0": None}), "'archive/data/0' is missing in its archive"),
  "short": (lambda: of_parts(**{"data/0": b"\0" * 15}), "storage '0' has 15 bytes; its tensors read 16"),
  "order": (lambda: of_parts(byteorder=b"middle"), "its byte order is b'middle'"),
  "TorchScript": (lambda: of_parts(**{"constants.pkl": b""}), "it is a TorchScript program; expected torch.save"),
  "other archive": (lambda: packed({"x": b""}), "an archive without one data.pkl"),
  "compressed": (lambda: packed({"data.pkl": b"." * 99}, zipfile.ZIP_DEFLATED), "is compressed in its archive"),
  "tar": (lambda: b"\0" * 257 + b"ustar", "it is a tar archive"),
  "pickle": (lambda: pickle.dumps(numbers), "it is no file that torch.save wrote"),
  "text file": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "it is no file that torch.save wrote"),
  "empty": (lambda: b"", "it is no file that torch.save wrote"),
  "bomb": (lambda: of_parts(**{"data.pkl": bomb()}), "it (repeats its values endlessly|nests its values too deeply)"),
  "aliases": (lambda: of_parts(**{"data.pkl": aliases()}), "it repeats its values endlessly"),
  "cycle": (lambda: of_parts(**{"data.pkl": b"\x80\x02}q0X\x01\0\0\0ah0s."}), "it nests its values too deeply"),
  "extension": (lambda: of_parts(**{"data.pkl": b"\x80\x02\x82\x01."}), "its opcode EXT1 is not one of data"),
  "no stop": (lambda: of_parts(**{"data.pkl": b"\x80\x02}"}), "it is no whole pickle"),
  "no mark": (lambda: of_parts(**{"data.pkl": b"\x80\x02]]t."}), "it lacks a mark"),
  "two values": (lambda: of_parts(**{"data.pkl": b"\x80\x02]]."}), "it does not end with one value"),
  "pairs": (
    lambda: of_parts(
      **{
        "data.pkl": pickle.dumps([[k, k] for k in range(50)], 2)[:-1]
        + b"q\xff0"
        + b"ccollections\nOrderedDict\n(h\xfftR0" * 999
        + b"]."
      }
    ),
    "it copies a list again and again",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
  make, says = REFUSED[name]
  (tmp_path / "w.pth").write_bytes(make())
  with pytest.raises(UserError, match=f"w.pth cannot be read: .*{says}") as caught:
    weight_files.read(tmp_path / "w.pth")
  assert "\n" not in str(caught.value)


def test_tensors_that_are_stored_as_something_else():
  """A conjugate or a negative is marked beside the numbers, which are not the tensor's."""
  stored = Stored(np.ones(2, np.complex64))
  found = torch_file.read(archive({"a": tensor(stored, (2,), 0, (1,), metadata={"conj": True})}))
  assert "conjugate or negative" in found["a"].reason
  same(torch_file.read(archive({"a": tensor(stored, (2,), 0, (1,), metadata={})}))["a"], np.ones(2, np.complex64))
  quantized = Made("torch._utils _rebuild_qtensor", stored, 0, (2,), (1,), (), False, {})
  assert torch_file.read(archive({"a": quantized}))["a"].reason == "a tensor of 'torch._utils._rebuild_qtensor'"


def test_values_of_every_opcode():
  """Protocols 0 to 5 of plain values, as `pickle` reads them; keys become texts."""
  value = {
    "a": [1, -1, 255, 256, 2**31, 2**70, -(2**2100), 1.5, True, False, None],
    "b": ((), (1,), (1, 2), (1, 2, 3), (1,) * 4),
  }
  value["d"], value["e"] = {1, 2}, frozenset({3})
  value["c"] = {"x": "é\n", "y": b"\xff", "z": bytearray(b"12"), "long": "x" * 300}
  for protocol in range(6):
    found = torch_pickle.load(io.BytesIO(pickle.dumps(value, protocol)), lambda given: given)
    assert found["a"] == value["a"] and found["b"] == value["b"] and found["c"]["x"] == "é\n" and len(found["c"]) == 4
  assert torch_pickle.load(io.BytesIO(pickle.dumps({3: {True: 1, b"k": 2}})), None) == {"3": {"True": 1, "k": 2}}
  for text in (b"(I1\nI2\nl.", b"(S'a'\nI1\nd.", b"(i__main__\nC\n.", b"(c__main__\nC\no.", b"(I1\n1]."):
    torch_pickle.load(io.BytesIO(text), None)
  with pytest.raises(Damaged):
    torch_pickle.load(io.BytesIO(b"\x80\x02\x8b\xff\xff\xff\xff."), None)


def test_seeds_of_the_drill_are_read_and_mutants_too():
  assert [pth.case(content) for content in pth.seeds()] == ["read"] * 9
  lines = drill.run("pth", range(400), 0)
  assert not [line for line in lines if line["failed"]]
  assert sum(line["outcome"] == "read" for line in lines) > 20
