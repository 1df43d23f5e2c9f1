"""Losses between examples: every device compares its own rows with the rows of all devices.

A relation's loss is a mean over pairs of examples. It is returned as one number for each row, scaled so that the mean
over the rows that count is the loss; so a batch split over devices, or padded, means the same as the whole batch. A row
that is not finite makes all rows that are compared with it, which is every one, NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context
from kd.reads import several
from leanax.core import axis


class Rows(NamedTuple):
  """Embeddings of a batch.

  Attributes:
    mine: (b, features), this device's.
    all: (B, features), those of all devices.
    valid: (B,) bools, which of them count.
    count: how many count, in the embeddings' dtype, at least 1.
    index: (b,) int32, where mine stand among all.
  """

  mine: Array
  all: Array
  valid: Array
  count: Array
  index: Array

  @property
  def counts(self) -> Array:
    """(b,) bools: which of this device's rows count."""
    return self.valid[self.index]


def rows(x: Array, context: Context, least: int = 2) -> Rows:
  """Activations (batch, ...) as rows; what does not count is 0, so that it is finite whatever padding holds.

  Raises:
    UserError: the batch of all devices has fewer than `least` examples, of which the loss would be constant.
  """
  several(context.loss, "examples of a batch", x.shape[0] * axis.size(context.axis_name), least)
  flat = x.reshape(x.shape[0], -1)
  valid = context.batch.get("valid")
  valid = jnp.ones(x.shape[0], bool) if valid is None else valid
  flat = jnp.where(valid[:, None], flat, 0.0)
  everywhere = axis.gather(valid, context.axis_name)
  count = jnp.maximum(jnp.sum(everywhere.astype(flat.dtype)), 1.0)
  return Rows(flat, axis.gather(flat, context.axis_name), everywhere, count, axis.rows(x.shape[0], context.axis_name))


def others(rows: Rows) -> Array:
  """(b, B) bools: the pairs of two different examples that both count."""
  apart = rows.index[:, None] != jnp.arange(rows.all.shape[0], dtype=jnp.int32)
  return apart & rows.valid & rows.counts[:, None]
