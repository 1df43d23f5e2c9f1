"""The axes along which leaves hold layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from leanax import graph
from tests.graph import models


def test_scans_in_scans_and_none_leaves():
  shapes = {
    "blocks": {"kernel": (4, 3, 2, 5, 5), "bias": (4, 3, 5)},  # groups, layers in a group, two kernels a layer
    "second": (5, 3, 5),  # layers on the middle axis
    "scaled": {"kernel": (3, 5, 5), "gain": (3,)},
    "positions": (7, 5),
    "head": (5, 2),
  }
  variables = {"params": jax.tree.map(lambda s: jnp.ones(s), shapes, is_leaf=lambda s: isinstance(s, tuple))}

  def fn(variables, x):
    p = variables["params"]
    x = x + p["positions"]
    x = jax.lax.scan(lambda c, row: (c + row, row), x[:, 0] * 0, x.transpose(1, 0, 2))[1].transpose(1, 0, 2)  # time

    @jax.checkpoint
    def layer(x, w):
      return jax.nn.relu(x @ w["kernel"][0] @ w["kernel"][1] + w["bias"]), None

    x = jax.lax.scan(lambda x, group: jax.lax.scan(layer, x, group), x, p["blocks"])[0]
    x = jax.lax.scan(lambda x, w: (x @ w, None), x, p["second"].transpose(1, 0, 2).astype(jnp.float32))[0]
    kernels = p["scaled"]["kernel"] * p["scaled"]["gain"][:, None, None]
    x = jax.jit(lambda x, kernels: jax.lax.fori_loop(0, 3, lambda i, x: x @ kernels[i], x))(x, kernels)
    return x @ p["head"]

  found = graph.stacked_axes(fn, variables, jnp.ones((2, 7, 5)))
  assert found == {
    "blocks/bias": (0, 1),
    "blocks/kernel": (0, 1),
    "second": (1,),
    "scaled/gain": (0,),
    "scaled/kernel": (0,),
  }


def test_layers_flattened_into_one_axis_and_layers_flattened_with_features():
  def fn(variables, x):
    groups = variables["six"].reshape(2, 3, 5, 5)
    x = jax.lax.scan(lambda x, group: jax.lax.scan(lambda x, w: (x @ w, None), x, group), x, groups)[0]
    return jax.lax.scan(lambda x, w: (x @ w, None), x, variables["rows"].reshape(2, 5, 5))[0]

  variables = {"six": jnp.ones((6, 5, 5)), "rows": jnp.ones((10, 5))}
  assert graph.stacked_axes(fn, variables, jnp.ones((1, 5))) == {"six": (0,)}


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Dense(6)(x))


class Scanned(nn.Module):
  axis: int = 0

  @nn.compact
  def __call__(self, x):
    stack = nn.scan(
      lambda block, x, _: (block(x), None),
      variable_axes={"params": self.axis},
      split_rngs={"params": True},
      length=3,
    )
    return nn.Dense(2)(stack(Block(name="blocks"), nn.Dense(6)(x), None)[0])


def test_linen():
  x = jnp.ones((2, 6))
  for axis in (0, 1):
    module = Scanned(axis)
    variables = models.made(module, x)
    found = graph.stacked_axes(module.apply, variables, x)
    assert found == {"blocks/Dense_0/bias": (axis,), "blocks/Dense_0/kernel": (axis,)}


def test_models_without_loops():
  for case in (models.conv_net(), models.plain()):
    assert graph.stacked_axes(case.fn, case.variables, case.x) == {}
