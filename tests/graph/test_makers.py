"""Activations that are handed on to operations that are no sites: their names, and where they are made."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models

V = {name: models.normal(i, 4, 4) for i, name in enumerate("abc")} | {
  "s": models.normal(7, 4),
  "p": models.normal(8, 3, 4),
  "h": models.normal(6, 2, 2),
}
X = models.normal(9, 2, 3, 4)


def found(fn, variables=V, x=X):
  return {name: maker.site for name, maker in graph.exposed(graph.trace(fn, variables, x)).items()}


class Gate(nn.Module):
  """Squeeze and excite, hard-swish, a concatenation, ReLU6: as nets of mobile phones have them."""

  @nn.compact
  def __call__(self, x):
    x = nn.hard_swish(nn.Conv(4, (3, 3))(x))
    y = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4)(x))
    gate = nn.hard_sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(y.mean((1, 2))))))
    y = nn.Conv(3, (1, 1))(y * gate[:, None, None])
    x = jnp.concatenate([y, nn.relu6(nn.Conv(3, (1, 1))(x))], -1)
    return nn.Dense(3)(nn.relu6(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Block(nn.Module):
  """A transformer's block, its norms in front."""

  @nn.compact
  def __call__(self, x, train=False):
    y = nn.LayerNorm()(nn.Dense(4, name="embed")(x))
    x = x + nn.Dropout(0.5, deterministic=not train)(nn.MultiHeadDotProductAttention(2, name="mix")(y, y))
    y = nn.Dropout(0.5, deterministic=not train)(nn.gelu(nn.Dense(8, name="up")(nn.LayerNorm()(x))))
    return x + nn.Dropout(0.5, deterministic=not train)(nn.Dense(4, name="down")(y))


class Normed(nn.Module):
  """Batch norms that stand as they are, behind convolutions and behind a sum, and dropout between layers."""

  @nn.compact
  def __call__(self, x, train=False):
    norm = lambda x: nn.BatchNorm(use_running_average=not train)(x)
    x = nn.hard_swish(norm(nn.Conv(4, (3, 3))(x)))
    x = nn.relu6(norm(nn.Conv(4, (3, 3), use_bias=False)(x)))
    y = nn.Dropout(0.5, deterministic=not train)(nn.Conv(4, (1, 1))(x))
    x = nn.relu(norm(x + norm(y)))
    x = nn.relu(nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x.mean((1, 2)))))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.sigmoid(x)))


IMAGE = models.normal(1, 2, 8, 8, 3)
NETS = {
  "gate": (
    Gate(),
    IMAGE,
    {
      "Conv_0/kernel:out#1": "Conv_0/kernel",
      "Conv_1/kernel:out": "Conv_1/kernel",  # the mean reads it, too
      "Dense_0/kernel:out#1": "Dense_0/kernel",
      "Conv_2/kernel:out": "Conv_2/kernel",
      "Conv_3/kernel:out#1": "Conv_3/kernel",
      "Dense_0/kernel:gate": "Dense_0/kernel",
    },
  ),
  "block": (
    Block(),
    X,
    {
      "embed/kernel:out#1": "embed/kernel",
      "mix/query/kernel:out#1": "mix/query/kernel",
      "mix/key/kernel:dot:out#1": "mix/key/kernel:dot",
      "mix/out/kernel:add:out#1": "mix/out/kernel:add",
      "up/kernel:out#1": "up/kernel",
    },
  ),
  "normed": (
    Normed(),
    IMAGE,
    {
      "Conv_0/kernel:out#1": "Conv_0/kernel",
      "Conv_2/kernel:add:out#1": "Conv_2/kernel:add",
      "Dense_0/kernel:out#1": "Dense_0/kernel",
    },
  ),
}


