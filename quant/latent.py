"""Latent weights: the straight-through estimator as an optimizer.

The inner optimizer sees and moves full-precision latents, which live in its state; the parameters are their quantized
values (Courbariaux et al., BinaryConnect, arXiv:1511.00363, algorithm 1; here for any width). The gradient, taken at
the quantized parameters, is applied to the latents.

After `optax.apply_updates` the parameters are the quantized values bit for bit. For two floats p and q, p + (q - p)
need not be q; on grids it is: scales are rounded up to 24 - b - 3 significant bits, so that codes of b bits times
them, and the difference of two such values while the scale moves by less than a factor of 8, are exact in float32.
Before the first step parameters must lie on the grid too: give `init` the parameters that `finalize` or `project`
returns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from leanax.core import rules
from leanax.core.errors import UserError, unknown
from leanax.core.trees import map_named, named_leaves
from quant.grid import broadcast, limits, splits, symmetric
from quant.policy import Policy
from quant.policy import policy as make_policy
from quant.quantizer import Quantizer
from quant.spec import Setting, Spec

_MANTISSA = 24
_MOST_BITS = 8


class LatentState(NamedTuple):
  """The latents of the quantized leaves by name, and the inner optimizer's state."""

  latents: dict[str, jax.Array]
  inner: Any


Axes = Mapping[str, Quantizer]
Chosen = Mapping[str, tuple[Spec, Quantizer | None]]


