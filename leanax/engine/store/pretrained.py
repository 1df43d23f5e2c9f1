"""Pretrained weights from files of other programs.

Arrays are found by their names (`weight_names`): those of the model's leaves, of Flax's usual trees and checkpoints,
and PyTorch's. A key map translates other names by regular expressions, applied in order, before that. Unused arrays,
leaves without an array and differing shapes are errors that name them, so that no weight is silently not loaded.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import rules
from leanax.core.errors import UserError, nearest
from leanax.core.trees import named_leaves
from leanax.engine.models.interface import Variables
from leanax.engine.store import torch_layout, weight_files, weight_names
from leanax.engine.store.torch_arrays import Unread
from leanax.engine.store.weight_files import TORCH, Arrays, refuse
from leanax.engine.store.weight_names import Names, Place


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
  entry: str = "",
  keep: Sequence[str] = (),
  ignore: Sequence[str] = (),
  call: tuple[Callable[..., Any], Any] | None = None,
) -> Variables:
  """Returns `target` with its leaves replaced by the arrays of a file.

  Args:
    path: a file of `weight_files.READERS`, or a directory that Orbax wrote. A stage's model file of leanax must hold
      the model that its code builds, in float.
    target: the model's variables (arrays). Leaves are named like `Dense_0/kernel`, without the leading "params/", and
      `batch_stats/BatchNorm_0/mean`.
    key_map: `Rename`s (or tuples of their fields), all applied in order to each of the file's names. Nested names are
      joined by "/". Names that are not the model's are then looked for as `weight_names` does.
    entry: the part of the file that holds the weights, such as "state_dict" or "ema/params"; "" where one alone does.
    keep: globs of leaves that keep their values in `target`, such as a new head; arrays of their names are not read.
    ignore: globs of the file's arrays to skip, by their names after the key map.
    call: (fn, x) for kernels of PyTorch: the model's function `fn(variables, x)` and an input or its shape, from which
      their order is known (`torch_layout`).

  Returns:
    The variables, each leaf with its target's dtype.

  Raises:
    UserError: the file cannot be read, a rule matches nothing, two arrays get the same name, a leaf has no array or an
      array no leaf, a shape or the kind of dtype differs, or an array holds NaN.
  """
  path = Path(path)
  flat = {name.removeprefix("params/"): leaf for name, leaf in named_leaves(target).items()}
  kept = rules.match([(glob, True) for glob in keep], flat, "keep rule")
  arrays, oriented = _rename(_entry(weight_files.arrays(path), entry, path), [_rule(rule) for rule in key_map], path)
  ignored = rules.match([(glob, True) for glob in ignore], arrays, "ignore rule")
  arrays = {name: array for name, array in arrays.items() if name not in ignored}
  names = Names(flat, set(target) - {"params"} if "params" in target else ())
  found, unused = _matched(arrays, names, set(flat) - set(kept), path)
  missing = [name for name in flat if name not in found and name not in kept]
  values = {leaf: refuse(arrays[name], name, path) for leaf, (name, _) in found.items() if leaf not in kept}
  turned = [leaf for leaf in values if found[leaf][1].torch and found[leaf][0] not in oriented]
  if any(map(torch_layout.is_kernel, turned)):
    values |= _in_flax({leaf: values[leaf] for leaf in turned}, path, target, flat, call)
  faults = _faults(path, missing, unused)
  faults += _misshaped(path, {leaf: (found[leaf][0], array) for leaf, array in values.items()}, flat)
  if faults:
    raise UserError("; ".join(faults))
  loaded = [leaf if name in kept else _fit(path, name, values[name], leaf) for name, leaf in flat.items()]
  return jax.tree.unflatten(jax.tree.structure(target), loaded)


def _in_flax(
  arrays: Mapping[str, np.ndarray], path: Path, target: Variables, flat: Mapping[str, Any], call: Any
) -> dict[str, np.ndarray]:
  """Returns arrays of torch, by leaf, in the order of Flax."""
  if call is None:
    raise UserError(f"{path} holds kernels of PyTorch, whose axes Flax orders otherwise; expected call=(fn, x)")
  known = torch_layout.layout(call[0], target, call[1])
  if unclear := [leaf for leaf in arrays if known.flattened.get(leaf) == ()]:
    raise UserError(
      f"{path}: {unclear[0]!r} of the model reads flattened axes, of which those of channels are not known, and "
      "PyTorch flattens these first; expected a rule of the key map with the order of its axes, such as (1, 0)"
    )
  return {leaf: torch_layout.in_flax(array, leaf, flat[leaf].shape, known) for leaf, array in arrays.items()}


def _entry(arrays: Arrays, entry: str, path: Path) -> Arrays:
  """Returns the arrays of a part of a file, by their names there."""
  entry = entry.strip("/")
  if not entry:
    return arrays
  names = [name for name in arrays if name.startswith(f"{entry}/") or name.startswith(f"{entry}.")]
  if not names:
    parents = {name[: match.start()] for name in arrays for match in re.finditer("/", name)}
    near = nearest(entry, parents) or sorted(parents, key=lambda name: (name.count("/"), name))[:5]
    raise UserError(f"{path} has no entry {entry!r}; it has {_listed(near) if near else 'arrays alone'}")
  return {name[len(entry) + 1 :]: arrays[name] for name in names}


def _matched(
  arrays: Arrays, names: Names, needed: Collection[str], path: Path
) -> tuple[dict[str, tuple[str, Place]], list[str]]:
  """Returns the array of each leaf that has one, by its name in the file, and the arrays that no leaf has."""
  prefix = weight_names.prefix(arrays, names, needed, str(path))
  # A state dict of torch is one entry of a file, and its own names have dots: what is beside it is something else.
  around = ""
  if path.suffix in TORCH:
    whole = any(name.startswith(f"{prefix}/") for name in arrays)
    around = prefix if whole else prefix.rpartition("/")[0]
  found: dict[str, tuple[str, Place]] = {}
  unused = []
  for name in weight_names.below(arrays, around):
    rest = name[len(prefix) + 1 if prefix else 0 :] if name.startswith(prefix) else ""
    place = names.place(rest) if rest else None
    if place is None:
      array = arrays[name]
      dtype = np.float32 if isinstance(array, Unread) else array.dtype
      if not weight_names.is_training(rest or name, dtype):
        unused.append(name)
    elif place.leaf in found:
      raise UserError(f"{path}: {found[place.leaf][0]!r} and {name!r} are both {place.leaf!r} of the model")
    else:
      found[place.leaf] = name, place
  return found, unused


def _faults(path: Path, missing: Sequence[str], unused: Sequence[str]) -> list[str]:
  """Returns what is to be said of leaves without an array and arrays without a leaf."""
  faults = []
  if missing:
    near = nearest(missing[0], unused, most=1, cutoff=0.4)
    hint = f" (the nearest name there is {near[0]!r})" if near else ""
    faults.append(f"{path} has no array for {_listed(missing)} of the model{hint}")
  if unused:
    faults.append(f"{path} holds {_listed(unused)}, which the model does not use")
  return faults


def _misshaped(path: Path, values: Mapping[str, tuple[str, np.ndarray]], flat: Mapping[str, Any]) -> list[str]:
  """Returns what is to be said of arrays whose shapes are not those of their leaves."""
  other = [leaf for leaf, (_, array) in values.items() if array.shape != flat[leaf].shape]
  if not other:
    return []
  name, array = values[other[0]]
  called = f"{other[0]!r} ({name!r} there)" if name != other[0] else repr(name)
  more = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
  head = other[0].rpartition("/")[0]
  return [
    f"{path}: {called} has shape {array.shape}; the model's has {tuple(flat[other[0]].shape)}{more}; expected the "
    f"keywords of the model that was trained; a head that is new, and will be trained, stays fresh by "
    f"keep=('{head}/*',), in a config by the model's key 'new'"
  ]


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


def _rename(arrays: Arrays, key_map: Sequence[Rename], path: Path) -> tuple[Arrays, set[str]]:
  """Returns the arrays by the names that rules give them, and the names of those whose axes a rule has ordered."""
  used, oriented = set(), set()
  found: Arrays = {}
  source: dict[str, str] = {}
  for old, array in arrays.items():
    name: str | None = old
    turned = False
    for index, rule in enumerate(key_map):
      if name is None or not re.search(rule.pattern, name):
        continue
      used.add(index)
      if rule.transpose is not None and not isinstance(array, Unread):
        if sorted(rule.transpose) != list(range(array.ndim)):
          raise UserError(f"key map rule {rule.pattern!r}: axes {rule.transpose} do not fit {old!r} of {array.shape}")
        array, turned = array.transpose(rule.transpose), True
      name = None if rule.replacement is None else _replaced(rule.pattern, rule.replacement, name)
    if name is None:
      continue
    if name in found:
      raise UserError(f"key map: {source[name]!r} and {old!r} of {path} both become {name!r}")
    found[name], source[name] = array, old
    oriented |= {name} if turned else set()
  if idle := [rule.pattern for index, rule in enumerate(key_map) if index not in used]:
    raise UserError(f"key map rule {idle[0]!r} matches nothing in {path}; names there: {_listed(list(arrays))}")
  return found, oriented


def _replaced(pattern: str, replacement: str, name: str) -> str:
  try:
    return re.sub(pattern, replacement, name)
  except (re.error, IndexError) as error:
    raise UserError(f"key map rule {pattern!r}: {replacement!r} does not fit it ({error})") from error


def _fit(path: Path, name: str, array: np.ndarray, leaf: Any) -> jax.Array:
  """Casts an array to the leaf's dtype; refuses another kind of dtype, NaN, and numbers that the dtype lacks."""
  both_float = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (array.dtype, leaf.dtype))
  if not both_float and array.dtype != leaf.dtype:
    raise UserError(f"{path}: {name!r} has dtype {array.dtype}; the model's has {leaf.dtype}")
  with np.errstate(over="ignore"):
    cast = array.astype(leaf.dtype)
  if both_float and np.isnan(array).any():
    raise UserError(f"{path}: {name!r} holds NaN; expected the weights of a training that did not diverge")
  if both_float and (np.isinf(cast) & ~np.isinf(array)).any():
    raise UserError(f"{path}: {name!r} holds numbers that {leaf.dtype} has not, which is the model's dtype")
  return jax.device_put(cast)


def _listed(names: Sequence[str], most: int = 5) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + more
