"""A head as data: what a network ends with, written as steps of which the parameters lie in a dict of layers.

Steps are lists that JSON can hold: ["pool", [height, width]] (average), ["layer", name] (a map of the channels, or a
convolution of stride 1 for a kernel of four axes, and its bias), ["relu"], ["mean"] (over all places).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.core.pooling import pool_to

Steps = Sequence[Sequence[Any]]


def run(steps: Steps, params: Mapping[str, Any], x: jax.Array) -> jax.Array:
  """Returns what the steps make of activations.

  Args:
    steps: as above.
    params: {layer: {"kernel": (inputs, outputs) or (height, width, inputs, outputs), "bias": (outputs,)}}.
    x: (batch, ..., channels); (batch, height, width, channels) for pools and convolutions.

  Raises:
    UserError: an unknown step or layer, or one that cannot read its activation.
  """
  check(steps)
  for name, *arguments in steps:
    x = _STEPS[name](params, x, *arguments)
  return x


def check(steps: Any) -> None:
  """Refuses what are no steps.

  Raises:
    UserError: names the step.
  """
  if not isinstance(steps, list | tuple):
    raise UserError(f"the steps of a head are {steps!r}; expected a list such as [['layer', name], ['relu']]")
  for step in steps:
    listed = isinstance(step, list | tuple) and step
    if listed and str(step[0]) not in _STEPS:
      raise unknown("step of a head", str(step[0]), _STEPS)
    if not listed or len(step) != 1 + (step[0] in ("layer", "pool")):
      raise UserError(
        f"a step of a head is {step!r}; expected ['layer', name], ['pool', [height, width]], ['relu'] or ['mean']"
      )


def _layer(params: Mapping[str, Any], x: jax.Array, name: str) -> jax.Array:
  if not isinstance(params, Mapping) or name not in params:
    raise unknown("layer of a head", str(name), params if isinstance(params, Mapping) else ())
  if not isinstance(params[name], Mapping) or not {"kernel", "bias"} <= params[name].keys():
    raise UserError(f"the layer {name!r} of a head holds no 'kernel' and 'bias'; expected a dict of both")
  kernel, bias = (params[name][key].astype(x.dtype) for key in ("kernel", "bias"))
  if kernel.ndim not in (2, x.ndim if x.ndim == 4 else 2):
    raise UserError(
      f"the kernel of the layer {name!r} of a head has the shape {kernel.shape}, for an activation of shape {x.shape}; "
      "expected (inputs, outputs), or of maps (height, width, inputs, outputs)"
    )
  if kernel.shape[-2] != x.shape[-1]:
    raise UserError(
      f"the layer {name!r} of a head reads {kernel.shape[-2]} channels and gets an activation of shape {x.shape}"
    )
  if kernel.ndim == 2:
    return x @ kernel + bias
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def _pool(params: Mapping[str, Any], x: jax.Array, size: Sequence[int]) -> jax.Array:
  """`pool_to`, as the average pooling that other runtimes know where the sizes divide."""
  del params
  if x.ndim != 4 or np.shape(size) != (2,) or not all(type(n) is int and n > 0 for n in size):
    raise UserError(f"a head pools an activation of shape {x.shape} to {size!r}; expected maps, and [height, width]")
  (high, wide), (below, left) = x.shape[1:3], (x.shape[1] % size[0], x.shape[2] % size[1])
  if below or left or (high, wide) == tuple(size):
    return pool_to(x, (size[0], size[1]))
  window = (1, high // size[0], wide // size[1], 1)
  return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, window, "VALID") / np.prod(
    window[1:3]
  ).astype(x.dtype)


_STEPS: dict[str, Callable[..., jax.Array]] = {
  "layer": _layer,
  "pool": _pool,
  "relu": lambda params, x: jax.nn.relu(x),
  "mean": lambda params, x: jnp.mean(x, tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x,
}