def latent_weights(
  inner: optax.GradientTransformation, policy: Any, axes: Axes | None = None
) -> optax.GradientTransformationExtraArgs:
  """Lets `inner` train full-precision latents of which the parameters are the quantized values.

  Only MultiSteps and apply_if_finite may enclose it, and nothing may follow it.

  Args:
    inner: any transformation, such as adamw or a pruner; extra arguments of `update`, `step` among them, reach it.
    policy: rules over the names of parameters with two axes or more, with `ends=None` (a tree of parameters has no
      first and no last site). Kernels are symmetric, with one scale for each index of their last axis unless
      per_tensor.
    axes: `quant.kernel_axes(graph.trace(fn, variables, x), policy)`: the leaves that the model reads as kernels, each
      with a scale for what its sites keep of it, as `quantize` has them. Give it to `project` and `finalize` too.

  Raises:
    UserError: at `init`, for a policy with ends, learned scales, more than 8 bits, or a leaf that is not float32.
  """
  inner_args = optax.with_extra_args_support(inner)
  specs = _specs_of(policy, axes)

  def init(params: Any) -> LatentState:
    chosen = specs(params)
    latents = {name: jnp.array(leaf) for name, leaf in named_leaves(params).items() if name in chosen}
    return LatentState(latents, inner_args.init(params))

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, LatentState]:
    if params is None:
      raise UserError("latent_weights needs the parameters: tx.update(gradients, state, params)")
    chosen = specs(params)
    full = map_named(state.latents.get, params)
    updates, inner_state = inner_args.update(updates, state.inner, full, **extra)
    moved = named_leaves(optax.apply_updates(full, updates))
    # Behind a barrier: the compiler must not work a latent out twice, with two roundings, once for the largest.
    latents = jax.lax.optimization_barrier({name: moved[name] for name in state.latents})

    def to_grid(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
      if name not in chosen:
        return update
      return nearest(latents[name], *chosen[name]) - param

    return map_named(to_grid, updates, params), LatentState(latents, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def project(params: Any, policy: Any, axes: Axes | None = None) -> Any:
  """Returns the parameters on their grids: what to start from."""
  chosen = _specs_of(policy, axes)(params)
  return map_named(lambda name, leaf: nearest(leaf, *chosen[name]) if name in chosen else leaf, params)


def finalize(params: Any, state: LatentState, policy: Any, axes: Axes | None = None) -> Any:
  """Returns the parameters as the quantized values of the latents, whatever rounding the updates went through."""
  full = map_named(state.latents.get, params)
  return project(full, policy, axes)


def nearest(latent: jax.Array, spec: Spec, quantizer: Quantizer | None = None) -> jax.Array:
  """Returns a leaf on the grid of its largest magnitudes, the scale rounded up to 24 - b - 3 significant bits."""
  bits = spec.bits
  axis, layers, x = (latent.ndim - 1,) if spec.per_channel else (), (), latent
  if quantizer is not None:
    axis, layers, x = quantizer.axis, quantizer.layers, latent.reshape(quantizer.shape)
  largest = jnp.max(jnp.abs(x), tuple(i for i in range(x.ndim) if i not in axis))
  # A few units of the last place less: what is on a grid already then gets its own scale again, and not the next one.
  scale = _round_up(symmetric(largest, bits, narrow=spec.narrow, layers=layers).scale * (1 - 2.0**-21), bits + 3)
  qmin, qmax = limits(bits, True, spec.narrow)
  scale = broadcast(jax.lax.optimization_barrier(scale), x.ndim, axis)
  return (scale * jnp.clip(jnp.round(x * (1 / scale)), qmin, qmax)).reshape(latent.shape)


def _round_up(scale: jax.Array, drop: int) -> jax.Array:
  """Returns positive float32 numbers with the last `drop` bits zero, rounded up: codes reach the largest weight."""
  pattern = jax.lax.bitcast_convert_type(scale, jnp.int32)
  low = jnp.int32((1 << drop) - 1)
  return jax.lax.bitcast_convert_type((pattern + low) & ~low, jnp.float32)


def _specs_of(policy: Any, axes: Axes | None) -> Any:
  """Returns the specs, and the quantizers in `axes`, of the parameters that are quantized."""
  chosen = policy if isinstance(policy, Policy) else make_policy(policy, ends=None)
  if chosen.ends is not None:
    raise UserError("latent_weights cannot tell first and last sites; give the policy ends=None and rules of their own")
  for glob, setting in chosen.rules:
    if setting.activations is not None or (setting.weights is not None and not _serves(setting.weights, axes)):
      raise UserError(f"latent_weights: the rule {glob!r} says {setting}; expected weights of 2 to 8 bits, as 'w4'")

  for name, quantizer in (axes or {}).items():
    if all(setting.weights != quantizer.spec for _, setting in chosen.rules):
      raise UserError(
        f"latent_weights: axes has {name!r} as {Setting(quantizer.spec)}, which no rule of this policy says"
      )

  def specs(params: Any) -> Chosen:
    leaves = named_leaves(params)
    if axes is not None:
      return _checked(leaves, _by_axes(leaves, axes))
    leaves = {name: leaf for name, leaf in leaves.items() if jnp.ndim(leaf) > 1}
    matches = rules.match(chosen.rules, leaves, "quantization rule")
    found = {name: match.setting.weights for name, match in matches.items()}
    return _checked(leaves, {name: (spec, None) for name, spec in found.items() if spec is not None})

  return specs


def _serves(spec: Spec, axes: Axes | None) -> bool:
  integers = spec.format == "integer" and spec.bits <= _MOST_BITS
  return integers and not spec.make_estimator().trains and (spec.group is None or axes is not None)


def _by_axes(leaves: Mapping[str, Any], axes: Axes) -> Chosen:
  names = {name.removeprefix("params/"): name for name in leaves}
  for name, quantizer in axes.items():
    if name not in names:
      raise unknown("parameter in the axes of latent_weights:", name, names)
    if not splits(leaves[names[name]].shape, quantizer.shape):
      shape = leaves[names[name]].shape
      raise UserError(f"latent_weights: {name!r} has the shape {shape}, but axes are for {quantizer.shape}")
  return {names[name]: (quantizer.spec, quantizer) for name, quantizer in axes.items()}


def _checked(leaves: Mapping[str, Any], chosen: Chosen) -> Chosen:
  for name in chosen:
    if leaves[name].dtype != jnp.float32:
      raise UserError(f"latent_weights: {name!r} is {leaves[name].dtype}; expected float32, where steps are exact")
  return chosen
