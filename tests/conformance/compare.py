"""Comparisons of trees of arrays: all finite, all zero, near in the norm of the whole, a gradient and its slopes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_finite(tree: Any) -> None:
  for leaf in jax.device_get(jax.tree.leaves(tree)):
    assert np.isfinite(leaf).all() if leaf.dtype.kind == "f" else jnp.all(jnp.isfinite(leaf))


def assert_zero(tree: Any) -> None:
  for leaf in jax.device_get(jax.tree.leaves(tree)):
    assert np.all(leaf == 0)


def assert_near(got: Any, want: Any, tolerance: float) -> None:
  """Each leaf is the other's but for `tolerance` of the norm of the tree; a leaf's own norm may be small by chance."""
  got, want = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (got, want))
  size = np.sqrt(sum(np.sum(leaf**2) for leaf in want))
  for actual, desired in zip(got, want, strict=True):
    assert np.linalg.norm(actual - desired) <= tolerance * size, (
      np.linalg.norm(actual - desired) / max(size, 1e-300),
      tolerance,
    )


def assert_float32(single: Any, double: Any) -> None:
  """((numbers, state), gradients) in float32 are those in float64, to 1e-5 of their size."""
  assert {leaf.dtype for leaf in jax.tree.leaves((double[0][0], double[1]))} == {jnp.dtype(np.float64)}
  for got, want in zip((*single[0], *single[1]), (*double[0], *double[1]), strict=True):
    assert_near(got, want, 1e-5)


def cast(tree: Any, dtype: Any) -> Any:
  """The tree with its floats, and no other leaves, in another dtype."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def slopes(total: Callable[[Any], Any], gradient: Any, at: Any, h: float = 1e-6) -> list[tuple[float, float]]:
  """(what the gradient says, the central difference) of `total` at a tree, along three random directions."""
  out, (gradient, at) = [], jax.device_get((gradient, at))
  for seed in range(3):
    rng = np.random.default_rng(20 + seed)
    direction = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), at)
    ends = [total(jax.tree.map(lambda a, d, h=h: a + h * d, at, direction)) for h in (h, -h)]
    along = sum(np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    out.append((float(along), float((ends[0] - ends[1]) / (2 * h))))
  return out
