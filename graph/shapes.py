"""Trees of variables as data: which leaf is where, of what shape."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from core.errors import UserError
from graph.program import leaf_name

Path = Sequence[Any]  # a dict's key, or {"index": i} for a place in a list
Shapes = list[list[Any]]


def shapes(variables: Any) -> Shapes:
  """The shapes of nested dicts and lists of arrays as data: `[[path, shape, dtype], ...]`, which JSON can hold.

  Raises:
    UserError: there is another container among them.
  """
  return [[_path(path), list(leaf.shape), str(leaf.dtype)] for path, leaf in _leaves(variables)]


def _leaves(variables: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(variables)


def _path(path: tuple[Any, ...]) -> list[Any]:
  found: list[Any] = []
  for key in path:
    if isinstance(key, jax.tree_util.DictKey):
      found.append(key.key)
    elif isinstance(key, jax.tree_util.SequenceKey):
      found.append({"index": key.idx})
    else:
      raise UserError(f"variables have to be nested dicts and lists of arrays, but {leaf_name(path)!r} is in neither")
  return found


def name_of(path: Path) -> str:
  """The name that the graph gives to the leaf at a path."""
  return "/".join(str(k["index"] if isinstance(k, dict) else k) for k in path).removeprefix("params/")


def leaves_by_name(variables: Any) -> dict[str, Any]:
  """The leaves of variables by the names that the graph gives them."""
  return {leaf_name(path): leaf for path, leaf in _leaves(variables)}


def build(items: Iterable[tuple[Path, Any]]) -> Any:
  """The tree of leaves at these paths; what is missing from a list is None."""
  root: dict[Any, Any] = {}
  for path, leaf in items:
    tree = root
    for key in path[:-1]:
      tree = tree.setdefault(_frozen(key), {})
    tree[_frozen(path[-1])] = leaf
  return _lists(root)


def _frozen(key: Any) -> Any:
  return ("index", key["index"]) if isinstance(key, dict) else key


def _lists(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  places = {key[1]: value for key, value in tree.items() if isinstance(key, tuple)}
  if places:
    return [_lists(places.get(i)) for i in range(max(places) + 1)]
  return {key: _lists(value) for key, value in tree.items()}
