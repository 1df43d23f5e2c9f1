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

from core import rules
from core.errors import UserError
from core.trees import map_named, named_leaves
from quant.grid import broadcast, limits, symmetric
from quant.policy import Policy, Setting
from quant.policy import policy as make_policy

_MANTISSA = 24
_MOST_BITS = 8


class LatentState(NamedTuple):
  """The latents of the quantized leaves by name, and the inner optimizer's state."""

  latents: dict[str, jax.Array]
  inner: Any


def latent_weights(inner: optax.GradientTransformation, policy: Any) -> optax.GradientTransformationExtraArgs:
  """Lets `inner` train full-precision latents of which the parameters are the quantized values.

  Only MultiSteps and apply_if_finite may enclose it, and nothing may follow it.

  Args:
    inner: any transformation, such as adamw or a pruner; extra arguments of `update`, `step` among them, reach it.
    policy: rules over the names of parameters with two axes or more, with `ends=None` (a tree of parameters has no
    first
      and no last site). Kernels are symmetric, with one scale for each index of their last axis unless per_tensor.

  Raises:
    UserError: at `init`, for a policy with ends, learned scales, more than 8 bits, or a leaf that is not float32.
  """
  inner_args = optax.with_extra_args_support(inner)
  settings = _settings_of(policy)

  def init(params: Any) -> LatentState:
    chosen = settings(params)
    latents = {name: jnp.array(leaf) for name, leaf in named_leaves(params).items() if name in chosen}
    return LatentState(latents, inner_args.init(params))

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, LatentState]:
    if params is None:
      raise UserError("latent_weights needs the parameters: tx.update(gradients, state, params)")
    chosen = settings(params)
    full = map_named(state.latents.get, params)
    updates, inner_state = inner_args.update(updates, state.inner, full, **extra)
    moved = named_leaves(optax.apply_updates(full, updates))
    # Behind a barrier: the compiler must not work a latent out twice, with two roundings, once for the largest.
    latents = jax.lax.optimization_barrier({name: moved[name] for name in state.latents})

    def to_grid(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
      if name not in chosen:
        return update
      return nearest(latents[name], chosen[name]) - param

    return map_named(to_grid, updates, params), LatentState(latents, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def project(params: Any, policy: Any) -> Any:
  """The parameters on their grids: what to start from."""
  chosen = _settings_of(policy)(params)
  return map_named(lambda name, leaf: nearest(leaf, chosen[name]) if name in chosen else leaf, params)


def finalize(params: Any, state: LatentState, policy: Any) -> Any:
  """The parameters as the quantized values of the latents, whatever rounding the updates went through."""
  full = map_named(state.latents.get, params)
  return project(full, policy)


def nearest(latent: jax.Array, setting: Setting) -> jax.Array:
  """A leaf on the grid of its largest magnitudes, the scale rounded up to 24 - b - 3 significant bits."""
  bits = setting.weights or _MOST_BITS
  axis = latent.ndim - 1 if setting.per_channel else None
  others = tuple(i for i in range(latent.ndim) if i != axis)
  largest = jnp.max(jnp.abs(latent), others)
  # A few units of the last place less: what is on a grid already then gets its own scale again, and not the next one.
  scale = _round_up(symmetric(largest, bits, narrow=setting.narrow).scale * (1 - 2.0**-21), bits + 3)
  qmin, qmax = limits(bits, True, setting.narrow)
  scale = broadcast(jax.lax.optimization_barrier(scale), latent.ndim, axis)
  return scale * jnp.clip(jnp.round(latent * (1 / scale)), qmin, qmax)


def _round_up(scale: jax.Array, drop: int) -> jax.Array:
  """Positive float32 numbers with their last `drop` bits zero, rounded up: the codes still reach the largest weight."""
  pattern = jax.lax.bitcast_convert_type(scale, jnp.int32)
  low = jnp.int32((1 << drop) - 1)
  return jax.lax.bitcast_convert_type((pattern + low) & ~low, jnp.float32)


def _settings_of(spec: Any) -> Any:
  """From parameters to the settings of those that are quantized."""
  chosen = spec if isinstance(spec, Policy) else make_policy(spec, ends=None)
  if chosen.ends is not None:
    raise UserError("latent_weights cannot tell first and last sites; give the policy ends=None and rules of their own")
  for glob, setting in chosen.rules:
    if setting.learned or (setting.weights or 0) > _MOST_BITS or setting.activations is not None:
      raise UserError(f"latent_weights: the rule {glob!r} says {setting}; expected weights of 2 to 8 bits, as 'w4'")

  def settings(params: Any) -> Mapping[str, Setting]:
    leaves = {name: leaf for name, leaf in named_leaves(params).items() if jnp.ndim(leaf) > 1}
    found = {name: m.setting for name, m in rules.match(chosen.rules, leaves, "quantization rule").items()}
    found = {name: setting for name, setting in found.items() if setting.weights is not None}
    for name in found:
      if leaves[name].dtype != jnp.float32:
        raise UserError(f"latent_weights: {name!r} is {leaves[name].dtype}; expected float32, where steps are exact")
    return found

  return settings
