"""Results of integer layers that other operations read are on grids where they are made, as a file has them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import quant
from leanax import graph
from leanax.core.errors import UserError
from quant.estimators.lsq import lsq_values
from tests.numbers import initial
from tests.quant.test_quantize import close, data

X = data((4, 6, 6, 2))


class Gate(nn.Module):
  """A hard-swish, a squeeze-excite gate on a ReLU, and a concatenation."""

  @nn.compact
  def __call__(self, x):
    x = nn.hard_swish(nn.Conv(3, (3, 3))(x))
    x = nn.relu(nn.Conv(3, (1, 1))(x))
    gate = nn.sigmoid(nn.Dense(3)(x.mean((1, 2))))
    x = jnp.concatenate([nn.Conv(2, (1, 1))(x * gate[:, None, None]), x], -1)
    return nn.Dense(3)(x)


MADE = ["Conv_0/kernel:out#1", "Conv_1/kernel:out", "Dense_0/kernel:out#1", "Conv_2/kernel:out#1"]
MADE += ["Dense_0/kernel:gate"]


def made(setting="w8a8"):
  variables = initial(Gate(), X)
  model = quant.quantize(Gate().apply, setting)
  return variables, model, *model.init(variables, X)


def by_hand(values, params, x):
  """The net written out; `values(name, x)` rounds, and `values(name, x, source)` a bias to steps of both scales."""

  def layer(name, source, h):
    w, b = values(f"{name}/kernel", params[name]["kernel"]), values(f"{name}/kernel", params[name]["bias"], source)
    if name.startswith("Dense"):
      return h @ w + b
    return jax.lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b

  h = values("Conv_0/kernel:out#1", layer("Conv_0", "input", values("input", x)))
  h = values("Conv_0/kernel:out", nn.hard_swish(h))
  h = values("Conv_1/kernel:out", nn.relu(layer("Conv_1", "Conv_0/kernel:out", h)))
  mean = values("Conv_1/kernel:mean:out", h.mean((1, 2)))
  gate = values("Dense_0/kernel:out#1", layer("Dense_0", "Conv_1/kernel:mean:out", mean))
  gate = values("Dense_0/kernel:gate", nn.sigmoid(gate))
  y = values("Dense_0/kernel:out", h * gate[:, None, None])
  y = values("Conv_2/kernel:out#1", layer("Conv_2", "Dense_0/kernel:out", y))
  out = layer("Dense_1", "Conv_2/kernel:out", values("Conv_2/kernel:out", jnp.concatenate([y, h], -1)))
  return values("Dense_1/kernel:out", out)


def test_each_result_that_others_read_is_rounded_where_it_is_made():
  # Conv_2 has another width than the concatenation that it goes into, whose grid it would share.
  variables, model, qparams, state = made({"Conv_2/*": "w8a7", "output": "float", "*": "w8a4"})
  g = model.grids(qparams, state, variables, X)
  assert model.plan(variables, X).made == set(MADE) and set(MADE) <= state.keys() & g.keys()

  def values(name, x, source=None):
    if source is None:
      return quant.fake_quant(x, g[name]) if name in g else x
    step = g[source].scale * g[name].scale
    return step * jnp.round(x / step)

  expected = jax.jit(lambda x: by_hand(values, variables["params"], x))(X)
  found = jax.jit(model.apply)(qparams, state, variables, X)[0]
  assert np.mean(np.abs(np.asarray(found) - expected) > 1e-5) < 0.01  # a code may flip at a tie

  def without(*names):
    left_out = lambda name, x, source=None: x if name in names else values(name, x, source)
    return np.asarray(jax.jit(lambda x: by_hand(left_out, variables["params"], x))(X))

  for name in MADE:  # leaving one out is another number
    hiding = ("Dense_0/kernel:gate",) if name == "Dense_0/kernel:out#1" else ()  # its steps are wider
    assert np.any(np.abs(without(name, *hiding) - without(*hiding)) > 1e-5), name


def test_learned_scales_of_results_get_the_gradients_of_the_net_written_by_hand():
  variables, model, qparams, state = made("w8a6 learned start=lsq")
  assert set(MADE) <= qparams.keys()
  g = model.grids(qparams, state, variables, X)

  def values(qparams, name, x, source=None):
    if source is not None:
      step = g[source].scale * jnp.squeeze(g[name].scale)
      return x + jax.lax.stop_gradient(step * jnp.round(x / step) - x)
    if name == "input":
      return quant.fake_quant(x, g[name])
    low, high = (float(v - np.asarray(g[name].zero_point).min()) for v in (g[name].qmin, g[name].qmax))
    count = x.size // (x.shape[-1] if g[name].narrow else len(x))
    scale = jnp.exp(qparams[name]).reshape((1,) * (x.ndim - 1) + (-1,) if g[name].narrow else ())
    return lsq_values(x, scale, low, high, 1 / np.sqrt(count * high).astype(np.float32))

  def loss(qparams, params):
    return jnp.sum(model.apply(qparams, state, {"params": params}, X)[0] ** 2)

  def expected(qparams, params):
    return jnp.sum(by_hand(lambda *given: values(qparams, *given), params, X) ** 2)

  found, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(qparams, variables["params"]) for f in (loss, expected))
  close(found, wanted, rtol=2e-3, atol=2e-3)
  assert all(np.any(found[1][0][name] != 0) for name in MADE)


@pytest.mark.slow
def test_what_is_seen_over_devices_and_batches_of_any_size_is_the_same():
  variables, model, qparams, state = made("w8a8 ema(rate=0.3)")
  mesh, d, whole = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,)), PartitionSpec("d"), PartitionSpec()
  observe = lambda state, x, axis_name=None: model.observe(state, variables, x, axis_name=axis_name)[1]
  four = jax.shard_map(lambda s, x: observe(s, x, "d"), mesh=mesh, in_specs=(whole, d), out_specs=whole)
  one = jax.jit(observe)(state, 2 * X)
  close(jax.jit(four)(state, 2 * X), one, rtol=1e-5, atol=1e-5)
  keys = {model.plan(variables, X).tensors[name].key for name in MADE}
  assert all(int(one[name]["stats"]["batches"].count) == 1 for name in keys)
  outer = graph.taps(Gate().apply, sorted(keys))(variables, 2 * X)[1]
  for name in keys:
    np.testing.assert_allclose(one[name]["stats"]["moving_extrema"].high, max(float(outer[name].max()), 0.0), rtol=1e-5)

  apply = lambda x: model.apply(qparams, state, variables, x)[0]
  out = jax.jit(apply)(X)
  step = float(model.grids(qparams, state, variables, X)["Dense_1/kernel:out"].scale)
  single = jax.jit(apply)(X[:1])
  np.testing.assert_allclose(out[:1], single, atol=1.01 * step)
  for other in (jax.shard_map(apply, mesh=mesh, in_specs=d, out_specs=d), lambda x: jax.vmap(apply)(x[:, None])[:, 0]):
    np.testing.assert_allclose(out, jax.jit(other)(X), atol=1.01 * step)


def plan(rules, ends=None):
  shapes = jax.eval_shape(Gate().init, jax.random.key(0), X)
  return quant.quantize(Gate().apply, quant.policy(rules, ends=ends)).plan(shapes, X)


def test_rules_of_the_maker_say_whether_and_how_its_result_is_rounded():
  found = plan({"Conv_0/*": "w4a6 tqt", "*": "w8a8"})
  assert sorted(found.made) == sorted(MADE)
  label = found.quantizers["Conv_0/kernel:out#1"]
  assert label.bits == 6 and label.spec.estimator == "tqt" and label.estimator.trains
  assert found.quantizers["Dense_0/kernel:out#1"].bits == 8
  assert "its result 'Conv_0/kernel:out#1' is rounded where it is made" in found.explained["Conv_0/kernel"].note
  heads = quant.quantize(lambda v, x: jnp.tanh(jnp.einsum("nd,dhw->nhw", x, v["a"])), "w8a8")
  note = heads.plan({"a": jnp.ones((3, 2, 2))}, jnp.ones((4, 3))).explained["a"].note
  assert "for each of 2x2 output channels" in note and note.endswith(
    "; its result 'a:out#1' is rounded where it is made"
  )
  for setting in ("float", "w8", "w4g2a8", "a8", "w4 power_of_two, a8"):
    rules = {"Conv_0/*": setting, "*": "w8a8"}
    assert plan(rules).made == {name for name in MADE if not name.startswith("Conv_0")}, setting
  # The mean is left in float: what the convolution makes is rounded all the same, for the gate.
  assert "Conv_1/kernel:out" in plan({"*:mean": "float", "*": "w8a8"}).made
  assert plan("float").made == plan("w4").made == frozenset()
  assert plan("w4a4", ends="w8a8").quantizers["Conv_0/kernel:out#1"].bits == 8  # of the first site


def test_layers_of_a_scan_have_grids_of_their_own_and_a_branch_that_never_ran_has_none():
  v, x = {"w": jnp.stack([data((4, 4)), 3 * data((4, 4), 1)]), "b": data((4, 4), 2)}, data((5, 4), 3)

  def fn(v, x):
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["w"])[0]
    return jax.lax.cond(x.sum() > 99, lambda h: jnp.sin(h @ v["b"]), lambda h: h, h)

  policies = [quant.policy(rules | {"output": "float", "*": "w8a8"}, ends=None) for rules in ({}, {"b": "float"})]
  every, model = (quant.quantize(fn, policy) for policy in policies)
  assert every.plan(v, x).made == {"b:out#1", "w:out"}
  with pytest.raises(UserError, match="'b' was never seen by calibration"):
    every.calibrate(v, [x])
  qparams, state = model.calibrate(v, [x])
  g = model.grids(qparams, state, v, x)
  h = x
  for i in range(2):
    source, made, w = (jax.tree.map(lambda leaf, i=i: leaf[i], g[name]) for name in ("w:in", "w:out", "w"))
    h = quant.fake_quant(h, source) @ quant.fake_quant(v["w"][i], dataclasses.replace(w, axis=1, shape=(4, 4)))
    h = jnp.tanh(quant.fake_quant(h, made))
  np.testing.assert_allclose(jax.jit(model.apply)(qparams, state, v, x)[0], h, atol=1e-5)


def test_a_state_without_them_and_a_name_that_is_taken_are_refused():
  variables, model, qparams, state = made()
  before = {name: entry for name, entry in state.items() if name != MADE[0]}
  with pytest.raises(UserError, match=f"state has no grid '{MADE[0]}', and this model needs it; run init on it"):
    model.apply(qparams, before, variables, X)
  fn = lambda v, x: jnp.tanh(x @ v["w"] + v["input"]) @ v["w"] + jnp.tanh(x)
  with pytest.raises(UserError, match="the parameter 'input' has the name of an activation"):
    quant.quantize(fn, "w8a8").plan({"w": jnp.ones((4, 4)), "input": jnp.ones(4)}, jnp.ones((2, 4)))


def test_channels_are_cut_in_front_of_the_grids():
  fn, x = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], data((3, 4))
  net = quant.post_training(graph.net(fn, {"a": data((4, 6), 1), "b": data((6, 2), 2)}, x), [x], "w8a8")
  cut = quant.before(net, lambda net: graph.keep_channels(net, {"a": [0, 2, 5]}))
  grids, kept = quant.grids(net), quant.grids(cut)
  assert kept.keys() == grids.keys() and float(kept["a:out#1"].scale) == float(grids["a:out#1"].scale)
  assert kept["a"].scale.shape == (3,) and np.all(np.isfinite(cut.apply(cut.variables, x)[0]))