@pytest.mark.parametrize("name", NETS)
def test_what_layers_hand_on_to_other_operations(name):
  module, x, expected = NETS[name]
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  apply = lambda v, x: module.apply(v, x)
  assert found(apply, variables, x) == expected
  assert found(apply, variables, x[:1]) == expected
  if name != "gate":

    def train(v, x):
      return module.apply(v, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})[0]

    assert found(train, variables, x) == expected
  mesh, traced = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,)), []
  spec, whole = PartitionSpec("d"), PartitionSpec()
  mapped = jax.shard_map(
    lambda v, x: traced.append(found(apply, v, x)) or x, mesh=mesh, in_specs=(whole, spec), out_specs=spec
  )
  jax.eval_shape(mapped, variables, x)
  assert traced == [expected]


def drop(x):
  return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x / 0.5, 0.0)


def remat(v, x):
  return jax.checkpoint(lambda h: jnp.tanh(h @ v["a"]) @ v["b"])(x)


def branches(v, x):
  here = lambda h: jnp.tanh(h @ v["b"]) @ v["c"]
  return jax.lax.cond(x.sum() > 0, here, lambda h: jnp.maximum(h, 0.0), x @ v["a"])


def layers(v, x):
  step = lambda h, w: (jnp.tanh(h @ w), None)
  return jax.lax.scan(step, x, jnp.stack([v["a"], v["b"]]))[0]


def normalised(v, x):
  """A batch norm with statistics of its own batch, and one spelled with a variance in two passes."""
  h = x @ v["a"]
  mean, var = h.mean((0, 1)), (h * h).mean((0, 1)) - h.mean((0, 1)) ** 2
  h = jax.nn.relu((h - mean) * (jax.lax.rsqrt(var + 1e-5) * v["s"]) + v["s"]) @ v["b"]
  h = (h - h.mean((0, 1))) / jnp.sqrt(h.var((0, 1)) + 1e-5) * v["s"]
  return jnp.tanh(h) @ v["c"]


@jax.custom_jvp
def rule(x, w):
  return jnp.tanh(x @ w)


rule.defjvp(lambda primals, tangents: (rule(*primals), rule(*tangents)))

