"""Blocks of rows and columns, kept or pruned as one (Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural
Networks", arXiv:1711.02782).

A block's score is the largest of its entries, as in the paper the largest magnitude. Blocks lie in the last two axes,
inputs and outputs of a kernel in flax's Dense and Conv, side by side from the first entry on. Where they do not divide
an axis the last ones are smaller, and count as whole ones.
"""

import math

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.patterns.base import Pattern


def block(rows: int = 4, columns: int = 1) -> Pattern:
  """Ranks the blocks of a layer as one; a density is that of blocks.

  Args:
    rows: entries of a block along the second to last axis, the inputs.
    columns: along the last axis, the outputs.

  Raises:
    UserError: sizes that are none; at `init`, a leaf without two axes or without entries.
  """
  ranges.check("block: rows", rows, ranges.whole(1))
  ranges.check("block: columns", columns, ranges.whole(1))
  size = int(rows), int(columns)

  def counts(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or not math.prod(shape):
      raise UserError(f"block: {name!r} has the shape {shape}; expected rows and columns, or leave it out by rules=")
    return -(-shape[-2] // size[0]), -(-shape[-1] // size[1])

  def units(name: str, shape: tuple[int, ...]) -> int:
    return math.prod((*shape[:-2], *counts(name, shape)))

  def split(name: str, scores: jax.Array) -> jax.Array:
    high, wide = counts(name, scores.shape[1:])
    rest = high * size[0] - scores.shape[-2], wide * size[1] - scores.shape[-1]
    beyond = [(0, 0)] * (scores.ndim - 2) + [(0, rest[0]), (0, rest[1])]
    padded = jnp.pad(scores, beyond, constant_values=-jnp.inf)
    blocks = padded.reshape(*scores.shape[:-2], high, size[0], wide, size[1])
    return jnp.max(blocks, (-3, -1)).reshape(len(scores), -1)

  def join(name: str, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    blocks = mask.reshape(-1, *shape[:-2], *counts(name, shape))
    whole = jnp.repeat(jnp.repeat(blocks, size[0], -2), size[1], -1)
    return whole[..., : shape[-2], : shape[-1]]

  return Pattern(units, split, join, gathers=size != (1, 1))
