"""Pretrained weights from files of other programs.

A key map translates the file's names to the model's by regular expressions, applied in order. Unused arrays, leaves
without an array and differing shapes are errors that name them, so that no weight is silently not loaded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import rules
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.models.interface import Variables


class Rename(NamedTuple):
  r"""One line of a key map.

  pattern: a regular expression, searched for in the name (`^` and `$` anchor it).
  replacement: the replacement of the match (`\\1` for a group); None drops the array.
  transpose: the new order of the array's axes, for arrays whose name the pattern matches.
  """

  pattern: str
  replacement: str | None
  transpose: tuple[int, ...] | None = None


# From PyTorch's axes: (out, in) and (out, in, h, w) become (in, out) and (h, w, in, out).
LINEAR = (1, 0)
CONV = (2, 3, 1, 0)


def load(
  path: str | Path,
  target: Variables,
  key_map: Sequence[Any] = (),
  *,
  keep: Sequence[str] = (),
  ignore: Sequence[str] = (),
) -> Variables:
  """Returns `target` with its leaves replaced by the arrays of a file.

  Args:
    path: a .safetensors or .msgpack (flax.serialization) file, or a directory that Orbax wrote.
    target: the model's variables (arrays). Leaves are named like `Dense_0/kernel`, without the leading "params/", and
      `batch_stats/BatchNorm_0/mean`.
    key_map: `Rename`s (or tuples of their fields), all applied in order to each of the file's names. Nested names are
      joined by "/", and a leading "params/" is removed at the end.
    keep: globs of leaves that keep their values in `target`, such as a new head.
    ignore: globs of the file's arrays to skip, by their names after the key map.

  Returns:
    The variables, each leaf with its target's dtype.

  Raises:
    UserError: the file cannot be read, a rule matches nothing, two arrays get the same name, a leaf has no array or an
      array no leaf, or a shape or the kind of dtype differs.
  """
  path = Path(path)
  arrays = _rename(read(path), [_rule(rule) for rule in key_map], path)
  flat = {name.removeprefix("params/"): leaf for name, leaf in named_leaves(target).items()}
  kept = rules.match([(glob, True) for glob in keep], flat, "keep rule")
  ignored = rules.match([(glob, True) for glob in ignore], arrays, "ignore rule")
  missing = [name for name in flat if name not in arrays and name not in kept]
  unused = [name for name in sorted(arrays) if (name not in flat or name in kept) and name not in ignored]
  if missing or unused:
    lacks = f"{path} has no array for {_listed(missing)} of the model" if missing else ""
    holds = f"{path} holds {_listed(unused)}, which the model does not use" if unused else ""
    raise UserError("; ".join(sentence for sentence in (lacks, holds) if sentence))
  values = [leaf if name in kept else _fit(path, name, arrays[name], leaf) for name, leaf in flat.items()]
  return jax.tree.unflatten(jax.tree.structure(target), values)


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads all arrays of a file by name, nested names joined by "/".

  Raises:
    UserError: there is no such file, its format is not supported, or it is damaged.
  """
  path = Path(path)
  if not path.exists():
    raise UserError(f"there are no weights at {path}")
  reader = _read_orbax if path.is_dir() else READERS.get(path.suffix)
  if reader is None:
    raise UserError(f"{path}: expected weights as {', '.join(READERS)} or a directory that Orbax wrote")
  found = reader(path)
  if not found:
    raise UserError(f"{path} holds no arrays")
  return dict(sorted(found.items()))


def _rule(rule: Any) -> Rename:
  """Checks a rule of a config and returns it."""
  try:
    pattern, replacement, transpose = (*rule, None)[:3]
    re.compile(pattern)
    if len(rule) > 3 or not (replacement is None or isinstance(replacement, str)):
      raise TypeError
    return Rename(pattern, replacement, None if transpose is None else tuple(int(axis) for axis in transpose))
  except (re.error, TypeError, ValueError) as error:
    raise UserError(
      f"key map rule {rule!r}: expected (regular expression, replacement or None[, axes such as (1, 0)])"
    ) from error


def _rename(arrays: Mapping[str, np.ndarray], key_map: Sequence[Rename], path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays with the model's names and order of axes."""
  used, found, source = set(), {}, {}
  for old, array in arrays.items():
    name: str | None = old
    for index, rule in enumerate(key_map):
      if name is None or not re.search(rule.pattern, name):
        continue
      used.add(index)
      if rule.transpose is not None:
        if sorted(rule.transpose) != list(range(array.ndim)):
          raise UserError(f"key map rule {rule.pattern!r}: axes {rule.transpose} do not fit {old!r} of {array.shape}")
        array = array.transpose(rule.transpose)
      name = None if rule.replacement is None else _replaced(rule.pattern, rule.replacement, name)
    if name is None:
      continue
    name = name.removeprefix("params/")
    if name in found:
      raise UserError(f"key map: {source[name]!r} and {old!r} of {path} both become {name!r}")
    found[name], source[name] = array, old
  if idle := [rule.pattern for index, rule in enumerate(key_map) if index not in used]:
    raise UserError(f"key map rule {idle[0]!r} matches nothing in {path}; names there: {_listed(list(arrays))}")
  return found


def _replaced(pattern: str, replacement: str, name: str) -> str:
  try:
    return re.sub(pattern, replacement, name)
  except (re.error, IndexError) as error:
    raise UserError(f"key map rule {pattern!r}: {replacement!r} does not fit it ({error})") from error


def _fit(path: Path, name: str, array: np.ndarray, leaf: Any) -> jax.Array:
  """Casts an array to the leaf's dtype; refuses another shape or kind of dtype."""
  if array.shape != leaf.shape:
    raise UserError(f"{path}: {name!r} has shape {array.shape}; the model's has {tuple(leaf.shape)}")
  both_float = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (array.dtype, leaf.dtype))
  if not both_float and array.dtype != leaf.dtype:
    raise UserError(f"{path}: {name!r} has dtype {array.dtype}; the model's has {leaf.dtype}")
  return jax.device_put(array.astype(leaf.dtype))


def _listed(names: Sequence[str], most: int = 5) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + more


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  from leanax.engine.store.model_file import read_safetensors

  return read_safetensors(path)[0]


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
  from flax import serialization

  try:
    tree = serialization.msgpack_restore(path.read_bytes())
  except Exception as error:  # a damaged file may raise anything
    raise UserError(f"{path} is damaged or no msgpack file of flax") from error
  return _arrays(tree)


def _read_orbax(path: Path) -> dict[str, np.ndarray]:
  """Reads a directory with one tree, or a step with several items, one of them a tree of arrays."""
  import orbax.checkpoint as ocp

  trees = [p for p in (path, *sorted(path.iterdir())) if (p / "_METADATA").exists()]
  if len(trees) != 1:
    raise UserError(f"{path}: expected a directory with one tree that Orbax wrote, found {len(trees)}")
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      metadata = checkpointer.metadata(trees[0]).item_metadata
      as_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
      tree = checkpointer.restore(trees[0], restore_args=as_host)
  except Exception as error:  # a damaged file may raise anything
    raise UserError(f"{path} cannot be read by Orbax; is it damaged?") from error
  return _arrays(tree)


def _arrays(tree: Any) -> dict[str, np.ndarray]:
  return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items() if hasattr(leaf, "dtype")}


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
  ".safetensors": _read_safetensors,
  ".msgpack": _read_msgpack,
}
