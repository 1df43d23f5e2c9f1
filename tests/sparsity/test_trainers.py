"""Sparse optimizers inside what trains flax models, and inside optax's wrappers; nobody passes `step=` there."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import sparsity
from leanax.core.errors import UserError
from tests.numbers import array
from tests.sparsity import nets

SCHEDULE = sparsity.cubic(2, 6, 2)
WANTED = [1.0, 1.0, 1.0, 1.0, 0.5625, 0.5625, 0.5, 0.5]  # after each update: 0.5 + 0.5 (1 - t / 4)^3


class Net(nnx.Module):
  def __init__(self, rngs):
    self.a = nnx.Linear(4, 8, rngs=rngs)
    self.b = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    return self.b(nnx.relu(self.a(x)))


def loss(model, x):
  return jnp.mean((model(x) - 1.0) ** 2)


def sparse(**keywords):
  return sparsity.magnitude(optax.adam(0.1), density=0.5, schedule=SCHEDULE, **keywords)


def x():
  return array(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("jit", [False, True])
def test_nnx_optimizer(jit):
  model = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, sparse(), wrt=nnx.Param)

  def step(model, optimizer, x):
    optimizer.update(model, nnx.grad(loss)(model, x))

  step = nnx.jit(step) if jit else step
  reference = {name: jnp.asarray(getattr(model, name).kernel[...]) for name in "ab"}
  reference = {n: {"kernel": w, "bias": jnp.zeros(w.shape[1])} for n, w in reference.items()}
  tx = sparse()
  state, update = tx.init(reference), jax.jit(tx.update)
  slope = nnx.jit(nnx.grad(loss))
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int
    for i, density in enumerate(WANTED):
      gradients = jax.tree.map(lambda g: g[...], nnx.to_pure_dict(slope(model, x())))
      updates, state = update(gradients, state, reference, step=i)
      reference = optax.apply_updates(reference, updates)
      step(model, optimizer, x())
      masks = sparsity.masks(optimizer.opt_state)
      for name in "ab":
        kernel = getattr(model, name).kernel[...]
        assert int(jnp.sum(masks[name]["kernel"])) == round(kernel.size * density)
        nets.assert_bit_zero(masks[name]["kernel"], kernel)
        np.testing.assert_allclose(kernel, reference[name]["kernel"], rtol=1e-4, atol=1e-5)
  counted = sparsity.summary(nnx.state(model, nnx.Param), masks)
  assert counted["a/kernel"] == (32, 16, 16) and counted["a/bias"].kept == 8


def test_nnx_rules_and_hold():
  model = Net(nnx.Rngs(0))
  model.a.kernel[...] = model.a.kernel[...].at[0].set(0.0)
  optimizer = nnx.Optimizer(model, sparsity.hold(optax.sgd(0.1), rules=[("a/kernel", True)]), wrt=nnx.Param)
  for _ in range(2):
    optimizer.update(model, nnx.grad(loss)(model, x()))
  np.testing.assert_array_equal(model.a.kernel[0], jnp.zeros(8))
  assert np.all(model.a.kernel[1:] != 0)
  with pytest.raises(UserError, match="'c/kernel' matches nothing; names near it: b/kernel, a/kernel"):
    nnx.Optimizer(model, sparse(rules=[("c/kernel", True)]), wrt=nnx.Param)


def test_nnx_state_by_hand():
  """The tree of nnx's own variables, at `init` and at each update."""
  params, tx = nnx.state(Net(nnx.Rngs(0)), nnx.Param), sparse()
  state, update = tx.init(params), jax.jit(tx.update)
  gradients = jax.tree.map(jnp.ones_like, params)
  with jax.numpy_dtype_promotion("standard"):
    for _ in WANTED:
      updates, state = update(gradients, state, params)
      params = optax.apply_updates(params, updates)
  assert isinstance(params["a"]["kernel"], nnx.Variable)
  assert sparsity.summary(params, sparsity.masks(state))["a/kernel"] == (32, 16, 16)


