"""Modules of both frameworks as nets, edited and trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leanax import graph
from leanax.core.errors import UserError
from leanax.engine import models
from tests.graph.models import images, made


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


KEY = jax.random.key(1)


def linen():
  module, x = Linen(), images(4)
  variables = made(module, x)
  return models.net(module, variables, x), lambda x: module.apply(variables, x), "Conv_0/kernel"


def of_nnx():
  module = Nnx(nnx.Rngs(0))
  module.norm.mean.set_value(jnp.linspace(-1, 1, 4))
  module.norm.var.set_value(jnp.linspace(0.5, 2, 4))
  before = module.drop.deterministic
  net = models.net(module, None, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  assert module.drop.deterministic == before

  def evaluated(x):
    module.eval()
    return module(x)

  return net, evaluated, "conv/kernel"


@pytest.mark.parametrize("make", [linen, of_nnx])
def test_a_module_is_folded_cut_and_trained(make):
  net, evaluated, site = make()
  x = images(4)
  np.testing.assert_allclose(net.infer(net.variables, x), evaluated(x), rtol=1e-5, atol=1e-6)
  _, state = net.apply(net.variables, x, train=True, key=KEY)
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, {"batch_stats": net.variables["batch_stats"]})
  assert all(jax.tree.leaves(moved))
  folded = graph.fold_batch_norms(net)
  assert set(folded.variables) == {"params"} and [one["site"] for one in folded.edits] == [site]
  np.testing.assert_allclose(folded.infer(folded.variables, x), evaluated(x), rtol=1e-4, atol=1e-5)
  small = graph.keep_channels(folded, {site: [0, 3]})
  out, state = jax.jit(lambda v, x, key: small.apply(v, x, train=True, key=key))(small.variables, x, KEY)
  other, _ = small.apply(small.variables, x, train=True, key=jax.random.key(2))
  assert state == {} and out.shape == (4, 3) and np.abs(out - other).max() > 1e-4


def test_objects_that_are_not_modules_are_refused():
  for module, variables, example, words in (
    (jnp.tanh, {}, (images(1),), "expected a linen or an nnx Module, or a function for graph.net"),
    (Linen(), None, (images(1),), "a linen module holds no variables"),
    (Linen(), {}, (), "got 0 examples"),
  ):
    with pytest.raises(UserError, match=words):
      models.net(module, variables, *example)
