"""Descriptions of the arrays in saved files: name, shape, dtype and a checksum of the bytes.

The checksum covers a leaf's whole array on the host, so it does not depend on the sharding; CRC-32 detects every single
flipped bit and misses random damage with probability 2^-32.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax.core.errors import UserError, nearest
from leanax.core.trees import named_leaves

# The dtypes that every storage format here supports. The others (int4, float8, ...) have one byte per entry in memory
# and are stored as bytes.
STORABLE = frozenset(
  ["bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
  + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


_DEEPEST = 100  # levels of a tree


class Leaf(NamedTuple):
  """One array of a saved tree.

  shape, dtype: jax's; the dtype of typed random keys is like "key<fry>".
  crc32: of the stored bytes.
  key: the implementation of typed random keys ("threefry2x32"), else None.
  """

  shape: tuple[int, ...]
  dtype: str
  crc32: int
  key: str | None = None

  @classmethod
  def from_json(cls, data: Any) -> "Leaf":
    """Returns the Leaf of its JSON list; ValueError or TypeError where it is none."""
    shape, dtype, crc32, key = data
    whole = all(type(n) is int and n >= 0 for n in (*shape, crc32))
    if not (whole and isinstance(dtype, str) and isinstance(key, str | None)):
      raise ValueError(f"{data!r} describes no array")
    return cls(tuple(shape), dtype, crc32, key)


def is_key(leaf: Any) -> bool:
  """Returns whether `leaf` (an array or a ShapeDtypeStruct) holds typed random keys."""
  return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def shape_dtype(leaf: Any) -> tuple[tuple[int, ...], str]:
  """Returns the shape and the dtype's name of an array, a ShapeDtypeStruct or a Python number."""
  if not hasattr(leaf, "dtype"):
    leaf = np.asarray(leaf)
  return tuple(leaf.shape), str(leaf.dtype)


def stored(leaf: Any) -> Any:
  """Returns the stored form of a leaf: the data of keys, bytes of unsupported dtypes, arrays of Python numbers."""
  if is_key(leaf):
    return jax.random.key_data(leaf)
  if not hasattr(leaf, "dtype"):
    return np.asarray(leaf)
  return leaf if str(leaf.dtype) in STORABLE else to_host(leaf).view(np.uint8)


def recovered(array: np.ndarray, leaf: Leaf) -> Any:
  """Inverts `stored` for a host array; typed keys become a jax array."""
  if leaf.key is not None:
    return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=leaf.key)
  return array if leaf.dtype in STORABLE else array.view(jax.numpy.dtype(leaf.dtype))


def stored_form(leaf: Leaf) -> tuple[tuple[int, ...], str]:
  """Returns the shape and the dtype's name of the stored form of a leaf; nothing is allocated, whatever it claims."""
  if leaf.key is not None:
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=leaf.key)))
    return leaf.shape + data.shape, str(data.dtype)
  return leaf.shape, leaf.dtype if leaf.dtype in STORABLE else "uint8"


def empty(leaf: Leaf) -> np.ndarray:
  """Returns an empty host array for the stored form of a leaf."""
  shape, dtype = stored_form(leaf)
  return np.empty(shape, jax.numpy.dtype(dtype))


def to_host(array: Any) -> np.ndarray:
  """Returns the whole array in host memory; if it is sharded over processes, all of them must call this."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    if array.is_fully_replicated:
      return np.asarray(array.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def checksum(array: Any) -> int:
  """Returns the CRC-32 of the bytes of the whole array, in C order."""
  return zlib.crc32(np.ascontiguousarray(to_host(array)).reshape(-1).view(np.uint8).data)


def describe(tree: Any) -> dict[str, Leaf]:
  """Returns the leaves of a tree by name, each with its shape, dtype and checksum."""
  names = named_leaves(tree)
  # a storage format may use "." as a separator as well
  if len({name.replace(".", "/") for name in names}) != len(jax.tree.leaves(tree)):
    raise ValueError("two leaves of the tree have the same name when '.' and '/' count as equal")
  return {
    name: Leaf(*shape_dtype(leaf), checksum(stored(leaf)), str(jax.random.key_impl(leaf)) if is_key(leaf) else None)
    for name, leaf in names.items()
  }


def compare(saved: Mapping[str, Leaf], target: Mapping[str, Any], where: str) -> None:
  """Refuses a saved tree that differs from the target in names, shapes or dtypes.

  Args:
    saved: the leaves of the file.
    target: arrays or ShapeDtypeStructs by name.
    where: the file's name in error messages.

  Raises:
    UserError: names the first leaf that differs, and the difference.
  """
  if missing := [name for name in target if name not in saved]:
    near = nearest(missing[0], [name for name in saved if name not in target])
    hint = f"; it has {near[0]!r}" if near else ""
    raise UserError(f"{where} has no leaf {missing[0]!r}{_more(missing)}, which this run needs{hint}")
  if extra := [name for name in saved if name not in target]:
    raise UserError(f"{where} has the leaf {extra[0]!r}{_more(extra)}, which this run does not have")
  for part, what in enumerate(("shape", "dtype")):
    for name, leaf in target.items():
      here, there = shape_dtype(leaf)[part], saved[name][part]
      if here != there:
        raise UserError(f"{where}: leaf {name!r} has {what} {there} there and {here} in this run")


def damaged(saved: Mapping[str, Leaf], arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the names of the leaves whose arrays differ from the saved ones in shape, dtype or checksum."""
  return [
    name
    for name, leaf in saved.items()
    if shape_dtype(arrays[name]) != stored_form(leaf) or checksum(arrays[name]) != leaf.crc32
  ]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts from names joined by "/".

  Raises:
    ValueError: a name is that of a dict too, or has more than 100 parts.
  """
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/", _DEEPEST)
    place: Any = tree
    for part in parents:
      place = place.setdefault(part, {})
      if not isinstance(place, dict):
        break
    if not isinstance(place, dict) or last in place or "/" in last:
      raise ValueError(f"{name!r} does not fit into one tree with the other names")
    place[last] = leaf
  return tree


def _more(names: Iterable[str]) -> str:
  count = len(list(names)) - 1
  return f" (and {count} more)" if count else ""