def test_train_state_of_flax():
  net = nn.Dense(6)
  state = TrainState.create(apply_fn=net.apply, params=net.init(jax.random.key(0), x())["params"], tx=sparse())

  @jax.jit
  def step(state, x):
    gradients = jax.grad(lambda p: jnp.mean((state.apply_fn({"params": p}, x) - 1.0) ** 2))(state.params)
    return state.apply_gradients(grads=gradients)

  with jax.numpy_dtype_promotion("standard"):
    for density in WANTED:
      state = step(state, x())
      mask = sparsity.masks(state.opt_state)["kernel"]
      assert int(jnp.sum(mask)) == round(24 * density)
      nets.assert_bit_zero(mask, state.params["kernel"])
  assert int(state.opt_state.updates) == len(WANTED)


def test_a_step_that_is_passed_wins():
  w = {"kernel": jnp.arange(1.0, 9.0).reshape(4, 2)}
  tx = sparsity.magnitude(optax.sgd(0.1), density=0.5, schedule=sparsity.one_shot(100))
  _, state = tx.update(w, tx.init(w), w, step=100)
  assert int(state.done) == 1 and int(state.updates) == 101
  _, state = tx.update(w, tx.init(w), w)
  assert int(state.done) == 0 and int(state.updates) == 1


def outer():
  factory = optax.inject_hyperparams(
    lambda rate: sparsity.magnitude(optax.sgd(rate), density=0.5, schedule=sparsity.one_shot(1))
  )
  tx = sparsity.magnitude(optax.sgd(0.1), density=0.5, schedule=sparsity.one_shot(1))
  return {
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), tx), 1),
    "apply_if_finite": (optax.apply_if_finite(tx, 3), 1),
    "multi_steps": (optax.MultiSteps(tx, 3).gradient_transformation(), 3),
    "masked": (optax.masked(tx, {"Conv_0": False, "Dense_0": True}), 1),
    "inject_hyperparams": (factory(rate=0.1), 1),
    "partition": (optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"Conv_0": "b", "Dense_0": "a"}), 1),
    "named_chain": (optax.named_chain(("clip", optax.clip(1.0)), ("sparse", tx)), 1),
  }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", outer())
def test_optax_outside(name):
  """Pruned from the second update on, counted without `step=`."""
  tx, every = outer()[name]
  tree = nets.params()
  state, update = tx.init(tree), jax.jit(tx.update)
  for call in range(2 * every):
    before = tree
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an int
      updates, state = update(nets.gradients(tree, call), state, tree)
    tree = optax.apply_updates(tree, updates)
    kept = np.mean(np.asarray(tree["Dense_0"]["kernel"]) != 0)
    assert kept == (1.0 if call < 2 * every - 1 else 76 / 153)
  pruned = np.asarray(tree["Dense_0"]["kernel"]) == 0
  nets.assert_bit_zero(~pruned, tree["Dense_0"]["kernel"])
  assert np.any(np.asarray(before["Dense_0"]["kernel"])[pruned] != 0)
  with jax.numpy_dtype_promotion("standard"):
    sparsity.check(tx, nets.params())


def test_an_update_that_is_refused_is_not_counted():
  tx = optax.apply_if_finite(sparsity.magnitude(optax.sgd(0.1), density=0.5, schedule=sparsity.one_shot(1)), 5)
  tree = nets.params()
  state, update = tx.init(tree), jax.jit(tx.update)
  bad = jax.tree.map(lambda p: p * jnp.nan, tree)
  done = []
  for gradients in (tree, bad, bad, tree):
    _, state = update(gradients, state, tree)
    done.append((int(state.inner_state.done), int(state.inner_state.updates)))
  assert done == [(0, 1), (0, 1), (0, 1), (1, 2)]


def test_a_density_that_is_traced():
  tree = nets.params()
  with pytest.raises(UserError, match="density is .*Tracer.*; expected a density"):
    jax.jit(lambda d: sparsity.magnitude(optax.sgd(0.1), density=d).init(tree))(0.5)
