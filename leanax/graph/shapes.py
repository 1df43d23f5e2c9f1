"""Trees of variables: which leaf is where, of what shape, as data; and the same tree with other leaves."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from leanax.core.errors import UserError
from leanax.graph.program import leaf_name

Path = Sequence[Any]  # a dict's key, {"index": i} for a place in a list, {"index": i, "of": "tuple"} for one in a tuple
Shapes = list[list[Any]]
_EMPTY: dict[str, Any] = {"dict": {}, "list": [], "tuple": (), "None": None}
GONE = object()  # in place of a leaf that is removed


def shapes(variables: Any) -> Shapes:
  """Returns the shapes of nested dicts, lists and tuples of arrays as data, which JSON can hold.

  Returns:
    `[[path, shape, dtype], ...]`; a container without leaves is `[path, None, kind]`.

  Raises:
    UserError: there is another container among them; `graph.edit` also takes the variables themselves.
  """
  found: Shapes = []

  def walk(tree: Any, path: list[Any], keys: tuple[Any, ...]) -> None:
    inner, kind = _inside(tree), "dict" if isinstance(tree, Mapping) else type(tree).__name__
    if inner is None:
      aval = jax.typeof(tree)
      found.append([path, list(aval.shape), str(aval.dtype)])
    elif tree is None or (not inner and kind in _EMPTY):
      found.append([path, None, "None" if tree is None else kind])
    elif kind not in _EMPTY:
      raise UserError(
        "variables have to be nested dicts, lists and tuples of arrays to be written down, but "
        f"{leaf_name((*keys, *inner[0][0]) if inner else keys)!r} is in a {kind}"
      )
    for (key,), child in inner or ():
      step = {"index": key.idx, "of": "tuple"} if kind == "tuple" else {"index": key.idx} if kind == "list" else key.key
      walk(child, [*path, step], (*keys, key))

  walk(variables, [], ())
  return found


def structs(original: Any) -> Any:
  """Returns a tree of `jax.ShapeDtypeStruct` from what `shapes` returned, or from a tree of arrays."""
  if not _is_data(original):
    return jax.tree.map(struct, original)
  return build(
    (path, _EMPTY[dtype] if shape is None else jax.ShapeDtypeStruct(tuple(shape), dtype))
    for path, shape, dtype in original
  )


def _is_data(original: Any) -> bool:
  rows = original if isinstance(original, list | tuple) else [None]
  return all(isinstance(row, list | tuple) and len(row) == 3 and isinstance(row[2], str) for row in rows)


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape and type of a leaf, weak types too."""
  aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def leaves_by_name(variables: Any) -> dict[str, Any]:
  """Returns the leaves of variables by the names that the graph gives them.

  Raises:
    UserError: two leaves have one name.
  """
  found: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    if leaf_name(path) in found:
      raise UserError(f"two leaves of the variables are named {leaf_name(path)!r}; expected names that differ")
    found[leaf_name(path)] = leaf
  return found


def build(items: Iterable[tuple[Path, Any]]) -> Any:
  """Returns the tree of leaves at these paths; what is missing from a list is None."""
  root: dict[Any, Any] = {}
  for path, leaf in items:
    tree = root
    for key in ((), *map(_frozen, path))[:-1]:
      tree = tree.setdefault(key, {})
    tree[_frozen(path[-1]) if path else ()] = leaf
  return _lists(root)[()]


class _Place(NamedTuple):
  index: int
  kind: type


def _frozen(key: Any) -> Any:
  if isinstance(key, dict):
    return _Place(key["index"], tuple if key.get("of") == "tuple" else list)
  return tuple(key) if isinstance(key, list) else key


def _lists(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  places = {key.index: value for key, value in tree.items() if isinstance(key, _Place)}
  if places:
    return next(iter(tree)).kind(_lists(places.get(i)) for i in range(max(places) + 1))
  return {key: _lists(value) for key, value in tree.items()}


def _inside(tree: Any) -> list[tuple[tuple[Any, ...], Any]] | None:
  """Returns [((key,), child)] of a container; None for a leaf."""
  if jax.tree_util.all_leaves([tree]):
    return None
  return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda inner: inner is not tree)[0]


def beside(tree: Any, path: tuple[Any, ...], text: str) -> tuple[Any, ...] | None:
  """Returns the path of a new leaf beside another, with `text` (of its own last part, "{}") for its last part.

  In a flat dict the last part of a key "a/kernel", or ("a", "kernel"), is "kernel". None where nothing can be added:
  dicts take any leaf, modules one of a field that is None.
  """
  last = path[-1] if path else None
  if isinstance(last, jax.tree_util.GetAttrKey):
    new: Any = jax.tree_util.GetAttrKey(text.format(last.name))
    free = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda one: one is None)
    return next((at for at, leaf in free if leaf is None and at == (*path[:-1], new)), None)
  key = getattr(last, "key", None)
  if isinstance(key, tuple) and key and isinstance(key[-1], str):
    new = (*key[:-1], text.format(key[-1]))
  elif isinstance(key, str):
    before, slash, end = key.rpartition("/")
    new = before + slash + text.format(end)
  else:
    return None
  return (*path[:-1], jax.tree_util.DictKey(new))


def changed(tree: Any, leaves: Mapping[tuple[Any, ...], Any]) -> Any:
  """Returns the tree with other leaves, by path; each container stays what it is.

  A leaf that is GONE is removed from dicts, and None elsewhere; so are containers that lost all that was in them. New
  paths add to dicts, or fill what is None.
  """
  result = _changed(tree, (), leaves)
  return {} if result is GONE else result


def _changed(tree: Any, path: tuple[Any, ...], leaves: Mapping[tuple[Any, ...], Any]) -> Any:
  inner = _inside(tree)
  if not inner:
    return leaves.get(path, tree)
  new = [(key, _changed(child, (*path, *key), leaves)) for key, child in inner]
  known = {(*path, *key) for key, _ in inner}
  more = {at[-1].key: leaf for at, leaf in leaves.items() if at[:-1] == path and at not in known}
  gone = [child is GONE for _, child in new]
  if new and not more and all(gone):
    return GONE
  if not isinstance(tree, Mapping) or not (more or any(gone)):
    whole = jax.tree.structure(tree, is_leaf=lambda one: one is not tree)
    return whole.unflatten([None if child is GONE else child for _, child in new])
  kept = {key.key: child for (key,), child in new if child is not GONE}
  items = {key: kept[key] for key in tree if key in kept} | more
  if not isinstance(tree, dict):
    kind: Any = type(tree)
    return kind(items)
  result = copy.copy(tree)
  result.clear()
  result.update(items)
  return result
