"""Trees of variables as JSON: a leaf is the index of its array.

A dict is an object; one with whole numbers among its keys is ["dict", [key, child], ...], a list ["list", child, ...],
a tuple ["tuple", child, ...], the label of a quantizer's grid ["grid", codes], and None null. Other containers that jax
knows are written, and come back, as dicts of their fields.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from leanax.core.errors import UserError
from leanax.core.trees import path_name
from leanax.deploy.packed.model import Damaged
from quant.quantizer import Label

_DEEPEST = 100


def write(tree: Any, index: Callable[[str, Any], int], path: tuple[str, ...] = ()) -> Any:
  """Returns a tree as JSON.

  Args:
    tree: of any containers; what jax takes for none is a leaf.
    index: from a leaf's path and the leaf to its array's index.
    path: of the tree, within the whole.

  Raises:
    UserError: keys that are neither texts nor whole numbers, or a tree too deep.
  """
  if len(path) > _DEEPEST:
    raise UserError(f"the variables are more than {_DEEPEST} levels deep at {'/'.join(path[:3])!r}; expected fewer")

  def inside(key: Any, child: Any) -> Any:
    return write(child, index, (*path, str(key)))

  if isinstance(tree, Mapping):
    for key in tree:
      if type(key) not in (str, int):
        raise UserError(f"the variables have the key {key!r} in {'/'.join(path)!r}; expected a text or a whole number")
    keys = sorted(tree, key=lambda key: (isinstance(key, str), key))
    if all(isinstance(key, str) for key in keys):
      return {key: inside(key, tree[key]) for key in keys}
    return ["dict", *([key, inside(key, tree[key])] for key in keys)]
  if type(tree) in (list, tuple):
    return [type(tree).__name__, *(inside(place, child) for place, child in enumerate(tree))]
  if isinstance(tree, Label):
    return ["grid", tree.codes]
  if tree is None:
    return None
  if jax.tree_util.all_leaves([tree]):
    return index("/".join(path), tree)
  fields, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda inner: inner is not tree)
  return write({path_name(key): child for key, child in fields}, index, path)


def read(found: Any, leaf: Callable[[int], Any], depth: int = 0) -> Any:
  """Returns the tree of its JSON; `leaf` gives the array of an index.

  Raises:
    Damaged: it is no tree.
  """
  if depth > _DEEPEST:
    raise Damaged("its tree is too deep")

  def inside(child: Any) -> Any:
    return read(child, leaf, depth + 1)

  if isinstance(found, dict):
    return {key: inside(child) for key, child in found.items()}
  if found is None or type(found) is int:
    return None if found is None else leaf(found)
  match found:
    case ["list", *children]:
      return [inside(child) for child in children]
    case ["tuple", *children]:
      return tuple(inside(child) for child in children)
    case ["grid", str(codes)]:
      return Label(codes)
    case ["dict", *pairs]:
      return _dict(pairs, inside)
  raise Damaged("its tree is none of arrays")


def _dict(pairs: list[Any], inside: Callable[[Any], Any]) -> dict[Any, Any]:
  if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs):
    raise Damaged("its tree is none of arrays")
  found = {key: inside(child) for key, child in pairs}
  if len(found) != len(pairs):
    raise Damaged("its tree has a key twice")
  return found
