"""Reductions over a device axis; with `axis_name=None` each is the identity of one device.

Whatever crosses examples (batch norm, observers, gradients, relational losses) goes through here, so that a batch split
over devices means the same as the whole batch on one.
"""

from typing import Any

import jax


def psum(tree: Any, axis_name: str | None) -> Any:
  """Sum over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def pmean(tree: Any, axis_name: str | None) -> Any:
  """Mean over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def pmax(tree: Any, axis_name: str | None) -> Any:
  """Largest over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmax(tree, axis_name)


def pmin(tree: Any, axis_name: str | None) -> Any:
  """Smallest over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmin(tree, axis_name)


def size(axis_name: str | None) -> int:
  """How many devices the axis has (1 without one)."""
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)
