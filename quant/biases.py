"""Biases in int32 steps of s_x * s_w (Jacob et al., arXiv:1712.05877, section 2.4).

A step is so fine that a bias is a wide number of them; where a kernel is tiny beside it, its scale is raised until the
bias fits: s_x s_w 2^30 >= |b|. The other half of int32 is left to the sum of products.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from leanax.graph.channels import shape_of, to_sum
from quant.grid import round_to
from quant.plan import BiasQuantizer, Plan
from quant.sharing import to_leaf

_INT32 = (-(2**31), 2**31 - 1)
MOST = 2**30


def rounded(bias: jax.Array, one: BiasQuantizer, used: Mapping[str, Any]) -> jax.Array:
  """Returns a bias in steps of its scale, with a straight-through gradient; kernels' scales are those at the sites."""
  scale, shape = used[one.kernel[0]]["scale"], shape_of(one.moves)
  if scale.ndim:
    scale = to_sum(jnp.broadcast_to(scale, shape), one.moves)
    bias = jnp.broadcast_to(bias, jnp.broadcast_shapes(bias.shape, scale.shape))
  step = jax.lax.stop_gradient(used[one.tensor]["scale"] * scale)
  return round_to(_INT32, bias, step, jnp.zeros((), jnp.int32))


def raised(plan: Plan, used: Mapping[str, Any], leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
  """Returns the grids in use, with kernels' scales raised until each bias fits.

  Args:
    plan: where the biases are.
    used: scale (and zero point) by quantizer; inside a scan with a leading layer axis.
    leaves: the variables' leaves by name.
  """
  found = dict(used)
  for one in plan.biases.values():
    kernel, bias = plan.at[one.kernel], leaves[one.leaf]
    scale, step = found[kernel.key]["scale"], jax.lax.stop_gradient(used[one.tensor]["scale"])
    largest = jnp.abs(jax.lax.stop_gradient(bias).astype(jnp.float32))
    largest = jnp.max(largest) if one.read is None else one.read(largest)
    # Behind a barrier: a division must not become another one in some programs only.
    rank = len(shape_of(one.moves))
    least = largest / jax.lax.optimization_barrier(step.reshape(step.shape + (1,) * rank) * MOST)
    use = plan.uses.get(one.kernel)
    if kernel.scales is not None and use is not None:
      least = to_leaf(least, kernel.scales, use, scale.shape)
    else:  # written for the operand, behind the axes of scans
      scans = least.ndim - rank
      least = jnp.max(least, tuple(scans + i for i in range(rank) if i not in kernel.axis))
    found[kernel.key] = {**found[kernel.key], "scale": jnp.maximum(scale, least.astype(scale.dtype))}
  return found
