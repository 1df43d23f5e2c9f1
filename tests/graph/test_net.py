"""A function, its edits and its variables as one value, in evaluation and in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from tests.graph import models


class Dropped(nn.Module):
  """A batch norm, dropout, and a head."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Conv(6, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(3)(x)


def fn(variables, x, *, train=False, key=None):
  state = {name: tree for name, tree in variables.items() if name != "params"}
  if not train:
    return Dropped().apply(variables, x), state
  out, new = Dropped().apply(variables, x, train=True, mutable=list(state), rngs={"dropout": key})
  return out, {**state, **new}


@pytest.fixture(scope="module")
def whole():
  x = models.images(4)
  return graph.net_of(fn, models.made(Dropped(), x), x)


KEY = jax.random.key(3)


def equal(a, b, **kwargs):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-6, **kwargs}), a, b)


def test_without_edits_it_is_the_function(whole):
  x = models.images(2)
  equal(whole.apply(whole.variables, x), fn(whole.variables, x), rtol=0, atol=0)
  equal(whole.apply(whole.variables, x, train=True, key=KEY), fn(whole.variables, x, train=True, key=KEY), rtol=0)


def test_a_folded_net_trains_with_dropout_and_without_its_norms(whole):
  net, x = graph.fold_batch_norms(whole), models.images(4)
  assert set(net.variables) == {"params"} and len(net.edits) == 2
  out, state = jax.jit(lambda v, x: net.apply(v, x, train=True, key=KEY))(net.variables, x)
  assert state == {}
  p = net.variables["params"]
  y = nn.relu(nn.Conv(4, (3, 3)).apply({"params": p["Conv_0"]}, x))
  y = nn.relu(nn.Conv(6, (3, 3)).apply({"params": p["Conv_1"]}, y)).mean((1, 2))
  whole_out, _ = fn(whole.variables, x, train=True, key=KEY)
  assert np.abs(out - whole_out).max() > 1e-3  # statistics of the batch are gone
  mask = jax.make_jaxpr(lambda v, x: net.apply(v, x, train=True, key=KEY))(net.variables, x)
  assert "random_bits" in str(mask) and "rsqrt" not in str(mask)
  plain = y @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  equal(net.infer(net.variables, x), plain)
  many = jax.vmap(lambda key: net.apply(net.variables, x, train=True, key=key)[0])(jax.random.split(KEY, 4000))
  equal(many.mean(0), plain, rtol=0.1, atol=0.1)


def test_a_gradient_in_training_mode_reaches_every_leaf(whole):
  net, x = graph.fold_batch_norms(whole), models.images(4)
  loss = jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, x, train=True, key=KEY)[0] ** 2)))
  for name, g in named_leaves(loss(net.variables)).items():
    assert jnp.any(g != 0), name


def test_a_cut_net_trains_and_updates_the_remaining_statistics(whole):
  keep = [0, 2, 3]
  net, x = graph.keep_channels(whole, {"Conv_0/kernel": keep}), models.images(4)
  v = whole.variables
  ones = jnp.zeros(4).at[jnp.array(keep)].set(1.0)[:, None]
  masked = {**v, "params": {**v["params"], "Conv_1": {"kernel": v["params"]["Conv_1"]["kernel"] * ones}}}
  out, state = net.apply(net.variables, x, train=True, key=KEY)
  expected, after = fn(masked, x, train=True, key=KEY)
  equal(out, expected)
  equal(
    state["batch_stats"]["BatchNorm_0"], jax.tree.map(lambda a: a[jnp.array(keep)], after["batch_stats"]["BatchNorm_0"])
  )
  equal(state["batch_stats"]["BatchNorm_1"], after["batch_stats"]["BatchNorm_1"])


@pytest.mark.parametrize("train", [False, True])
def test_edits_in_any_order_give_the_same_net(whole, train):
  x = models.images(4)
  one = graph.keep_channels(graph.fold_batch_norms(whole), {"Conv_0/kernel": [1, 2], "Conv_1/kernel": [0, 3, 4]})
  other = graph.keep_channels(whole, {"Conv_0/kernel": [1, 2]})
  other = graph.keep_channels(graph.fold_batch_norms(other), {"Conv_1/kernel": [0, 3, 4]})
  third = graph.fold_batch_norms(graph.permute(whole, "Conv_0/kernel", 3, [2, 1, 3, 0]))
  third = graph.keep_channels(third, {"Conv_0/kernel": [0, 1], "Conv_1/kernel": [0, 3, 4]})
  third = graph.permute(third, "Conv_0/kernel", 3, [1, 0])
  equal(one.variables, other.variables, rtol=1e-6)
  equal(one.variables, third.variables, rtol=1e-6)
  results = [net.apply(net.variables, x, train=train, key=KEY if train else None) for net in (one, other, third)]
  assert results[0][1] == {}
  equal(results[0], results[1])
  equal(results[0], results[2])


