"""Reductions over a device axis; with `axis_name=None` each is the identity of one device.

Whatever crosses examples (batch norm, observers, gradients, relational losses) goes through here, so that a batch split
over devices means the same as the whole batch on one.
"""

from typing import Any

import jax
import jax.numpy as jnp


def psum(tree: Any, axis_name: str | None) -> Any:
  """Returns the sum over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def pmean(tree: Any, axis_name: str | None) -> Any:
  """Returns the mean over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def pmax(tree: Any, axis_name: str | None) -> Any:
  """Returns the largest over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmax(tree, axis_name)


def pmin(tree: Any, axis_name: str | None) -> Any:
  """Returns the smallest over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmin(tree, axis_name)


def size(axis_name: str | None) -> int:
  """Returns the number of devices of the axis (1 without one)."""
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
  """Returns the rows of all devices, in the order of the whole batch; a gradient goes back to the row's device."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)


def share(tree: Any, axis_name: str | None) -> Any:
  """Returns the rows of all devices as `gather` does, for states: replication checking knows that they are equal."""

  def spread(x: jax.Array) -> jax.Array:
    whole = jnp.zeros((x.shape[0] * size(axis_name), *x.shape[1:]), x.dtype)
    return whole.at[rows(x.shape[0], axis_name)].set(x)

  def sum_of(x: jax.Array) -> jax.Array:
    return psum(spread(x.astype(jnp.int32)), axis_name).astype(bool) if x.dtype == bool else psum(spread(x), axis_name)

  return tree if axis_name is None else jax.tree.map(sum_of, tree)


def rows(count: int, axis_name: str | None) -> jax.Array:
  """Returns the positions of this device's `count` rows among those of all devices, int32."""
  here = jnp.arange(count, dtype=jnp.int32)
  return here if axis_name is None else here + count * jax.lax.axis_index(axis_name)