HAND_ON = {"a:out#1": "a"}
RULES = {
  "an operation": (lambda v, x: jnp.tanh(x @ v["a"] + v["s"]) @ v["b"], HAND_ON),
  "a fused relu": (lambda v, x: jax.nn.relu(x @ v["a"] + v["s"]) @ v["b"], {}),
  "a relu and the operation behind": (lambda v, x: jnp.tanh(jax.nn.relu(x @ v["a"])) @ v["b"], HAND_ON),
  "a relu with another reader beside it": (
    lambda v, x: (h := x @ v["a"]) @ v["b"] + jax.nn.relu(h) @ v["c"],
    {"a:out": "a"},
  ),
  "two relus": (lambda v, x: jax.nn.relu(h := x @ v["a"]) @ v["b"] + jnp.maximum(h, 0) @ v["c"], {}),
  "two relus, and a gate on one": (
    lambda v, x: (h := jax.nn.relu(y := x @ v["a"])) @ v["b"] + (jnp.maximum(y, 0) + h * jnp.sin(x)) @ v["c"],
    {"a:out": "a", "input": None},
  ),
  "a relu behind a reshape": (lambda v, x: jax.nn.relu((x @ v["a"]).reshape(-1, 4)) @ v["b"], {}),
  "a relu6": (lambda v, x: jnp.minimum(jnp.maximum(x @ v["a"], 0.0), 6.0) @ v["b"], {}),
  "a clip beside 0": (lambda v, x: jnp.maximum(x @ v["a"], 0.1) @ v["b"], HAND_ON),
  "a clip at a parameter": (lambda v, x: jnp.maximum(x @ v["a"], v["s"]) @ v["b"], HAND_ON),
  "a norm of channels": (lambda v, x: jnp.tanh((x @ v["a"] - v["s"]) * 0.5 / v["s"] + v["s"]) @ v["b"], HAND_ON),
  "a norm of channels and a relu": (lambda v, x: jax.nn.relu((x @ v["a"] - v["s"]) * v["s"]) @ v["b"], {}),
  "a norm of the batch": (normalised, {"b:out#1": "b"}),
  "a factor that no norm follows": (lambda v, x: jax.nn.relu(x @ v["a"] * 0.5) @ v["b"], HAND_ON),
  "a sum of positions": (lambda v, x: (x @ v["a"] + v["p"]) @ v["b"], HAND_ON),
  "a gate of each example": (
    lambda v, x: (x @ v["a"] * (x.sum((1, 2), keepdims=True))) @ v["b"],
    {"input": None, **HAND_ON},
  ),
  "a gate of each example's channels": (
    lambda v, x: (x @ v["a"] * x.sum(1, keepdims=True)) @ v["b"],
    {"input": None, **HAND_ON},
  ),
  "a gate of other numbers": (
    lambda v, x: (x @ v["a"] * jax.nn.sigmoid(x @ v["b"])) @ v["c"],
    {"a:out": "a", "b:out#1": "b", "b:gate": "b"},
  ),
  "a gate that is spread": (
    lambda v, x: (x @ v["a"] * jnp.clip(x[:, :1] @ v["b"] / 2 + 0.5, 0, 1)) @ v["c"],
    {"input": None, "a:out": "a", "b:out#1": "b", "b:gate": "b"},
  ),
  "a gate of other numbers of the same layer": (
    lambda v, x: ((h := x @ v["a"])[..., :2] * jax.nn.sigmoid(h[..., 2:])) @ v["b"][:2],
    {"a:out#1": "a", "a:gate": "a"},
  ),
  "a gate of the same numbers": (lambda v, x: ((h := x @ v["a"]) * jnp.tanh(2 * h)) @ v["b"], HAND_ON),
  "a gate of what is no layer's": (
    lambda v, x: (jnp.sin(x @ v["a"]) * jnp.tanh(x @ v["b"])) @ v["c"],
    {"a:out": "a", "b:out#1": "b"},
  ),
  "a norm of each example": (lambda v, x: ((h := x @ v["a"]) - h.mean(-1, keepdims=True)) @ v["b"], HAND_ON),
  "a norm behind a sum": (lambda v, x: (x @ v["a"] + x) * v["s"] @ v["b"], {"a:add:out#1": "a:add"}),
  "dropout": (lambda v, x: drop(jax.nn.relu(drop(x @ v["a"]))) @ v["b"], {}),
  "dropout by a factor": (
    lambda v, x: x @ v["a"] * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape).astype("float32") * 2 @ v["b"],
    {},
  ),
  "dropout and an operation": (lambda v, x: jnp.tanh(drop(x @ v["a"])) @ v["b"], HAND_ON),
  "zeros around it": (lambda v, x: jnp.pad(x @ v["a"], ((0, 0), (1, 1), (0, 0))) @ v["b"], {}),
  "zeros around it in one place": (
    lambda v, x: (jnp.pad(h := x @ v["a"], ((0, 0), (1, 1), (0, 0))) @ v["b"], h @ v["c"]),
    HAND_ON,
  ),
  "others around it": (lambda v, x: jnp.pad(x @ v["a"], ((0, 0), (1, 1), (0, 0)), constant_values=1) @ v["b"], HAND_ON),
  "a name": (lambda v, x: checkpoint_name(x @ v["a"], "here") @ v["b"], {}),
  "nothing that counts": (lambda v, x: (jnp.tanh(h := x @ v["a"]), h @ v["b"])[1], {}),
  "the output": (lambda v, x: (h := x @ v["a"], jnp.tanh(h)), {"a:out": "a"}),
  "an input": (lambda v, x: jnp.tanh(x) + x @ v["a"], {"input": None}),
  "a mean over time in front": (lambda v, x: (x @ v["a"]).mean(0) @ v["b"], HAND_ON),
  "a checkpoint": (remat, HAND_ON),
  "branches": (branches, {"a:out": "a", "b:out#1": "b"}),
  "a relu in a branch": (
    lambda v, x: jax.lax.cond(x.sum() > 0, lambda h: jax.nn.relu(h) @ v["b"], lambda h: x @ v["c"], x @ v["a"]),
    {},
  ),
  "a loop that reads what is made outside": (
    lambda v, x: jax.lax.while_loop(lambda c: c.sum() < 0, lambda c, h=x @ v["a"]: c + jnp.sin(h), x),
    {},
  ),
  "a bias of heads": (
    lambda v, x: jnp.tanh((x @ v["a"]).reshape(-1, 3, 2, 2) + v["h"]).reshape(-1, 3, 4) @ v["b"],
    HAND_ON,
  ),
  "a custom rule": (lambda v, x: rule(x, v["a"]) @ v["b"], {}),
  "layers of a scan": (layers, {"a:out": "a"}),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name):
  fn, expected = RULES[name]
  assert found(fn) == expected
  assert found(jax.jit(fn)) == found(fn, x=X[:1]) == expected


