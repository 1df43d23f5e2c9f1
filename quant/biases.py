"""Biases in int32 steps of s_x * s_w (Jacob et al., arXiv:1712.05877, section 2.4).

A step is so fine that a bias is a wide number of them; where a kernel is tiny beside it, its scale is raised until the
bias fits: s_x s_w 2^30 >= |b|. The other half of int32 is left to the sum of products.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from graph.channels import shape_of, to_sum
from quant.grid import broadcast, round_to
from quant.plan import BiasQuantizer, KernelQuantizer, Plan

_INT32 = (-(2**31), 2**31 - 1)
MOST = 2**30


def rounded(bias: jax.Array, one: BiasQuantizer, kernel: KernelQuantizer, used: Mapping[str, Any]) -> jax.Array:
  """A bias, as it is added, to its steps, with a straight-through gradient."""
  scale, shape = used[one.kernel]["scale"], shape_of(one.moves)
  if scale.ndim:
    scale = to_sum(jnp.broadcast_to(broadcast(scale, len(shape), kernel.axis), shape), one.moves)
    bias = jnp.broadcast_to(bias, jnp.broadcast_shapes(bias.shape, scale.shape))
  step = jax.lax.stop_gradient(used[one.tensor]["scale"] * scale)
  return round_to(_INT32, bias, step, jnp.zeros((), jnp.int32))


def raised(plan: Plan, used: Mapping[str, Any], leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
  """The grids in use, with kernels' scales raised until each bias fits.

  Args:
    plan: where the biases are.
    used: scale (and zero point) by quantizer; inside a scan with a leading layer axis.
    leaves: the variables' leaves by name.
  """
  found = dict(used)
  kernels = plan.quantizers
  for one in plan.biases.values():
    kernel, entry, bias = kernels[one.kernel], found[one.kernel], leaves[one.leaf]
    assert isinstance(kernel, KernelQuantizer)
    scale, step = entry["scale"], jax.lax.stop_gradient(used[one.tensor]["scale"])
    largest = jnp.abs(jax.lax.stop_gradient(bias).astype(jnp.float32))
    largest = jnp.max(largest) if one.read is None else _like_scale(one.read(largest), step.ndim, kernel.axis)
    # Behind a barrier: a division must not become another one in some programs only.
    most = jax.lax.optimization_barrier(step.reshape(step.shape + (1,) * (scale.ndim - step.ndim)) * MOST)
    found[one.kernel] = {**entry, "scale": jnp.maximum(scale, (largest / most).astype(scale.dtype))}
  return found


def _like_scale(largest: jax.Array, scans: int, axis: int | None) -> jax.Array:
  """Magnitudes in the kernel operand's axes, behind those of scans, as the largest for each of the kernel's scales."""
  others = tuple(i for i in range(scans, largest.ndim) if axis is None or i != scans + axis % (largest.ndim - scans))
  wide = tuple(i for i in others if largest.shape[i] > 1)
  if wide:
    largest = jnp.max(largest, wide, keepdims=True)
  return jnp.squeeze(largest, others)
