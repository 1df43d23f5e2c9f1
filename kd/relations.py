"""Losses between examples: every device compares its own rows with the rows of all devices.

Such a loss is a mean over pairs of examples. It is returned as one number per row, scaled so that the mean over the
valid rows is the loss: splitting the batch over devices, or padding it, changes nothing. A row that is not finite makes
all rows NaN, since all are compared with it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context
from kd.reads import require_count
from leanax.core import axis


class Rows(NamedTuple):
  """Embeddings of a batch.

  Attributes:
    local: (b, features), this device's rows.
    all: (B, features), the rows of all devices.
    valid: (B,) bools, the valid ones of `all`.
    count: the number of valid rows, at least 1, in the embeddings' dtype.
    index: (b,) int32, the indices of `local` in `all`.
  """

  local: Array
  all: Array
  valid: Array
  count: Array
  index: Array

  @property
  def counts(self) -> Array:
    """(b,) bools: the valid rows of this device."""
    return self.valid[self.index]


def rows(x: Array, context: Context, least: int = 2) -> Rows:
  """Flattens activations (batch, ...) to rows, with 0 in invalid ones, so that padding is finite.

  Raises:
    UserError: the batch of all devices has fewer than `least` examples, for which the loss would be constant.
  """
  require_count(context.loss, "examples of a batch", x.shape[0] * axis.size(context.axis_name), least)
  flat = x.reshape(x.shape[0], -1)
  valid = context.batch.get("valid")
  valid = jnp.ones(x.shape[0], bool) if valid is None else valid
  flat = jnp.where(valid[:, None], flat, 0.0)
  valid = axis.gather(valid, context.axis_name)
  count = jnp.maximum(jnp.sum(valid.astype(flat.dtype)), 1.0)
  return Rows(flat, axis.gather(flat, context.axis_name), valid, count, axis.rows(x.shape[0], context.axis_name))


def others(rows: Rows) -> Array:
  """Returns the pairs of two different valid examples, (b, B) bools."""
  apart = rows.index[:, None] != jnp.arange(rows.all.shape[0], dtype=jnp.int32)
  return apart & rows.valid & rows.counts[:, None]