def test_a_replaced_activation_is_that_of_all_readers():
  """One of a custom rule, one inside of a jitted function, an input, and one of a scan, whose layers have their own."""

  def fn(v, x):
    h = jax.nn.relu(x @ v["a"])
    y = jax.jit(lambda h: jnp.tanh(h @ v["b"]))(h * jnp.sin(x))
    return layers(v, h + y)

  def by_hand(v, x):
    x = x + 1
    h = jax.nn.relu(x @ v["a"]) + 1
    y = h + jnp.tanh((h * jnp.sin(x)) @ v["b"] + 1)
    for i, name in enumerate("ab"):
      y = jnp.tanh(y @ v[name] + 10 * (i + 1))
    return y

  names = graph.exposed(graph.trace(fn, V, X))
  visit = lambda op, inputs, extras: ((inputs[0] + extras.get(op.name, 1.0),), {f"{op.name}": inputs[0].sum()})
  scanned = next(name for name, maker in names.items() if maker.site == "a#1")
  extras = {scanned: 10 * jnp.arange(1.0, 3.0)}
  changed = graph.rewrite(fn, visit, select=lambda op: op.kind == "tensor", tensors=names)
  out, written = jax.jit(changed)(extras, V, X)
  np.testing.assert_allclose(out, by_hand(V, X), rtol=1e-5, atol=1e-5)
  assert written.keys() == names.keys() and written[scanned].shape == (2,)
  np.testing.assert_allclose(written["input"], X.sum(), rtol=1e-5)
  nothing = graph.rewrite(fn, lambda op, inputs, extras: None, tensors=names)
  assert (
    jax.jit(lambda v, x: nothing({}, v, x)[0]).lower(V, X).as_text()
    == jax.jit(lambda v, x: fn(v, x)).lower(V, X).as_text()
  )


def test_it_is_read_by_its_name_and_an_unknown_one_is_refused():
  fn, _ = RULES["an operation"]
  _, read = graph.taps(fn, ["a:out#1", "a:out"])(V, X)
  np.testing.assert_allclose(read["a:out#1"], X @ V["a"] + V["s"], rtol=1e-5)
  np.testing.assert_allclose(read["a:out"], jnp.tanh(X @ V["a"] + V["s"]), rtol=1e-5)
  with pytest.raises(UserError, match="unknown exposed activation 'b:out'"):
    graph.rewrite(fn, None, tensors=["b:out"])({}, V, X)


def test_a_deep_model_takes_as_long_as_it_is_deep():
  """The readers of each value are looked at once: of a value that all layers read, too."""

  def deep(layers):
    def fn(v, x):
      skip = h = x @ v["a"]
      for _ in range(layers):
        h = jnp.tanh(drop(jnp.pad(h, ((0, 0), (1, 1), (0, 0)))[:, 1:-1] @ v["b"]) * skip)
      return h

    return graph.trace(fn, V, X)

  def calls(layers):
    traced, counted = deep(layers), 0

    def count(frame, event, argument):
      nonlocal counted
      counted += event == "call"

    sys.setprofile(count)
    graph.exposed(traced)
    sys.setprofile(None)
    return counted

  assert calls(80) < 2.5 * calls(40)
