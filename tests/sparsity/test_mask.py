"""Pruning a trained model at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsity
from leanax import graph
from leanax.core.errors import UserError
from tests.numbers import array
from tests.sparsity import nets


def mask(tree, *given, **keywords):
  """`sparsity.mask` as one program."""
  return jax.jit(lambda tree: sparsity.mask(tree, *given, **keywords))(tree)


def test_magnitude_against_numpy():
  tree = nets.params()
  got = mask(tree, density=0.3)
  for name in tree:
    w = np.asarray(tree[name]["kernel"])
    np.testing.assert_array_equal(got[name]["kernel"], w * nets.oracle_mask(w, round(w.size * 0.3)))
    np.testing.assert_array_equal(got[name]["bias"], tree[name]["bias"])


def test_zeros_are_held():
  tree = mask(nets.params(), density=0.2, allocation="global")
  for _, after, state in nets.train(sparsity.hold(optax.adamw(0.1)), tree, 3):
    np.testing.assert_array_equal(after["Dense_0"]["kernel"] != 0, tree["Dense_0"]["kernel"] != 0)
    nets.assert_bit_zero(sparsity.masks(state)["Dense_0"]["kernel"], after["Dense_0"]["kernel"])


def test_variables_of_several_groups():
  """Of {"params": ..., "batch_stats": ...} the parameters are pruned, by their gradients too."""
  variables = {"params": nets.params(), "batch_stats": {"mean": {"kernel": jnp.ones(3)}}}
  gradients = jax.tree.map(jnp.ones_like, variables)
  got = mask(variables, sparsity.criteria.taylor(), density=0.3, gradients=gradients)
  w = np.asarray(variables["params"]["Dense_0"]["kernel"])
  np.testing.assert_array_equal(got["params"]["Dense_0"]["kernel"], w * nets.oracle_mask(w, 46))
  np.testing.assert_array_equal(got["batch_stats"]["mean"]["kernel"], np.ones(3))


def test_by_threshold_rules_and_stacked_layers():
  w = {"kernel": jnp.array([[[1.0, -2.0], [0.5, 3.0]], [[0.1, 0.2], [0.3, 0.4]]])}
  got = mask(w, threshold=1.5)
  np.testing.assert_array_equal(got["kernel"], [[[0, -2], [0, 3]], [[0, 0], [0, 0]]])
  got = mask(w, density=0.5, stacked=["kernel"])
  np.testing.assert_array_equal(got["kernel"] != 0, [[[0, 1], [0, 1]], [[0, 0], [1, 1]]])
  got = mask(w, density=0.5, rules=[("kernel", 0.25)])
  np.testing.assert_array_equal(got["kernel"] != 0, [[[0, 1], [0, 1]], [[0, 0], [0, 0]]])


def test_compiled_and_of_nnx():
  tree = nets.params()
  want = sparsity.mask(tree, density=0.4)
  jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda t: sparsity.mask(t, density=0.4))(tree), want)
  state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
  got = sparsity.mask(state, pattern=sparsity.patterns.n_m(2, 4))
  assert jax.tree.structure(got) == jax.tree.structure(state)
  assert int(jnp.sum(got["kernel"][...] != 0)) == 16


def test_of_a_net_whose_layers_are_scanned():
  """Each layer of the stack is a layer of its own, N:M runs along its inputs, and the net computes with the zeros."""
  rng = np.random.default_rng(0)
  shapes = {"stem": {"kernel": (6, 8)}, "layers": {"kernel": (3, 8, 8), "gain": (3, 8)}, "head": {"kernel": (8, 2)}}
  params = jax.tree.map(lambda s: array(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: type(s) is tuple)
  variables = {"params": params, "stats": {"moving": jnp.ones((3, 8))}}

  def fn(v, x):
    p = v["params"]

    def layer(x, w):
      return jax.nn.relu(x @ w[0] * w[1] + w[2]), None

    xs = (p["layers"]["kernel"], p["layers"]["gain"], v["stats"]["moving"])
    return jax.lax.scan(layer, x @ p["stem"]["kernel"], xs)[0] @ p["head"]["kernel"]

  x = jnp.ones((2, 6))
  net = graph.net(fn, variables, x)
  rules = [("layers/kernel", True)]
  pruned = sparsity.mask(net, density=0.25, rules=rules)
  kernel = params["layers"]["kernel"]
  want = np.stack([w * nets.oracle_mask(w, 16) for w in np.asarray(kernel)])
  np.testing.assert_array_equal(pruned.variables["params"]["layers"]["kernel"], want)
  by_hand = {**variables, "params": {**params, "layers": {**params["layers"], "kernel": jnp.asarray(want)}}}
  np.testing.assert_array_equal(pruned.infer(pruned.variables, x), fn(by_hand, x))
  small = graph.keep_channels(pruned, {"stem/kernel": [0, 1, 2, 3, 5]})
  np.testing.assert_array_equal(
    small.variables["params"]["layers"]["kernel"], want[:, [0, 1, 2, 3, 5]][:, :, [0, 1, 2, 3, 5]]
  )
  blocks = sparsity.mask(net, pattern=sparsity.patterns.n_m(2, 4), rules=rules).variables["params"]["layers"]["kernel"]
  np.testing.assert_array_equal((np.asarray(blocks) != 0).reshape(3, 2, 4, 8).sum(2), 2)
  grads = jax.tree.map(jnp.ones_like, variables)
  taylor = sparsity.mask(net, sparsity.criteria.taylor(), density=0.25, rules=rules, gradients=grads)
  np.testing.assert_array_equal(taylor.variables["params"]["layers"]["kernel"], want)


def test_seeds_of_a_random_mask():
  net = graph.net(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((8, 8))}, jnp.ones((1, 8)))
  one, again, other = (
    sparsity.mask(net, sparsity.criteria.random(), density=0.5, seed=seed).variables["kernel"] for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, again)
  assert np.any(one != other) and one.sum() == other.sum() == 32


def test_mistakes():
  tree = nets.params()
  for gradients, sentence in (
    (None, "are missing"),
    ({"kernel": jnp.ones(2)}, "have another structure or other shapes"),
    (jax.tree.map(lambda x: x[:1], tree), "have another structure or other"),
  ):
    with pytest.raises(UserError, match=f"sparsity.mask: the gradients {sentence}"):
      sparsity.mask(tree, sparsity.criteria.taylor(), density=0.5, gradients=gradients)
  for number in (jnp.nan, jnp.inf):
    gradients = {**tree, "Dense_0": {**tree["Dense_0"], "kernel": tree["Dense_0"]["kernel"].at[0, 0].set(number)}}
    with pytest.raises(UserError, match="the gradient of 'Dense_0/kernel' holds NaN or infinity"):
      sparsity.mask(tree, sparsity.criteria.taylor(), density=0.5, gradients=gradients)
    rules = [("Conv_0/kernel", True)]  # what is not ranked does not matter
    sparsity.mask(tree, sparsity.criteria.taylor(), density=0.5, gradients=gradients, rules=rules)
  with pytest.raises(UserError, match="either density= or threshold="):
    sparsity.mask(tree)
  with pytest.raises(UserError, match="'Conv_0/kernel' has 2 inputs, which groups of 4 do not divide"):
    sparsity.mask(tree, pattern=sparsity.patterns.n_m(2, 4))
