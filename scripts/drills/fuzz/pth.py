"""Mutated files of torch.save: bytes changed, opcodes of the pickle replaced, and archives put together anew.

`archive` and `stream` write such files without torch, in both of its forms; tests use them too.
"""

import codecs
import io
import pickle
import pickletools
import random
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from leanax.engine.store import torch_file
from leanax.engine.store.torch_arrays import STORAGES, Unread
from leanax.engine.store.torch_pickle import Damaged
from scripts.drills.fuzz.mutations import damaged

LIMIT = 256  # MiB
NAMES = {dtype: name for name, dtype in reversed(STORAGES.items()) if not name.startswith(("Q", "Untyped"))}
INTEGERS = (0, 1, -1, 2, 3, 5, 255, 256, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 2**200)
GLOBALS = (
  *("os\nsystem", "builtins\neval", "torch\nSize", "torch\nfloat8_e5m2", "collections\nOrderedDict", "builtins\nset"),
  *("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_tensor_v3", "torch._utils\n_rebuild_parameter"),
  *("torch\nLongStorage", "torch\nUntypedStorage", "numpy\ndtype", "numpy.core.multiarray\nscalar", "_codecs\nencode"),
)


class Name:
  """A name that a pickle imports: of a class or function that need not exist here."""

  def __init__(self, text: str) -> None:
    self.text = text

  def __call__(self) -> None:
    """Is there for pickle, which wants to see a function."""


class Made:
  """An object that a pickle makes by a call, and its state."""

  def __init__(self, name: str, *args: Any, state: Any = None) -> None:
    self.reduced = (Name(name), args, state)

  def __reduce__(self) -> Any:
    return self.reduced


class Stored:
  """A storage of numbers, which several tensors may read; `part`, of a stream: (a name, the first entry, how many)."""

  def __init__(self, numbers: np.ndarray, part: Any = None) -> None:
    self.numbers, self.part = numbers, part


PYTHON: Any = pickle._Pickler  # type: ignore[attr-defined]


class _Pickler(PYTHON):
  """The standard library's pickler in Python, which lets names that are not there be written."""

  dispatch: ClassVar[Any] = dict(PYTHON.dispatch)

  def __init__(self, file: Any, protocol: int, old: bool) -> None:
    super().__init__(file, protocol)
    self.old, self.storages = old, {}

  def persistent_id(self, value: Any) -> Any:
    if not isinstance(value, Stored):
      return None
    key = self.storages.setdefault(id(value), (str(len(self.storages)), value))[0]
    kind = Name(f"torch {NAMES[str(value.numbers.dtype)]}")
    return ("storage", kind, key, "cpu", value.numbers.size, *((value.part,) if self.old else ()))

  def save_name(self, value: Any) -> None:
    module, _, name = value.text.rpartition(" ")
    self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
    self.memoize(value)

  dispatch[Name] = save_name


