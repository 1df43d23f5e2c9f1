"""Names for the leaves of a tree: `encoder/0/kernel`, the same for dicts, lists, tuples and dataclasses."""

from collections.abc import Callable
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a JAX key path as text: keys, indices and attributes joined by `/`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of `tree` by name, in the tree's order."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Returns `jax.tree.map` with a function that also receives the leaf's name: `fn(name, leaf, *others)`."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)
