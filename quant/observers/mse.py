"""Least squared error observer: the range whose grid rounds everything seen with the smallest squared error (Nagel et
al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, section 3.1, by a grid search).

    argmin over (low, high) of sum_x (x - x̂)^2,   x̂ on the affine grid over [low, high]

Both ends are shares 1, 0.99, ..., 0.01 of the lowest and the highest value seen; first one share for both, then each by
itself, twice. So the error is never above that of `min_max`, but the least over all pairs of shares is not promised.

Where we differ: the sum is one over a histogram with fixed bins (`quant/bins.py`), within which values are taken as
evenly spread, so that no batch is kept; the paper has one batch of data.
"""

import functools

import jax
import jax.numpy as jnp

from leanax.graph.statistics import extrema
from quant import bins
from quant.grid import affine
from quant.observers.base import Observer, Stats

_SHARES = 100
_NARROW = 0.01  # of a step: a bin that is narrower has the error of its middle, as differences of integrals round


def mse() -> Observer:
  """The range of least squared error."""
  return Observer((extrema(), bins.float_histogram()), _range)


def _range(stats: Stats, bits: int) -> tuple[jax.Array, jax.Array]:
  (lowest, highest), counts = stats["extrema"], jnp.asarray(stats[bins.COUNTS], jnp.float32)
  # Over the largest magnitude, so that squares neither vanish nor overflow.
  size = jnp.maximum(jnp.abs(lowest), jnp.abs(highest))
  size = jnp.where(size == 0, 1.0, size)
  edges = jnp.clip(jnp.asarray(bins.edges()), lowest, highest) / size
  # Two values are known: they count at their own places.
  counts = jnp.maximum(counts.at[bins.bin_of(jnp.stack([lowest, highest]))].add(-1.0), 0.0)
  error = functools.partial(_error, edges, counts, (lowest / size, highest / size), bits)
  shares = (1 - jnp.arange(_SHARES) / _SHARES).astype(jnp.float32)

  def best(low: jax.Array, high: jax.Array) -> jax.Array:
    pairs = jnp.broadcast_arrays(low, high, shares)[:2]
    return shares[jnp.argmin(jax.vmap(error)(*pairs))]

  low = high = best(shares, shares)
  for _ in range(2):
    high = best(low, shares)
    low = best(shares, high)
  # Every grid holds 0: an end on the other side of it does not matter, and stays.
  return jnp.where(lowest < 0, low * lowest, lowest), jnp.where(highest > 0, high * highest, highest)


def _error(
  edges: jax.Array, counts: jax.Array, ends: tuple[jax.Array, jax.Array], bits: int, low: jax.Array, high: jax.Array
) -> jax.Array:
  """Returns the sum of squared errors for these shares of the ends."""
  grid = affine(jnp.minimum(low * ends[0], 0.0), jnp.maximum(high * ends[1], 0.0), bits)
  lower, upper = ((end - grid.zero_point).astype(edges.dtype) for end in grid.ends)

  def rest(u: jax.Array) -> jax.Array:
    return u - jnp.clip(jnp.round(u), lower, upper)

  # The integral of (t - t̂)^2 from 0 to u: 1/12 for each whole step, and the cube of the rest.
  u = edges / grid.scale
  integral = (u - rest(u)) / 12 + rest(u) ** 3 / 3
  width, middle = u[1:] - u[:-1], (u[1:] + u[:-1]) / 2
  mean = (integral[1:] - integral[:-1]) / jnp.maximum(width, _NARROW)
  mean = jnp.where(width < _NARROW, rest(middle) ** 2, mean)
  known = jnp.sum(rest(jnp.stack(ends) / grid.scale) ** 2)
  return grid.scale**2 * (known + jnp.sum(jnp.where(counts > 0, counts * mean, 0.0)))
