"""Optimizer slots, found by their path in the state and never by the state's class.

A slot of the parameter `a/kernel` is an array of its shape at a path that ends in `a/kernel`. So momenta of every
optimizer are found, inside chain, masked, multi_transform, inject_hyperparams and MultiSteps too. Slots of another
shape (the row and column statistics of adafactor, memories with an axis of their own) are left as they are.
"""

from collections.abc import Callable
from typing import Any

import jax


def map_slots(fn: Callable[[int, jax.Array], jax.Array], params: Any, state: Any) -> Any:
  """Returns `state` with each slot replaced by `fn(index, slot)`.

  Args:
    fn: gets the index of the slot's parameter in `jax.tree.leaves(params)`.
    params: the parameters that `state` was made for.
    state: any optimizer's state.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  index = {path: i for i, (path, _) in enumerate(leaves)}
  shapes = [leaf.shape for _, leaf in leaves]

  def visit(path: tuple[Any, ...], leaf: Any) -> Any:
    for start in range(len(path) + 1):  # the longest ending first: b/a/kernel is not a slot of a/kernel
      i = index.get(path[start:])
      if i is not None:
        return fn(i, leaf) if getattr(leaf, "shape", None) == shapes[i] else leaf
    return leaf

  return jax.tree_util.tree_map_with_path(visit, state)
