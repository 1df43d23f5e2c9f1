"""The arrays among the values of a pickle of torch, as views of the bytes that are stored beside it.

Nothing is called: what torch's own functions would do with their arguments is done here, after each argument is checked
against the bytes that there are.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leanax.engine.store.torch_pickle import Damaged, Global, Record

NAME, NAMES = 1000, 2**26  # characters of one name, and of all
AXES, ENTRIES = 32, 2**48  # of one array; of an expanded one there may be fewer bytes
# Of names below "torch": the dtypes of storages, and those that stand beside storages without one.
STORAGES = {
  "BoolStorage": "bool",
  "ByteStorage": "uint8",
  "CharStorage": "int8",
  "ShortStorage": "int16",
  "IntStorage": "int32",
  "LongStorage": "int64",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  "UntypedStorage": "uint8",
  # Of quantized tensors, which are named and not read.
  **{f"QU{name}Storage": "uint8" for name in ("Int8", "Int4x2", "Int2x4")},
  "QInt8Storage": "int8",
  "QInt32Storage": "int32",
}
DTYPES = {*STORAGES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}
# What makes a tensor of its first argument, which is one.
WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
# How many arguments before the metadata make a tensor of a storage, an offset, sizes and strides.
TENSORS = {
  "torch._utils._rebuild_tensor": 4,
  "torch._utils._rebuild_tensor_v2": 6,
  "torch._utils._rebuild_tensor_v3": 7,
}
NUMPY = ("numpy.core", "numpy._core")  # before numpy 2, and since
RECONSTRUCT = {f"{name}.multiarray._reconstruct" for name in NUMPY}
SCALAR = {f"{name}.multiarray.scalar" for name in NUMPY}
FROM_BUFFER = {f"{name}.numeric._frombuffer" for name in NUMPY}


class Unread(NamedTuple):
  """What stands for an array that cannot be read: the reason, such as a quantized tensor."""

  reason: str


class Storage(NamedTuple):
  """The numbers that tensors are views of: which, their dtype, and those from `start` on where it is a part."""

  key: str
  dtype: str
  count: int
  start: int = 0


def storage(given: Any) -> Any:
  """Returns what a persistent id names: a storage, or the class of a module whose source was stored beside it."""
  if isinstance(given, tuple) and given[:1] == ("module",) and len(given) > 1:
    return given[1]
  if not (isinstance(given, tuple) and len(given) in (5, 6) and given[0] == "storage"):
    raise Damaged("it refers to what is no storage")
  _, kind, key, _, count, *part = given
  name = kind.name.rsplit(".", 1)[-1] if isinstance(kind, Global) and kind.name.startswith("torch.") else ""
  if not isinstance(key, str) or not _whole(count):
    raise Damaged("it refers to a storage without a name or a size")
  if name not in STORAGES:
    return Unread(f"a tensor on {kind.name[:80]!r}" if isinstance(kind, Global) else "a tensor of no known type")
  if not part or part[0] is None:
    return Storage(key, STORAGES[name], count)
  if not (isinstance(part[0], tuple) and len(part[0]) == 3 and all(map(_whole, part[0][1:]))):
    raise Damaged("it refers to a part of a storage without a place")
  return Storage(key, STORAGES[name], part[0][2], part[0][1])


def _whole(number: Any) -> bool:
  return type(number) is int and 0 <= number < 2**62


class Arrays:
  """The arrays of a file's value."""

  def __init__(self, root: Any, stored: Callable[[Storage], memoryview], swapped: bool, size: int) -> None:
    """Takes the value, the bytes of a storage, whether their order is the reverse of ours, and the file's size."""
    self.root, self.stored, self.swapped = root, stored, swapped
    self.steps = self.bytes = size + 1000  # visited values, and decoded bytes: no more than a true file has
    self.storages: dict[Storage, np.ndarray] = {}
    self.arrays: dict[int, np.ndarray | Unread] = {}

  def named(self) -> dict[str, np.ndarray | Unread]:
    """Returns the arrays by name, in the file's order."""
    found: dict[str, np.ndarray | Unread] = {}
    waiting, characters = [("", self.root, "/")], 0
    while waiting:
      name, value, link = waiting.pop()
      characters += len(name)
      if len(name) > NAME or characters > NAMES:
        raise Damaged("it nests its values too deeply")
      array = self.array(value)
      if array is not None:
        found[name or "tensor"] = array
        continue
      inside, further = self.children(value)
      waiting += [(f"{name}{link}{key}" if name else key, inside[key], further) for key in reversed(inside)]
    return found

  def children(self, value: Any) -> tuple[dict[str, Any], str]:
    """Returns the values inside of one that may hold arrays, by key, and what joins the names inside of these."""
    if isinstance(value, Record) and value.made not in (*RECONSTRUCT, *SCALAR):
      state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
      if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
        return self.module(state), "."
      value = {**value.items, **state} if isinstance(state, dict) else value.items
    if isinstance(value, list | tuple) and not isinstance(value, Global | Storage | Unread):
      value = {str(number): child for number, child in enumerate(value)} if self.holds(value) else {}
    if not isinstance(value, dict):
      return {}, "/"
    self.step(len(value))
    return {key: child for key, child in value.items() if isinstance(child, dict | list | tuple | Record)}, "/"

  def module(self, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a module's parameters, the buffers that its state dict has, and its modules."""
    groups = [state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    parameters, buffers, modules = (group if isinstance(group, dict) else {} for group in groups)
    passing = state.get("_non_persistent_buffers_set")
    left_out = passing.args[0] if isinstance(passing, Record) and passing.args else []
    left_out = left_out if isinstance(left_out, list | tuple) else []
    self.step(len(parameters) + len(buffers) * (1 + len(left_out)) + len(modules))
    kept = {key: child for key, child in buffers.items() if key not in left_out}
    return {key: child for key, child in {**parameters, **kept, **modules}.items() if child is not None}

  def holds(self, values: Any) -> bool:
    """Returns whether a sequence holds more than numbers and texts."""
    self.step(len(values))
    return any(isinstance(value, dict | list | tuple | Record) for value in values)

  def step(self, count: int) -> None:
    self.steps -= count
    if self.steps < 0:
      raise Damaged("it repeats its values endlessly")

  def array(self, value: Any) -> np.ndarray | Unread | None:
    """Returns the array of a value, why it cannot be read, or None if it is none."""
    if not isinstance(value, Record):
      return None
    if id(value) not in self.arrays:
      self.step(1)
      found = self.tensor(value) if value.made.startswith("torch.") else self.numpy(value)
      if found is None:
        return None
      self.arrays[id(value)] = found
    return self.arrays[id(value)]

  def tensor(self, value: Record) -> np.ndarray | Unread | None:
    """Returns the view of a storage that a tensor is."""
    for _ in range(4):  # a parameter of a tensor of a subclass
      if value.made in WRAPPERS and value.args and isinstance(value.args[0], Record):
        value = value.args[0]
      elif value.made == SUBCLASS and len(value.args) > 2 and isinstance(value.args[0], Global):
        value = Record(value.args[0].name, value.args[2] if isinstance(value.args[2], tuple) else ())
    if value.made not in TENSORS:
      return Unread(f"a tensor of {value.made[:80]!r}") if self.reads(value.args) else None
    before = TENSORS[value.made]
    if len(value.args) not in (before, before + 1):
      raise Damaged("it makes a tensor of the wrong number of arguments")
    storage, offset, size, stride, *more = value.args
    if any(more[before - 4 :]):  # the metadata: conjugates and negatives are marked there and not stored
      return Unread("a tensor that is stored as its conjugate or negative")
    if isinstance(storage, Unread):
      return storage
    size, stride = (sizes.args[0] if _is_size(sizes) else sizes for sizes in (size, stride))
    if not isinstance(storage, Storage) or not all(isinstance(sizes, tuple) for sizes in (size, stride)):
      raise Damaged("it makes a tensor of what is no storage")
    if len(size) != len(stride) or not all(map(_whole, (offset, *size, *stride))):
      raise Damaged("it makes a tensor of what are no sizes")
    dtype = storage.dtype
    if before == 7:
      dtype = more[2].name.removeprefix("torch.") if isinstance(more[2], Global) else "?"
      if dtype not in DTYPES:
        return Unread(f"a tensor of dtype {dtype[:40]!r}")
    return self.view(jnp.dtype(dtype), storage, offset, size, stride)

  def view(self, dtype: Any, storage: Storage, offset: int, size: Any, stride: Any) -> np.ndarray:
    """Returns a view of a storage's bytes as entries of a dtype."""
    content = self.content(storage, dtype)
    count = len(content) // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not _is_shape(size):
      raise Damaged(f"it makes a tensor of {len(size)} axes and 2^{math.prod(size).bit_length()} entries")
    if not math.prod(size):
      return np.empty(size, dtype)
    if last >= count:
      raise Damaged(f"a tensor of {size} reads beyond the end of storage {storage.key!r}")
    strides = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    return np.ndarray(size, dtype, content, offset * dtype.itemsize, strides)

  def content(self, storage: Storage, dtype: Any) -> np.ndarray:
    """Returns the bytes of a storage as this machine has them for entries of a dtype."""
    wanted = storage._replace(dtype=str(dtype))
    if wanted not in self.storages:
      content, size = self.stored(storage), jnp.dtype(storage.dtype).itemsize
      start, end = storage.start * size, (storage.start + storage.count) * size
      if end > len(content):
        raise Damaged(f"storage {storage.key!r} has {len(content)} bytes; its tensors read {end}")
      plain = np.frombuffer(content[start:end], np.uint8)
      unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
      if self.swapped and unit > 1:
        plain = plain[: len(plain) // unit * unit].view(f"u{unit}").byteswap().view(np.uint8)
      plain = (plain != 0).view(np.uint8) if dtype.kind == "b" else plain
      plain.flags.writeable = False  # several tensors may read it
      self.storages[wanted] = plain
    return self.storages[wanted]

  def reads(self, args: Any, depth: int = 3) -> bool:
    """Returns whether a call reads a storage or a tensor."""
    if isinstance(args, Storage | Unread):
      return True
    if isinstance(args, Record):
      return args.made in TENSORS or (depth > 0 and self.reads(args.args, depth - 1))
    if not isinstance(args, list | tuple) or not depth:
      return False
    self.step(len(args))
    return any(self.reads(value, depth - 1) for value in args)

  def numpy(self, value: Record) -> np.ndarray | Unread | None:
    """Returns an array or a number of numpy."""
    state, order = value.state, "C"
    if value.made in RECONSTRUCT and isinstance(state, tuple) and len(state) == 5:
      _, shape, dtype, fortran, data = state
      order = "F" if fortran else "C"
    elif value.made in FROM_BUFFER and len(value.args) == 4:
      data, dtype, shape, order = value.args
    elif value.made in SCALAR and len(value.args) == 2:
      (dtype, data), shape = value.args, ()
    else:
      return Unread(f"what {value.made[:80]!r} makes of a tensor") if self.reads(value.args) else None
    name = _numpy_dtype(dtype)
    if name is None or not isinstance(shape, tuple) or not all(map(_whole, shape)) or order not in ("C", "F"):
      return None  # of texts or objects
    if isinstance(data, Record) and data.made == "_codecs.encode" and data.args and isinstance(data.args[0], str):
      self.bytes -= len(data.args[0])
      if self.bytes < 0:
        raise Damaged("it repeats its values endlessly")
      data = data.args[0].encode("latin-1", "replace")
    if not isinstance(data, bytes) or not _is_shape(shape) or math.prod(shape) * np.dtype(name).itemsize != len(data):
      raise Damaged("an array of numpy has another number of bytes than its shape says")
    return np.frombuffer(data, name).reshape(shape, order=order)


def _is_shape(sizes: tuple[int, ...]) -> bool:
  """Returns whether numpy makes arrays of these sizes; views of one entry may be larger than a file."""
  return len(sizes) <= AXES and math.prod(max(n, 1) for n in sizes) <= ENTRIES


def _is_size(value: Any) -> bool:
  return isinstance(value, Record) and value.made == "torch.Size" and len(value.args) == 1


def _numpy_dtype(value: Any) -> str | None:
  """Returns numpy's text of a pickled dtype of plain numbers, such as "<f4"; None for other types."""
  if not (isinstance(value, Record) and value.made == "numpy.dtype" and value.args and isinstance(value.args[0], str)):
    return None
  order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
  known = {"b1", "f2", "f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))}
  return f"{order}{value.args[0]}" if value.args[0] in known and order in ("<", ">", "|", "=") else None