def tensor(numbers: Any, shape: Any = None, offset: int = 0, stride: Any = None, **more: Any) -> Made:
  """Returns what a tensor is pickled as: of an array, or a view of a storage in entries."""
  if not isinstance(numbers, Stored):
    numbers = np.array(numbers, order="C")
    shape, stride = numbers.shape, tuple(n // numbers.itemsize for n in numbers.strides)
    numbers = Stored(numbers.reshape(-1))
  metadata = (more["metadata"],) if more else ()
  return Made("torch._utils _rebuild_tensor_v2", numbers, offset, shape, stride, False, OrderedDict(), *metadata)


def parameter(numbers: Any) -> Made:
  """Returns what a parameter is pickled as."""
  return Made("torch._utils _rebuild_parameter", tensor(numbers), True, OrderedDict())


def module(name: str, parameters: Mapping[str, Any], buffers: Mapping[str, Any], modules: Mapping[str, Any]) -> Made:
  """Returns what a module is pickled as."""
  groups = {"_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict(modules)}
  return Made(f"nets {name}", state={"training": True, **groups, "_non_persistent_buffers_set": {"passing"}})


def pickled(value: Any, protocol: int = 2, old: bool = False) -> tuple[bytes, list[tuple[str, Stored]]]:
  """Returns a pickle and the storages that it refers to."""
  file = io.BytesIO()
  pickler = _Pickler(file, protocol, old)
  pickler.dump(value)
  return file.getvalue(), list(pickler.storages.values())


def archive(value: Any, protocol: int = 2, order: str = "little") -> bytes:
  """Returns a file as torch.save has written it since torch 1.6."""
  content, storages = pickled(value, protocol)
  raw = {key: _swapped(one.numbers) if order == "big" else one.numbers for key, one in storages}
  parts = {"data.pkl": content, "byteorder": order.encode(), "version": b"3\n"}
  return packed({**parts, **{f"data/{key}": numbers.tobytes() for key, numbers in raw.items()}})


def packed(parts: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
  """Returns the archive of parts."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as made:
    for name, content in parts.items():
      made.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compression)
  return file.getvalue()


def stream(value: Any, protocol: int = 2) -> bytes:
  """Returns a file as torch.save wrote it before torch 1.6."""
  content, storages = pickled(value, protocol, old=True)
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
  head = [pickle.dumps(one, 2) for one in (torch_file.MAGIC, torch_file.PROTOCOL, system)]
  keys = pickle.dumps([key for key, _ in storages], 2)
  numbers = [struct.pack("<q", one.numbers.size) + one.numbers.tobytes() for _, one in storages]
  return b"".join((*head, content, keys, *numbers))


def _swapped(numbers: np.ndarray) -> np.ndarray:
  return numbers.view(f"u{numbers.itemsize}").byteswap().view(numbers.dtype)


def seeds() -> list[bytes]:
  """Returns true files: state dicts, checkpoints and modules, in both forms and several protocols."""
  at_random = np.random.default_rng(0)
  shared = Stored(at_random.normal(size=24).astype(np.float32))
  state = OrderedDict(
    [
      ("conv.weight", tensor(at_random.normal(size=(4, 3, 3, 3)).astype(np.float32))),
      ("view", tensor(shared, (3, 4), 2, (1, 5))),
      ("same", tensor(shared, (24,), 0, (1,))),
      ("half", tensor(np.arange(6).reshape(2, 3).astype(jnp.bfloat16))),
      ("bn.num_batches_tracked", tensor(np.array(3))),
    ]
  )
  dtype = Made("numpy dtype", "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0))
  code = Made("_codecs encode", np.arange(3.0).tobytes().decode("latin-1"), "latin1")
  array = Made(
    "numpy.core.multiarray _reconstruct", Name("numpy ndarray"), (0,), b"b", state=(1, (3,), dtype, False, code)
  )
  moments = {0: {"exp_avg": tensor(np.zeros(5)), "step": 4}}
  checkpoint = {"epoch": 3, "state_dict": state, "optimizer": {"state": moments}, "a": array, "history": [0.5] * 20}
  linear = module("Linear", {"weight": parameter(np.eye(3, dtype=np.float32)), "bias": None}, {}, {})
  whole = module("Net", {}, {"mean": tensor(np.ones(3)), "passing": tensor(np.ones(2))}, {"fc": linear, "0": linear})
  values = (state, checkpoint, whole)
  files = [write(one, protocol) for one in values for write, protocol in ((archive, 2), (stream, 2), (archive, 4))]
  for codec in ("cp437", "raw_unicode_escape", "ascii"):
    codecs.lookup(codec)  # Python imports them at first use
  for content in files:
    torch_file.read(content)
  return files


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  if draw.randrange(3) == 0:
    return damaged(draw, content, files)
  if content[:2] != b"PK":
    at = content.index(b"type_sizes")
    at = content.index(b".", content.index(b"long", at)) + 1
    return content[:at] + _program(draw, content[at:], files)
  with zipfile.ZipFile(io.BytesIO(content)) as file:
    parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
  chosen = "data.pkl" if draw.randrange(8) else draw.choice(list(parts))
  change = _program if chosen == "data.pkl" and draw.randrange(6) else damaged
  parts[chosen] = change(draw, parts[chosen], files)
  if draw.randrange(12) == 0:
    del parts[draw.choice(list(parts))]
  return packed(parts, zipfile.ZIP_STORED if draw.randrange(20) else zipfile.ZIP_DEFLATED)


def _program(draw: random.Random, content: bytes, files: list[bytes]) -> bytes:
  """Changes opcodes of the first pickle."""
  try:
    listed = list(pickletools.genops(content))
  except ValueError:
    return damaged(draw, content, files)
  places = [int(place or 0) for _, _, place in listed]
  numbers = [at for at, (opcode, _, _) in enumerate(listed) if opcode.name.startswith(("BININT", "LONG1"))]
  end = places[-1] + 1
  if numbers and draw.randrange(2):  # a size, a stride, an offset or a count
    at = draw.choice(numbers)
    now = int(str(listed[at][1]))
    number = draw.choice((*INTEGERS, now + 1, now - 1, now * 2, now + 7))
    return content[: places[at]] + pickle.dumps(number, 2)[2:-1] + content[places[at + 1] :]
  ops = [content[a:b] for a, b in zip(places, [*places[1:], end])]
  for _ in range(draw.randint(1, 4)):
    at = draw.randrange(len(ops))
    match draw.randrange(7):
      case 0:
        del ops[at : at + draw.choice((1, 1, 2, 5))]
      case 1:
        ops[at:at] = ops[(start := draw.randrange(len(ops) or 1)) : start + draw.choice((1, 2, 10, 100))]
      case 2:
        ops[at] = draw.choice(pickletools.opcodes).code.encode("latin-1")
      case 3:
        ops[at] = pickle.dumps(draw.choice(INTEGERS), 2)[2:-1]
      case 4:
        ops[at] = f"c{draw.choice(GLOBALS)}\n".encode()
      case 5:
        ops[at:at] = [b"2", draw.choice((b"\x86", b"\x87", b"a", b"b", b"R"))] * draw.choice((1, 30, 300))
      case 6:
        ops[at : at + 1] = [b"h" + bytes([draw.randrange(256)])] * draw.choice((1, 1, 50))
    if not ops:
      break
  return b"".join(ops) + content[end:]


watched: dict[str, Any] = {"events": None}


def _audit(event: str, args: Any) -> None:
  """Notes what a file may not make its reader do."""
  if watched["events"] is not None and event in ("import", "pickle.find_class", "exec", "compile", "open", "os.system"):
    watched["events"].append(f"{event} {args!r}"[:100])


sys.addaudithook(_audit)


def case(content: bytes) -> str:
  """Reads a file; returns "read", or the reason without its numbers.

  Raises:
    AssertionError: the reason is no part of a sentence, an array is larger than the numbers that it reads, or something
      was imported, opened or run.
  """
  try:
    watched["events"] = []
    found = torch_file.read(content)
  except Damaged as error:
    text = str(error)
    assert text and "\n" not in text and len(text) < 400 and text.isprintable(), text
    return re.sub(r"'.*'|\(.*\)|[\d,]+", "#", text)[:60]
  finally:
    events, watched["events"] = watched["events"], None
    assert not events, f"reading it did {events[:5]}"
  for array in found.values():
    if isinstance(array, Unread):
      assert array.reason.isprintable() and len(array.reason) < 200
      continue
    base = array
    while isinstance(base.base, np.ndarray):
      base = base.base
    assert base.nbytes <= max(len(content), 0) or not array.size, (array.shape, array.strides)
    if array.size:
      array[(-1,) * array.ndim].tobytes(), array[(0,) * array.ndim].tobytes()  # both ends are there
  return "read"