def test_the_edited_net_equals_the_fold_over_its_edits(whole):
  net = graph.keep_channels(graph.fold_batch_norms(whole), {"Conv_0/kernel": [1, 2]})
  again = graph.edit(lambda v, x: fn(v, x)[0], list(net.edits), graph.shapes(whole.variables))
  for batch in (1, 3):
    x = models.images(batch)
    equal(again(net.variables, x), net.infer(net.variables, x), rtol=0, atol=0)


def test_a_plain_function_has_one_mode_and_any_output():
  v, x = {"a": models.normal(0, 3, 4), "b": models.normal(1, 4, 2)}, models.normal(2, 5, 3)
  net = graph.net(lambda v, x: {"y": (x @ v["a"]) @ v["b"], "x": x}, v, x)
  net = graph.keep_channels(net, {"a": [0, 3]})
  out, state = net.apply(net.variables, x, train=True, key=KEY)
  assert state == {} and set(out) == {"x", "y"}
  equal(out["y"], x @ v["a"][:, [0, 3]] @ v["b"][jnp.array([0, 3])])


class Twice(nn.Module):
  """In training something else reads what the batch norm normalises."""

  @nn.compact
  def __call__(self, x, train=False):
    y = nn.Dense(4)(x)
    z = nn.BatchNorm(use_running_average=not train)(y)
    return nn.Dense(2)(nn.relu(z + 0.1 * jnp.tanh(y) if train else z))


class Between(nn.Module):
  """Dropout stands between the layer and its norm."""

  @nn.compact
  def __call__(self, x, train=False):
    y = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
    return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(y))


@pytest.mark.parametrize(
  "module, words",
  [(Twice(), "in training mode '.*' reads what it normalises"), (Between(), "in training mode 0 chains of")],
)
def test_a_norm_that_cannot_go_in_training_is_refused_there_alone(module, words):
  x = models.normal(0, 6, 3)
  variables = models.made(module, x)

  def apply(v, x, *, train=False, key=None):
    if not train:
      return module.apply(v, x), {"batch_stats": v["batch_stats"]}
    return module.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})

  net = graph.fold_batch_norms(graph.net_of(apply, variables, x))
  assert len(net.edits) == 1
  equal(net.infer(net.variables, x), module.apply(variables, x))
  with pytest.raises(UserError, match=f"the batch norm after 'Dense_0/kernel' is folded, .*{words}"):
    net.apply(net.variables, x, train=True, key=KEY)


@pytest.mark.parametrize(
  "edit",
  [
    graph.fold_batch_norms,
    lambda net: graph.keep_channels(net, {"a": [0]}),
    lambda net: graph.permute(net, "a", 1, [1, 0]),
    lambda net: graph.add_bias(net, "a"),
    lambda net: graph.move_scale(net, "a", 1, [1.0, 2.0]),
    lambda net: graph.replace_head(net, "a", [["relu"]], {}),
  ],
)
@pytest.mark.parametrize("given", [jnp.tanh, {"a": jnp.ones((2, 2))}, None])
def test_what_is_no_net_is_refused(edit, given):
  with pytest.raises(UserError, match=f"the net is a {type(given).__name__}; expected a graph.Net"):
    edit(given)


def test_what_is_no_function_is_refused():
  x, v = jnp.ones((1, 2)), {"a": jnp.ones((2, 2))}
  net = graph.net(lambda v, x: x @ v["a"], v, x)
  for call in (
    lambda fn: graph.trace(fn, v, x),
    lambda fn: graph.observe(fn, v, [x], {"a:out": [graph.mean()]}),
    lambda fn: graph.groups(fn, v, x),
    lambda fn: graph.net(fn, v, x),
  ):
    with pytest.raises(UserError, match=r"the function is a Net; expected fn\(variables, \*inputs\)"):
      call(net)
