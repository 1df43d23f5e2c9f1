"""The zoo's residual net: its batch norms fold, and its channels are cut."""

import jax
import jax.numpy as jnp
import numpy as np

from leanax import graph
from leanax.zoo import resnet
from tests.graph import models

X = models.normal(1, 2, 8, 8, 1)


def net():
  model = resnet.ResNet((1, 1), (4, 6))
  return model.apply, models.made(model, X)


def test_a_resnet_folds_and_keeps_its_names():
  fn, variables = net()
  fn2, variables2, edits = models.folded(fn, variables, X[:1])
  assert len(edits) == 6 and set(variables2) == {"params"}
  np.testing.assert_allclose(jax.jit(fn2)(variables2, X), jax.jit(fn)(variables, X), rtol=1e-4, atol=1e-5)
  found, before = graph.trace(fn2, variables2, X), graph.trace(fn, variables, X)
  assert [n for n, op in found.sites.items() if op.kind != "bias"] == [
    n for n, op in before.sites.items() if op.kind != "bias"
  ]
  assert sum(op.kind == "bias" for op in found.sites.values()) == 7


def test_a_resnet_is_cut():
  fn, variables = net()
  keep = {"Block_0/Conv_0/kernel": [0, 2], "Block_1/Conv_0/kernel": [1, 3, 5]}
  fn2, small, _ = models.cut(fn, variables, keep, X)
  whole = jax.tree.map(lambda leaf: leaf, variables)
  for block, n, site in (("Block_0", 4, "Block_0/Conv_0/kernel"), ("Block_1", 6, "Block_1/Conv_0/kernel")):
    mask = jnp.zeros(n).at[jnp.array(keep[site])].set(1.0)[:, None]
    whole["params"][block]["Conv_1"]["kernel"] = whole["params"][block]["Conv_1"]["kernel"] * mask
  np.testing.assert_allclose(jax.jit(fn2)(small, X), jax.jit(fn)(whole, X), rtol=1e-5, atol=1e-6)
