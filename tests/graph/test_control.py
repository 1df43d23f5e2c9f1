"""Scans, checkpoints, branches, loops and custom rules, left alone, replaced inside, and rebuilt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models


def nothing(op, inputs, extras):
  return None


def dense(key, *shape):
  return models.normal(key, *shape) / 2


def layer(w, b, x):
  return jax.nn.relu(x @ w + b) + x


LAYERS = {"params": {"layers": {"kernel": dense(0, 3, 4, 4), "bias": dense(1, 3, 4)}, "head": dense(2, 4, 2)}}
X = dense(3, 5, 4)


def scanned(remat):
  body = jax.checkpoint(layer, prevent_cse=False) if remat else layer

  def fn(variables, x):
    p = variables["params"]
    x, means = jax.lax.scan(lambda x, wb: (body(*wb, x), x.mean()), x, (p["layers"]["kernel"], p["layers"]["bias"]))
    return x @ p["head"], means

  return fn


def unrolled(variables, x):
  p, means = variables["params"], []
  for i in range(3):
    means.append(x.mean())
    x = layer(p["layers"]["kernel"][i], p["layers"]["bias"][i], x)
  return x @ p["head"], jnp.stack(means)


def observe(op, inputs, extras):
  """A learned step for each kernel, keyed by operation, and a maximum of what it reads, keyed by tensor."""
  if op.kind != "dot":
    return None
  w, tensor = inputs[1], op.inputs[0].tensor
  step = extras[op.name]
  rounded = step * (w / step + jax.lax.stop_gradient(jnp.round(w / step) - w / step))
  highest = 0.9 * extras.get(tensor, jnp.float32(0)) + 0.1 * jnp.abs(inputs[0]).max()
  return op.bind(inputs[0], rounded), {tensor: highest}


@pytest.mark.parametrize("remat", [False, True])
def test_learned_steps_and_observers_in_a_scan_equal_the_unrolled_model(remat):
  inside, outside = graph.rewrite(scanned(remat), observe), graph.rewrite(unrolled, observe)
  steps = jnp.array([0.25, 0.125, 0.5])
  stacked = {"layers/kernel": steps, "head": jnp.float32(0.125)}
  names = ["layers/kernel", "layers/kernel#1", "layers/kernel#2"]
  flat = dict(zip(names, steps), head=jnp.float32(0.125))

  def loss(rewritten, extras, variables):
    (out, _), state = rewritten(extras, variables, X)
    return jnp.sum(out**2), state

  def run(rewritten, extras):
    return jax.jit(jax.value_and_grad(lambda e, v: loss(rewritten, e, v), (0, 1), has_aux=True))(extras, LAYERS)

  (one, state), (steps_one, grads_one) = run(inside, stacked)
  (other, expected), (steps_other, grads_other) = run(outside, flat)
  np.testing.assert_allclose(one, other, rtol=1e-6)
  reader = "layers/kernel:in"
  assert set(state) == {"layers/kernel", "head", reader, "layers/kernel:add:scanned:out"}
  tensors = ["input", "layers/kernel:add:out", "layers/kernel#1:add:out"]
  np.testing.assert_allclose(state[reader], jnp.stack([expected[name] for name in tensors]), rtol=1e-6)
  np.testing.assert_allclose(steps_one["layers/kernel"], jnp.stack([steps_other[n] for n in names]), rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads_one, grads_other)
  # A second call takes the stacked state in again.
  again = inside({**stacked, **{reader: state[reader]}}, LAYERS, X)[1]
  np.testing.assert_allclose(again[reader], 1.9 * state[reader], rtol=1e-5)


def test_macs_and_taps_of_a_scan():
  found = graph.trace(scanned(True), LAYERS, X)
  assert found.sites["layers/kernel"].macs == 3 * 5 * 4 * 4
  assert found.sites["layers/kernel"].repeats == 3
  assert found.sites["layers/bias"].site == "layers/kernel"
  _, taps = graph.taps(scanned(True), ["layers/kernel"])(LAYERS, X)
  assert taps["layers/kernel"].shape == (3, 5, 4)


def test_an_extra_with_a_foreign_name_in_a_scan_is_refused():
  again = graph.rewrite(scanned(False), lambda op, i, e: (op.bind(*i), {"own": 1}) if op.kind == "dot" else None)
  with pytest.raises(UserError, match="'own' was written inside a scan"):
    again({}, LAYERS, X)


def test_branches_share_their_extras():
  def fn(variables, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ variables["a"], lambda x: x @ variables["b"], x)

  variables = {"a": dense(0, 4, 4), "b": dense(1, 4, 4)}

  def visit(op, inputs, extras):
    if op.kind == "dot":
      return op.bind(inputs[0], 2.0 * inputs[1]), {op.name: extras.get(op.name, jnp.float32(0)) + 1}

  again = jax.jit(graph.rewrite(fn, visit))
  for sign in (1.0, -1.0):
    x = jnp.abs(X) * sign
    out, extras = again({}, variables, x)
    np.testing.assert_allclose(out, 2 * fn(variables, x), rtol=1e-6)
    assert extras == {"a": float(sign > 0), "b": float(sign < 0)}
    assert again({"a": jnp.float32(4), "b": jnp.float32(7)}, variables, x)[1] == {
      "a": 4 + (sign > 0),
      "b": 7 + (sign < 0),
    }


def on_platforms(variables, x):
  return jax.lax.platform_dependent(x, cpu=lambda x: x @ variables["a"], default=lambda x: x @ variables["b"])


@pytest.mark.parametrize("everything", [False, True])
def test_branches_by_platform(everything):
  """One of them runs, which is known when the program is lowered."""
  variables = {"a": dense(0, 4, 4), "b": dense(1, 4, 4)}
  again = graph.rewrite(on_platforms, nothing, everything=everything)
  np.testing.assert_array_equal(jax.jit(again)({}, variables, X)[0], jax.jit(on_platforms)(variables, X))
  doubled = graph.rewrite(on_platforms, lambda op, i, e: (op.bind(i[0], 2.0 * i[1]), {}) if op.kind == "dot" else None)
  np.testing.assert_allclose(jax.jit(doubled)({}, variables, X)[0], 2 * (X @ variables["a"]), rtol=1e-6)
  assert [op.branches[0][1] for op in graph.trace(on_platforms, variables, X).sites.values() if op.macs] == [0, 1]


@pytest.mark.parametrize("everything", [False, True])
def test_a_diagonal_is_traced(everything):
  """Of it jax makes branches by platform."""
  fn = lambda variables, x: jnp.diagonal(x[:4] @ variables["w"])
  again = graph.rewrite(fn, nothing, everything=everything)
  variables = {"w": dense(0, 4, 4)}
  np.testing.assert_array_equal(again({}, variables, X)[0], fn(variables, X))


def test_operations_mapped_over_devices_are_counted_and_cannot_be_replaced():
  mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
  fn = lambda variables, x: jax.nn.relu(split(x, variables["a"])) @ variables["b"]
  variables, x = {"a": dense(0, 4, 4), "b": dense(1, 4, 2)}, dense(5, 8, 4)
  found = graph.trace(fn, variables, x)
  assert {name: op.frozen for name, op in found.sites.items()} == {"a": "inside a shard_map", "b": None, "output": None}
  assert found.total == 8 * 4 * 4 + 8 * 4 * 2
  for everything in (False, True):
    again = graph.rewrite(fn, nothing, everything=everything)
    np.testing.assert_array_equal(jax.jit(again)({}, variables, x)[0], jax.jit(fn)(variables, x))
  again = graph.rewrite(fn, lambda op, inputs, extras: (op.bind(*inputs), {}) if op.kind == "dot" else None)
  with pytest.raises(UserError, match="'a' cannot be replaced: it is inside a shard_map"):
    again({}, variables, x)


def test_a_ragged_dot_is_counted():
  fn = lambda variables, x: jax.lax.ragged_dot(x, variables["experts"], jnp.array([3, 2]))
  found = graph.trace(fn, {"experts": dense(0, 2, 4, 3)}, X)
  assert (found.sites["experts"].kind, found.total) == ("ragged_dot", 5 * 4 * 3)


def in_a_loop(variables, x):
  return jax.lax.while_loop(lambda x: jnp.abs(x).sum() < 50, lambda x: 2.0 * x @ variables["w"], x)


def in_a_rule(variables, x):
  @jax.custom_vjp
  def dot(w, x):
    return x @ w

  dot.defvjp(lambda w, x: (dot(w, x), (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))
  return dot(variables["w"], x)


@pytest.mark.parametrize("fn, place", [(in_a_loop, "inside a while loop"), (in_a_rule, "inside a custom_vjp rule")])
def test_operations_that_cannot_be_replaced_are_refused_by_name(fn, place):
  variables = {"w": dense(0, 4, 4) + jnp.eye(4)}
  assert graph.trace(fn, variables, X).sites["w"].frozen == place
  np.testing.assert_array_equal(graph.rewrite(fn, nothing)({}, variables, X)[0], fn(variables, X))
  again = graph.rewrite(fn, lambda op, inputs, extras: (op.bind(*inputs), {}) if op.kind == "dot" else None)
  with pytest.raises(UserError, match=f"'w' cannot be replaced: it is {place}"):
    again({}, variables, X)


def test_values_in_a_loop_cannot_be_read_but_results_of_a_rule_can():
  variables = {"w": dense(0, 4, 4)}
  with pytest.raises(UserError, match="'w' cannot be read: it is inside a while loop"):
    graph.taps(in_a_loop, ["w"])(variables, X)
  np.testing.assert_array_equal(graph.taps(in_a_rule, ["w"])(variables, X)[1]["w"], X @ variables["w"])


# Custom rules, of which test_everything.py uses the function `rules`.


@jax.custom_vjp
def product(x, y):
  return x * y, y


product.defvjp(
  lambda x, y: (product(x, y), (x, y)), lambda r, g: (2 * g[0] * r[1] + jnp.sin(r[0]), g[0] * r[0] + 3 * g[1])
)


@jax.custom_jvp
def scaled(x, n):
  return jnp.sin(x) * n.astype(x.dtype)


scaled.defjvp(lambda primals, tangents: (scaled(*primals), 2 * tangents[0] * primals[0]))


@jax.custom_jvp
def tripled_gradient(x):
  return x


tripled_gradient.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))


def rules(variables, x):
  x, y = product(x @ variables["params"]["head"], scaled(x, jnp.int32(2))[:, :2])
  x = jax.checkpoint(lambda x, y: tripled_gradient(x) + jax.nn.gelu(y))(x, y)
  x = jax.lax.cond(x.sum() > 0, lambda x: jax.nn.silu(x), lambda x: x + 1.0, x)
  x = jax.lax.switch(jnp.int32(1), [lambda x: x, lambda x: jax.nn.relu(x), lambda x: -x], x)
  x = jax.lax.fori_loop(0, 3, lambda i, x: x * 1.5, x)
  return jax.nn.softmax(x) + jax.nn.logsumexp(x, axis=1, keepdims=True)


EVERYTHING = {
  **models.CASES,
  "scan": lambda: models.Case(scanned(False), scanned(True), LAYERS, X),
  "rules": lambda: models.Case(rules, rules, LAYERS, X),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_is_shown(name):
  case = EVERYTHING[name]()
  seen = []
  again = graph.rewrite(case.train, lambda op, inputs, extras: seen.append(op.name), everything=True)
  jax.eval_shape(again, {}, case.variables, case.x)
  assert set(graph.trace(case.train, case.variables, case.x).ops) == set(seen)


def across(variables, x):
  """A batch norm over the devices, and a custom rule."""
  x = jax.nn.relu(x @ variables["params"]["head"])
  mean = jax.lax.pmean(x.mean(0), "devices")
  return jnp.tanh(x - mean)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_across_devices(mode, everything):
  again = graph.rewrite(across, nothing, everything=everything)

  def step(fn):
    def inner(variables, x):
      value, grad = jax.value_and_grad(lambda v: jnp.sum(fn(v, x) ** 2))(variables)
      return jax.lax.pmean((value, grad), "devices")

    if mode == "pmap":
      return jax.pmap(inner, axis_name="devices", in_axes=(None, 0), out_axes=None)(LAYERS, dense(5, 4, 5, 4))
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(inner, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P())
    return jax.jit(mapped)(LAYERS, dense(5, 20, 4))

  jax.tree.map(np.testing.assert_array_equal, step(lambda v, x: again({}, v, x)[0]), step(across))


@pytest.mark.parametrize("name", ["conv_net", "nnx_conv_net"])
def test_sites_are_the_same_inside_of_shard_map(name):
  """There constants pass through an equation that declares the device axes they vary over."""
  case = models.CASES[name]()
  outside = graph.trace(case.fn, case.variables, case.x[:1]).sites
  mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
  found = []

  def double_means(op, inputs, extras):
    return (op.bind(inputs[0] * 2.0), {}) if op.kind in ("mean", "avg_pool") else None

  def inner(variables, x):
    found.append(graph.trace(case.fn, variables, x).sites)
    return graph.rewrite(case.fn, double_means)({}, variables, x)[0]

  x = jnp.tile(case.x, (2, 1, 1, 1))
  mapped = jax.jit(jax.shard_map(inner, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P("devices")))
  expected = graph.rewrite(case.fn, double_means)({}, case.variables, x)[0]
  np.testing.assert_allclose(mapped(case.variables, x), expected, rtol=1e-5)
  assert {n: (op.kind, op.inputs) for n, op in found[0].items()} == {
    n: (op.kind, op.inputs) for n, op in outside.items()
  }


def test_an_unknown_layout_is_refused_by_name():
  from leanax.graph import versions

  eqn = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c, None), x, length=2))(1.0).jaxpr.eqns[0]
  renamed = eqn.replace(params={"reverse": False, "body": None})

  with pytest.raises(UserError, match=r"'scan' has the parameters body, reverse"):
    versions.layout(renamed)
