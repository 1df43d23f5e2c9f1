"""Soft threshold reparameterization, STR (Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable
Sparsity", arXiv:2002.03231).

The model is applied with sign(W) max(|W| - g(s), 0), where g is the sigmoid and s a number that each layer learns
(equation 4 of the paper). Weight decay of s, which starts far below 0, lifts it, and with it the threshold: it alone
says how sparse the network becomes.
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


def soft_threshold(
  initial: float = -10.0,
  decay: float = 0.0,
  *,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
) -> Reparam:
  """Returns the reparameterization; its aux is s by leaf name, scalars, or one for each layer of a stacked leaf.

  Args:
    initial: s at the start; thresholds are sigmoid(s), 4.5e-5 at -10.
    decay: lambda of the penalty lambda / 2 * sum of s^2, the weight decay of s; 0 where the optimizer decays it.
    rules: as of `sparsity.prune`; True: learn a threshold, a number: begin with this s.
    stacked: as of `sparsity.prune`.

  Raises:
    UserError: values that are not numbers; at `init`, a rule that matches nothing.
  """
  ranges.check("soft_threshold: initial", initial, ranges.FINITE)
  ranges.check("soft_threshold: decay", decay, ranges.NOT_NEGATIVE)

  def init(params: Any) -> dict[str, jax.Array]:
    return {one.name: _initial(one, initial) for one in select(pure(params), rules, stacked).values()}

  def forward(params: Any, aux: Any, *, step: Any, key: Any, train: bool) -> tuple[Any, dict[str, Any]]:
    del step, key, train
    leaves, treedef = jax.tree.flatten(params)
    for i, one in select(pure(params), rules, stacked).items():
      if one.name not in aux:
        raise UserError(f"soft_threshold: aux has no threshold of {one.name!r}; expected what init(params) returns")
      leaves[i] = _shrunk(leaves[i], jax.nn.sigmoid(aux[one.name]))
    return treedef.unflatten(leaves), {}

  def penalty(aux: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(s)) for s in jax.tree.leaves(aux)]
    return 0.5 * decay * sum(squares[1:], squares[0]) if squares else jnp.zeros(())

  return Reparam(init, forward, penalty)


def _initial(one: Chosen, initial: float) -> jax.Array:
  if one.setting is not True:
    ranges.check(f"the number of {one.name!r} in soft_threshold's rules", one.setting, ranges.FINITE)
  dtype = "float64" if one.leaf.dtype == jnp.float64 else "float32"
  shape = tuple(n if axis in one.axes else 1 for axis, n in enumerate(one.leaf.shape)) if one.axes else ()
  return jnp.full(shape, initial if one.setting is True else one.setting, dtype)


def _shrunk(w: jax.Array, threshold: jax.Array) -> jax.Array:
  threshold = threshold.astype(w.dtype)
  zero = jnp.zeros((), w.dtype)  # not sign(w) * 0, which is -0 for a negative weight
  return jnp.where(jnp.abs(w) > threshold, w - jnp.sign(w) * threshold, zero)
