"""nnx modules behind the same two functions: names, modes, statistics, random streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.models import model

HERE = __name__
KEY = jax.random.key(0)
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)


class Net(nnx.Module):
  def __init__(self, hidden: int = 4, rate: float = 0.5, *, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(3, hidden, rngs=rngs), nnx.Linear(hidden, 16, rngs=rngs)])
    self.norm = nnx.BatchNorm(hidden, momentum=0.9, rngs=rngs)
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.late_dropout = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.layers[0](x)))
    return self.late_dropout(self.layers[1](self.dropout(x)))


class Keyword(nnx.Module):
  def __init__(self, *, rngs: nnx.Rngs):
    self.linear = nnx.Linear(3, 8, rngs=rngs)
    self.rngs = rngs
    self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

  def __call__(self, x, *, train: bool):
    self.calls[...] += 1
    return self.linear(x) + (jax.random.normal(self.rngs.noise(), (8,)) if train else 0)


def factory(*, rngs, hidden=2):
  return Net(hidden, rngs=rngs)


def bad_factory(*, rngs):
  return 3


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_names_and_collections():
  ours = model.load(f"{HERE}:Net", {"hidden": 5})
  variables = jax.jit(ours.init)(KEY, X)
  assert set(named_leaves(variables)) == {
    "batch_stats/norm/mean",
    "batch_stats/norm/var",
    "params/layers/0/bias",
    "params/layers/0/kernel",
    "params/layers/1/bias",
    "params/layers/1/kernel",
    "params/norm/bias",
    "params/norm/scale",
  }
  assert variables["params"]["layers"]["0"]["kernel"].shape == (3, 5)
  equal(variables, ours.init(KEY, X))
  other = ours.init(jax.random.key(1), X)
  assert not np.array_equal(other["params"]["layers"]["0"]["kernel"], variables["params"]["layers"]["0"]["kernel"])
  assert model.load(f"{HERE}:factory").init(KEY, X)["params"]["norm"]["scale"].shape == (2,)


def test_values_are_the_modules_own():
  ours = model.load(f"{HERE}:Net", {"rate": 0.0})
  variables = ours.init(KEY, X)
  module = Net(rate=0.0, rngs=nnx.Rngs(7))
  for i in (0, 1):
    for name in ("kernel", "bias"):
      getattr(module.layers[i], name)[...] = variables["params"]["layers"][str(i)][name]
  module.eval()
  equal(ours.apply(variables, X)[0], module(X))
  equal(ours.apply(variables, X)[1], {"batch_stats": variables["batch_stats"]})
  module.train()
  logits, state = ours.apply(variables, X, train=True, key=KEY)
  equal(logits, module(X))
  equal(state["batch_stats"]["norm"]["mean"], module.norm.mean[...])
  assert np.any(np.asarray(state["batch_stats"]["norm"]["mean"]) != 0)
  # nothing of the call is left behind: the same call again gives the same answer
  equal(ours.apply(variables, X, train=True, key=KEY), (logits, state))


def test_dropout_is_a_function_of_the_key():
  ours = model.load(f"{HERE}:Net")
  variables = ours.init(KEY, X)
  apply = jax.jit(ours.apply, static_argnames="train")
  noisy = [apply(variables, X, train=True, key=jax.random.key(i))[0] for i in (1, 1, 2)]
  equal(noisy[0], noisy[1])
  assert not np.array_equal(noisy[0], noisy[2])
  equal(apply(variables, X)[0], apply(variables, X)[0])
  grads = jax.grad(lambda v: ours.apply(v, X, train=True, key=KEY)[0].sum())(variables)
  assert jax.tree.structure(grads) == jax.tree.structure(variables)


def test_train_keyword_and_variables_of_other_types():
  ours = model.load(f"{HERE}:Keyword")
  variables = ours.init(KEY, X)
  (collection,) = set(variables) - {"params"}
  assert ours.apply(variables, X)[1][collection]["calls"] == 0
  one, state = ours.apply(variables, X, train=True, key=jax.random.key(1))
  two, _ = ours.apply(variables, X, train=True, key=jax.random.key(2))
  assert state[collection]["calls"] == 1
  assert not np.array_equal(one, two)


def test_mistakes():
  with pytest.raises(UserError, match="does not take the keyword 'hiden'; it takes: hidden, rate"):
    model.load(f"{HERE}:Net", {"hiden": 3})
  with pytest.raises(UserError, match="builds no module; expected an nnx Module"):
    model.load(f"{HERE}:bad_factory")
