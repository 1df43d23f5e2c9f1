"""Scales of quantizers: their start values, and the part of them that belongs to each site."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import axis
from leanax.graph.program import leaf_names
from quant.plan import Plan
from quant.quantizer import Quantizer
from quant.sharing import of_operand

State = dict[str, Any]


def leaf_grids(plan: Plan, quant_state: State, variables: Any, axis_name: str | None) -> State:
  """Returns the entries of the kernels that are written in their leaf's axes, from the leaves themselves."""
  leaves = dict(zip(leaf_names(variables), jax.tree.leaves(variables), strict=True))
  found = {}
  for key, quantizer in plan.leaf_grids.items():
    leaf = jnp.asarray(leaves[quantizer.leaf or key]).reshape(quantizer.shape)
    start = finite(kernel_start(quantizer, leaf, axis_name))
    found[key] = quantizer.entry(start, quant_state.get(key))
  return found


def finite(start: State) -> State:
  """Returns the scale of a kernel, infinite where it holds NaN or infinity."""
  scale = start["scale"]
  return {"scale": jnp.where(jnp.isfinite(scale), scale, jnp.full_like(scale, jnp.inf))}


def kernel_start(quantizer: Quantizer, kernel: jax.Array, axis_name: str | None) -> State:
  """Returns the kernel's scale, from its largest and mean magnitudes; equal on all devices."""
  others = tuple(i for i in range(kernel.ndim) if i not in quantizer.axis)
  magnitude = jnp.abs(jax.lax.stop_gradient(kernel).astype(jnp.float32))
  largest, mean = (axis.pmax(reduce(magnitude, others), axis_name) for reduce in (jnp.max, jnp.mean))
  return quantizer.start(-largest, largest, mean)


def at_sites(plan: Plan, used: State, key: jax.Array | None = None) -> State:
  """Returns the tensors' grids, and by site the scales of its kernel, as they broadcast against the operand there.

  With a key, each tensor that is rounded at random gets one of its own, in a scan each layer.
  """
  found: State = {key: used[key] for key, q in plan.quantizers.items() if not q.kernel}
  for (site, index), quantizer in plan.at.items():
    if quantizer.kernel:
      scale, use = used[quantizer.key]["scale"], plan.uses.get((site, index))
      if quantizer.scales is not None and use is not None:
        scale = of_operand(scale, quantizer.scales, use)
      elif quantizer.axis:  # behind the axes of scans around it
        kept = [n if i in quantizer.axis else 1 for i, n in enumerate(quantizer.shape)]
        scale = scale.reshape(*scale.shape[: scale.ndim - len(quantizer.axis)], *kept)
      found[site] = {"scale": scale}
    if key is not None and quantizer.estimator.random:
      name, use = site if quantizer.kernel else quantizer.key, plan.uses.get((site, index))
      rank = (len(use.view.axes) if use is not None else len(quantizer.shape)) if quantizer.axis else 0
      scans = found[name]["scale"].shape[: found[name]["scale"].ndim - rank]
      own = jax.random.fold_in(key, zlib.crc32(quantizer.key.encode()) & 0x7FFFFFFF)
      found[name] = {**found[name], "key": jax.random.split(own, scans)}
  return found
