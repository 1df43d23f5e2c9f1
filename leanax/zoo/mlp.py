"""Multilayer perceptrons in linen and as plain functions; `mlp_nnx` has the same network in nnx."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
  """Dense layers with ReLU between them.

  Attributes:
    widths: units of the hidden layers.
    classes: number of logits.
    dropout: fraction of the hidden units that are dropped in training, from 0 to below 1.
  """

  widths: Sequence[int] = (300, 100)
  classes: int = 10
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (batch, ...) inputs, flattened, to (batch, classes) logits."""
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; expected a number from 0 to below 1")
    x = x.reshape(x.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
      if self.dropout:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes)(x)


def plain_mlp(widths: Sequence[int] = (300, 100), classes: int = 10) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Returns the same network as a pair of plain functions.

  Returns:
    `init(key, x) -> {"params": a list of {"kernel", "bias"}}`, and `apply(variables, x) -> logits`.
  """

  def init(key: jax.Array, x: jax.Array) -> dict[str, list[dict[str, jax.Array]]]:
    sizes = [math.prod(x.shape[1:]), *widths, classes]
    keys = jax.random.split(key, len(sizes) - 1)
    scale = jax.nn.initializers.lecun_normal()
    params = [
      {"kernel": scale(key, (fan_in, fan_out), jnp.float32), "bias": jnp.zeros(fan_out)}
      for key, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    return {"params": params}

  def apply(variables: dict[str, list[dict[str, jax.Array]]], x: jax.Array) -> jax.Array:
    params = variables["params"]
    x = x.reshape(x.shape[0], -1)
    for layer in params[:-1]:
      x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]

  return init, apply
