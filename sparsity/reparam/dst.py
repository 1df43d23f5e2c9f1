"""Dynamic sparse training with trainable thresholds, DST (Liu, Xu, Shi, Cheung, So, "Dynamic Sparse Training: Find
Efficient Sparse Network From Scratch With Trainable Masked Layers", arXiv:2005.06870, section 3).

    Q = |W| - t,   M = 1 where Q > 0, else 0,   the model is applied with W M;   penalty alpha sum of exp(-t)

t has a number for each output of a layer. In the gradient the derivative of the step M is the paper's long-tailed one:
2 - 4|Q| up to |Q| = 0.4, then 0.4 up to 1, then 0. So thresholds are trained, and pruned weights too, which may come
back with their values. The penalty lifts thresholds, which alone say how sparse the network becomes.

Thresholds have no upper limit: too large an alpha prunes a layer whole, and nothing resets it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.graph.kinds import Reparam
from sparsity.select import KERNELS, Chosen, Setting, Stacked, select
from sparsity.state import pure


def dst(
  initial: float = 0.0,
  alpha: float = 0.0,
  *,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
) -> Reparam:
  """Returns the reparameterization; its aux is t by leaf name, of the leaf's rank with 1 on axes that share a number.

  A layer's outputs are its last axis, as in flax's Dense and Conv.

  Args:
    initial: t at the start; at 0 the network is dense.
    alpha: of the penalty alpha sum of exp(-t).
    rules: as of `sparsity.prune`; True: learn thresholds, a number: begin with this t.
    stacked: as of `sparsity.prune`; layers of a leaf have thresholds of their own.

  Raises:
    UserError: numbers that are none; at `init`, a rule that matches nothing.
  """
  ranges.check("dst: initial", initial, ranges.FINITE)
  ranges.check("dst: alpha", alpha, ranges.NOT_NEGATIVE)

  def init(params: Any) -> dict[str, jax.Array]:
    return {one.name: _initial(one, initial) for one in select(pure(params), rules, stacked).values()}

  def forward(params: Any, aux: Any, *, step: Any, key: Any, train: bool) -> tuple[Any, dict[str, Any]]:
    del step, key, train
    leaves, treedef = jax.tree.flatten(params)
    for i, one in select(pure(params), rules, stacked).items():
      if one.name not in aux:
        raise UserError(f"dst: aux has no thresholds of {one.name!r}; expected what init(params) returns")
      leaves[i] = _masked(leaves[i], aux[one.name].astype(leaves[i].dtype))
    return treedef.unflatten(leaves), {}

  def penalty(aux: Any) -> jax.Array:
    sums = [jnp.sum(jnp.exp(-t)) for t in jax.tree.leaves(aux)]
    return alpha * sum(sums[1:], sums[0]) if sums else jnp.zeros(())

  return Reparam(init, forward, penalty)


def _initial(one: Chosen, initial: float) -> jax.Array:
  if one.setting is not True:
    ranges.check(f"the number of {one.name!r} in dst's rules", one.setting, ranges.FINITE)
  dtype = "float64" if one.leaf.dtype == jnp.float64 else "float32"
  outputs = max(axis for axis in range(one.leaf.ndim) if axis not in one.axes)
  shape = tuple(n if axis in (*one.axes, outputs) else 1 for axis, n in enumerate(one.leaf.shape))
  return jnp.full(shape, initial if one.setting is True else one.setting, dtype)


@jax.custom_jvp
def _masked(w: jax.Array, threshold: jax.Array) -> jax.Array:
  # Not a product with the mask, which is -0 for a negative weight.
  return jnp.where(jnp.abs(w) <= threshold, jnp.zeros((), w.dtype), w)


@_masked.defjvp
def _masked_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  (w, threshold), (of_w, of_threshold) = primals, tangents
  gap = jnp.abs(w) - threshold
  slope = jnp.where(jnp.abs(gap) <= 0.4, 2 - 4 * jnp.abs(gap), jnp.where(jnp.abs(gap) <= 1, 0.4, 0.0)).astype(w.dtype)
  kept = jnp.where(gap <= 0, jnp.zeros_like(of_w), of_w)
  return _masked(w, threshold), kept + w * slope * (jnp.sign(w) * of_w - of_threshold)
