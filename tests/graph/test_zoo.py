"""The zoo's models: every equation built anew is bitwise the same; batch norms fold; channels are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graph
from tests.graph import models
from zoo import convnet, lenet, mlp, resnet

IMAGES = jax.random.normal(jax.random.key(1), (4, 16, 16, 1), jnp.float32)


def linen(model):
  def train(variables, x):
    return model.apply(variables, x, True, mutable=["batch_stats"])

  trains = isinstance(model, resnet.ResNet)
  variables = models.shake(model.init(jax.random.key(0), IMAGES))
  return models.Case(model.apply, train if trains else model.apply, variables, IMAGES)


def plain():
  init, apply = mlp.plain_mlp((8,))
  return models.Case(apply, apply, init(jax.random.key(0), IMAGES), IMAGES)


def nnx_mlp():
  from flax import nnx

  from zoo import mlp_nnx

  definition, state = nnx.split(mlp_nnx.MLP(256, (8,), rngs=nnx.Rngs(0)))

  def apply(variables, x):
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, variables["params"])
    return nnx.merge(definition, filled)(x)

  return models.Case(apply, apply, {"params": nnx.to_pure_dict(state)}, IMAGES)


ZOO = {
  "LeNet300": lambda: linen(lenet.LeNet300()),
  "LeNet5": lambda: linen(lenet.LeNet5()),
  "ConvNet": lambda: linen(convnet.ConvNet((4, 4), (8,))),
  "MLP": lambda: linen(mlp.MLP((8,))),
  "plain_mlp": plain,
  "nnx_MLP": nnx_mlp,
  "ResNet": lambda: linen(resnet.ResNet((1, 1, 1), (4, 6, 8))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_everything_built_anew_is_bitwise_the_same(name):
  case = ZOO[name]()
  for fn in {case.fn, case.train}:
    again = graph.rewrite(fn, lambda op, inputs, extras: None, everything=True)

    def loss(f):
      def total(variables, x):
        out = f(variables, x)
        return sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(out)), out

      return jax.jit(jax.value_and_grad(total, has_aux=True))

    results = (loss(f)(case.variables, case.x) for f in (lambda v, x, a=again: a({}, v, x)[0], fn))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_resnet_folds_and_keeps_its_names():
  case = ZOO["ResNet"]()
  fn2, variables2, edits = graph.fold_batch_norms(case.fn, case.variables, case.x[:1])
  assert len(edits) == 9 and set(variables2) == {"params"}
  np.testing.assert_allclose(fn2(variables2, case.x), case.fn(case.variables, case.x), rtol=1e-4, atol=1e-5)
  found, before = graph.trace(fn2, variables2, case.x), graph.trace(case.fn, case.variables, case.x)
  assert [n for n, op in found.sites.items() if op.kind != "bias"] == [
    n for n, op in before.sites.items() if op.kind != "bias"
  ]
  assert sum(op.kind == "bias" for op in found.sites.values()) == 10


def test_a_resnet_is_cut():
  case = ZOO["ResNet"]()
  keep = {"Block_0/Conv_0/kernel": [0, 2], "Block_1/Conv_0/kernel": [1, 3, 5]}
  fn2, small, _ = graph.keep_channels(case.fn, case.variables, keep, case.x)
  whole = jax.tree.map(lambda leaf: leaf, case.variables)
  for block, n, site in (("Block_0", 4, "Block_0/Conv_0/kernel"), ("Block_1", 6, "Block_1/Conv_0/kernel")):
    mask = jnp.zeros(n).at[jnp.array(keep[site])].set(1.0)[:, None]
    whole["params"][block]["Conv_1"]["kernel"] = whole["params"][block]["Conv_1"]["kernel"] * mask
  np.testing.assert_allclose(fn2(small, case.x), case.fn(whole, case.x), rtol=1e-5, atol=1e-6)
