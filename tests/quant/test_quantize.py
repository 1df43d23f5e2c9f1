import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named
from quant.estimators.base import to_scale
from quant.estimators.lsq import lsq_values as lsq
from quant.grid import dequantize, fake_quant
from quant.policy import policy
from quant.quantize import quantize
from tests.numbers import array, initial

MESH = {"axis_types": (AxisType.Auto,)}


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(16)(x))
    return nn.Dense(4)(x)


class Net(nn.Module):
  """A depthwise convolution, a pool, a residual sum, a mean: each kind of site."""

  mean: bool = True

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
    y = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    x = nn.relu(x + nn.Conv(8, (1, 1))(y))
    return nn.Dense(5)(x.mean((1, 2)) if self.mean else x.reshape(x.shape[0], -1))


def data(shape, seed=0):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(module, x, spec, seed=0):
  variables = initial(module, x, seed=seed)
  leaves, tree = jax.tree.flatten(variables)
  moved = [jnp.asarray(leaf + np.float32(0.1) * np.asarray(data(leaf.shape, i))) for i, leaf in enumerate(leaves)]
  variables = jax.tree.unflatten(tree, moved)
  model = quantize(module.apply, spec)
  return variables, model, *model.init(variables, x)


def kernel(variables, name):
  leaf = variables["params"]
  for part in name.split("/"):
    leaf = leaf[part]
  return np.asarray(leaf)


def close(a, b, **kw):
  map_named(lambda name, p, q: np.testing.assert_allclose(p, q, err_msg=name, **kw), a, b)


def test_an_mlp_computes_its_integers():
  x = data((32, 7))
  variables, model, qparams, state = make(Mlp(), x, "w8a8")
  out, _ = jax.jit(model.apply)(qparams, state, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert list(grids) == ["input", "Dense_0/kernel", "Dense_0/kernel:out", "Dense_1/kernel", "Dense_1/kernel:out"]
  h = np.asarray(x, np.float64)
  for layer, source in enumerate(["input", "Dense_0/kernel:out"]):
    w, b = kernel(variables, f"Dense_{layer}/kernel"), kernel(variables, f"Dense_{layer}/bias")
    sx, zx = np.float64(grids[source].scale), int(grids[source].zero_point)
    sw = np.asarray(grids[f"Dense_{layer}/kernel"].scale, np.float64)
    np.testing.assert_allclose(sw, np.abs(w).max(0) / 127, rtol=1e-6)
    qx = np.clip(np.round(h / sx) + zx, -128, 127)
    qw = np.clip(np.round(w / sw), -127, 127)
    acc = (qx - zx) @ qw + np.round(b / (sx * sw))
    h = acc * (sx * sw)
    h = np.maximum(h, 0) if layer == 0 else h
  grid = grids["Dense_1/kernel:out"]
  codes = np.clip(np.round(h / float(grid.scale)) + int(grid.zero_point), -128, 127)
  expected = (codes - int(grid.zero_point)) * float(grid.scale)
  steps = np.abs(np.asarray(out) - expected) / float(grid.scale)
  assert steps.max() < 1.01 and np.mean(steps > 0.5) < 0.02  # a code may flip at a tie
  np.testing.assert_array_equal(fake_quant(out, grid), out)


def test_zero_points_axes_and_widths():
  x = data((4, 8, 8, 3))
  variables, model, qparams, state = make(Net(), x, "w4a4")
  grids = model.grids(qparams, state, variables, x)
  found = {name: (grid.bits, grid.narrow, grid.axis, grid.scale.shape) for name, grid in grids.items()}
  assert found == {
    "input": (8, False, None, ()),
    "Conv_0/kernel": (8, True, 3, (8,)),
    "Conv_0/kernel:out": (4, False, None, ()),
    "Conv_1/kernel": (4, True, 3, (8,)),
    "Conv_1/kernel:out": (4, False, None, ()),
    "Conv_2/kernel": (4, True, 3, (8,)),
    "Conv_2/kernel:out": (4, False, None, ()),
    "Conv_2/kernel:add:out": (4, False, None, ()),
    "Conv_2/kernel:add:mean:out": (8, False, None, ()),
    "Dense_0/kernel": (8, True, 1, (5,)),
    "Dense_0/kernel:out": (8, False, None, ()),
  }
  after_relu = ["Conv_0/kernel:out", "Conv_1/kernel:out", "Conv_2/kernel:add:out"]
  assert all(int(grids[name].zero_point) == grids[name].qmin for name in after_relu)
  assert -128 < int(grids["input"].zero_point) < 127


def test_the_inputs_of_each_site_are_on_its_grid():
  """The model written out by hand with `fake_quant` in front of every site."""
  x = data((4, 8, 8, 3))
  variables, model, qparams, state = make(Net(), x, "w8a8")
  g = model.grids(qparams, state, variables, x)

  def bias(name, source):
    step = np.asarray(g[source].scale) * np.asarray(g[f"{name}/kernel"].scale)
    return step * np.round(kernel(variables, f"{name}/bias") / step)

  def conv(name, source, h, groups=1):
    w = fake_quant(jnp.asarray(kernel(variables, f"{name}/kernel")), g[f"{name}/kernel"])
    h = fake_quant(h, g[source])
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(h, w, (1, 1), "SAME", None, None, numbers, groups) + bias(name, source)

  @jax.jit
  def by_hand(x):
    h = nn.max_pool(nn.relu(conv("Conv_0", "input", x)), (2, 2), (2, 2))
    y = conv("Conv_2", "Conv_1/kernel:out", nn.relu(conv("Conv_1", "Conv_0/kernel:out", h, 8)))
    h = nn.relu(fake_quant(h, g["Conv_0/kernel:out"]) + fake_quant(y, g["Conv_2/kernel:out"]))
    h = fake_quant(h, g["Conv_2/kernel:add:out"]).mean((1, 2))
    w = fake_quant(jnp.asarray(kernel(variables, "Dense_0/kernel")), g["Dense_0/kernel"])
    h = fake_quant(h, g["Conv_2/kernel:add:mean:out"]) @ w + bias("Dense_0", "Conv_2/kernel:add:mean:out")
    return fake_quant(h, g["Dense_0/kernel:out"])

  expected = by_hand(x)
  found = jax.jit(model.apply)(qparams, state, variables, x)[0]
  np.testing.assert_allclose(found, expected, atol=1.01 * float(g["Dense_0/kernel:out"].scale))
  assert np.mean(np.abs(np.asarray(found) - expected) > 1e-5) <= 0.1


def test_learned_scales_get_the_gradients_of_the_model_written_by_hand():
  x, y = data((16, 7)), data((16, 4), 1)
  variables, model, qparams, state = make(Mlp(), x, "w4a4 learned start=range")
  assert list(qparams) == ["Dense_0/kernel", "Dense_0/kernel:out", "Dense_1/kernel", "Dense_1/kernel:out"]
  g = model.grids(qparams, state, variables, x)

  def by_hand(qparams, params):
    h, source = fake_quant(x, g["input"]), "input"
    for name in ("Dense_0", "Dense_1"):
      key = f"{name}/kernel"
      w, b = params[name]["kernel"], params[name]["bias"]
      qmax = g[key].qmax
      w = lsq(w, jnp.exp(qparams[key])[None], -qmax, qmax, 1 / np.sqrt(w.shape[0] * qmax).astype(np.float32))
      step = np.asarray(g[source].scale) * np.asarray(g[key].scale)
      b = b + jax.lax.stop_gradient(step * jnp.round(b / step) - b)
      h = h @ w + b
      h = nn.relu(h) if name == "Dense_0" else h
      source = f"{key}:out"
      low, high = (float(v - np.asarray(g[source].zero_point)) for v in (g[source].qmin, g[source].qmax))
      h = lsq(h, jnp.exp(qparams[source]), low, high, 1 / np.sqrt(h.shape[1] * high).astype(np.float32))
    return jnp.sum((h - y) ** 2)

  def loss(qparams, params):
    return jnp.sum((model.apply(qparams, state, {"params": params}, x)[0] - y) ** 2)

  found = jax.jit(jax.value_and_grad(loss, (0, 1)))(qparams, variables["params"])
  expected = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(qparams, variables["params"])
  close(found, expected, rtol=2e-4, atol=2e-4)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(found[1]))


def test_training_the_scales_lowers_the_loss_and_keeps_them_positive():
  x = data((64, 7))
  variables, model, qparams, state = make(Mlp(), x, policy("w2a2 learned full", ends=None), seed=1)
  target = Mlp().apply(variables, x)

  @jax.jit
  def step(both):
    loss, grads = jax.value_and_grad(lambda b: jnp.mean((model.apply(b[0], state, b[1], x)[0] - target) ** 2))(both)
    return jax.tree.map(lambda p, g: p - 0.05 * g, both, grads), loss

  both, losses = (qparams, variables), []
  for _ in range(100):
    both, loss = step(both)
    losses.append(float(loss))
  assert np.mean(losses[-5:]) < 0.8 * losses[0]
  assert all(np.all(grid.scale > 0) for grid in model.grids(both[0], state, both[1], x).values())


def test_observing_changes_nothing_until_freeze():
  x = data((8, 7))
  variables, model, qparams, state = make(Mlp(), x, "w8a8 learned ema(rate=0.5)")
  out, seen = jax.jit(model.observe)(state, variables, 3 * x)
  np.testing.assert_array_equal(out, jax.jit(Mlp().apply)(variables, 3 * x))
  apply = jax.jit(model.apply)
  before, after = (apply(qparams, s, variables, x)[0] for s in (state, seen))
  np.testing.assert_array_equal(before, after)
  assert float(seen["input"]["stats"]["moving_extrema"].high) == float(jnp.max(3 * x))
  _, seen = jax.jit(model.observe)(seen, variables, x)
  np.testing.assert_allclose(seen["input"]["stats"]["moving_extrema"].high, 2 * jnp.max(x), rtol=1e-6)
  new_qparams, frozen = model.freeze(qparams, seen, variables)
  grid = model.grids(new_qparams, frozen, variables, x)["input"]
  np.testing.assert_allclose(grid.scale, 2 * (jnp.max(x) - jnp.min(x)) / 255, rtol=1e-6)
  assert float(new_qparams["Dense_0/kernel:out"]) > float(qparams["Dense_0/kernel:out"])


@pytest.mark.parametrize("mean", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_device_equals_four(mean):
  x = data((8, 8, 8, 3))
  variables, model, qparams, state = make(Net(mean), x, "w8a8 learned ema(rate=0.3)")
  mesh = jax.make_mesh((4,), ("d",), **MESH)
  batch, whole = PartitionSpec("d"), PartitionSpec()

  def observe(state, x, axis_name=None):
    return model.observe(
      model.observe(state, variables, x, axis_name=axis_name)[1], variables, 2 * x, axis_name=axis_name
    )[1]

  one = jax.jit(observe)(state, x)
  four = jax.shard_map(lambda s, x: observe(s, x, "d"), mesh=mesh, in_specs=(whole, batch), out_specs=whole)
  mapped = jax.pmap(lambda s, x: observe(s, x, "d"), axis_name="d", in_axes=(None, 0), out_axes=None)
  close(jax.jit(four)(state, x), one, rtol=1e-5, atol=1e-5)
  close(mapped(state, x.reshape(4, 2, 8, 8, 3)), one, rtol=1e-5, atol=1e-5)

  apply = lambda x: model.apply(qparams, state, variables, x)[0]
  out = jax.jit(apply)(x)
  step = float(model.grids(qparams, state, variables, x)["Dense_0/kernel:out"].scale)
  for other in (
    jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=batch, out_specs=batch))(x),
    jax.pmap(apply)(x.reshape(4, 2, 8, 8, 3)).reshape(8, 5),
    jax.jit(jax.vmap(apply))(x.reshape(4, 2, 8, 8, 3)).reshape(8, 5),
  ):
    np.testing.assert_allclose(out, other, atol=1.01 * step)
    assert np.mean(np.abs(np.asarray(out) - other) > 1e-5) < 0.1


def test_the_gradient_of_the_scales_over_four_devices():
  x = data((8, 7))
  variables, model, qparams, state = make(Mlp(), x, "w4a4 learned")
  mesh = jax.make_mesh((4,), ("d",), **MESH)

  def loss(qparams, x):
    return jnp.sum(model.apply(qparams, state, variables, x)[0] ** 2)

  summed = jax.shard_map(
    jax.grad(lambda q, x: jax.lax.psum(loss(q, x), "d")),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec("d")),
    out_specs=PartitionSpec(),
  )
  close(jax.jit(summed)(qparams, x), jax.jit(jax.grad(loss))(qparams, x), rtol=1e-4, atol=1e-4)


def test_a_float_policy_is_the_model_itself():
  x = data((4, 8, 8, 3))
  variables, model, qparams, state = make(Net(), x, "float")
  assert qparams == {} and state == {}
  apply = jax.jit(lambda v, x: model.apply({}, {}, v, x)[0])
  np.testing.assert_array_equal(apply(variables, x), jax.jit(Net().apply)(variables, x))


def test_rules_leave_sites_in_float_and_weights_alone_leave_biases():
  x = data((5, 7))
  rules = [("Dense_0/*", "w4"), ("Dense_1/*", "float")]
  variables, model, qparams, state = make(Mlp(), x, rules)
  assert list(model.grids(qparams, state, variables, x)) == ["Dense_0/kernel"]
  grid = model.grids(qparams, state, variables, x)["Dense_0/kernel"]
  assert grid.bits == 8  # the first site
  params = variables["params"]
  w = fake_quant(params["Dense_0"]["kernel"], grid)
  changed = {"params": {**params, "Dense_0": {**params["Dense_0"], "kernel": w}}}
  found, expected = jax.jit(model.apply)(qparams, state, variables, x)[0], jax.jit(Mlp().apply)(changed, x)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert model.explain(variables, x)["Dense_0/kernel"].rule == "Dense_0/* (ends)"


def test_pruned_weights_are_integer_zero():
  x = data((5, 7))
  variables, model, qparams, state = make(Mlp(), x, "w8a8")
  mask = data((7, 16), 3) > 0
  variables["params"]["Dense_0"]["kernel"] *= mask.astype(jnp.float32)
  _, state = jax.jit(model.observe)(state, variables, x)
  qparams, state = model.freeze(qparams, state, variables)
  grid = model.grids(qparams, state, variables, x)["Dense_0/kernel"]
  assert not np.any(np.asarray(fake_quant(variables["params"]["Dense_0"]["kernel"], grid))[~np.asarray(mask)])


def test_static_scales_add_no_reduction():
  x = data((4, 8, 8, 3))
  variables, model, qparams, state = make(Net(), x, "w8a8")
  float_text = jax.jit(Net().apply).lower(variables, x).as_text()
  text = jax.jit(lambda v, x: model.apply(qparams, state, v, x)[0]).lower(variables, x).as_text()
  assert text.count("stablehlo.reduce(") == float_text.count("stablehlo.reduce(")
  assert text.count("round_nearest_even") == 10  # functions of one shape are shared


def test_a_bias_is_an_integer_in_steps_of_both_scales():
  def fn(variables, x):
    return x @ variables["params"]["w"] + variables["params"]["b"]

  x = 100 * data((3, 4))
  variables = {"params": {"w": 50 * data((4, 6), 1), "b": 40 * data((6,), 2)}}
  model = quantize(fn, {"output": "float", "*": "w4a4"})
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  step = np.asarray(grids["input"].scale) * np.asarray(grids["w"].scale)
  b = np.asarray(variables["params"]["b"])
  assert np.all(np.abs(b / step - np.round(b / step)) > 1e-3)  # they are between the steps

  @jax.jit
  def at_zero(v):
    found, pull = jax.vjp(lambda v: model.apply(qparams, state, v, jnp.zeros((1, 4)))[0], v)
    return found, pull(jnp.ones((1, 6)))[0]

  found, slope = at_zero(variables)
  np.testing.assert_allclose(found[0], step * np.round(b / step), rtol=1e-6)
  np.testing.assert_array_equal(slope["params"]["b"], np.ones(6))  # straight through


def test_a_tensor_that_two_sites_read_has_the_wider_grid():
  def fn(variables, x):
    p = variables["params"]
    h = jax.nn.relu(x @ p["a"])
    return h @ p["b"] + h @ p["c"]

  x, variables = data((3, 4)), {"params": {n: data((4, 4), i) for i, n in enumerate("abc")}}
  for rules in ({"b": "w4a4", "c": "w8a8", "*": "w8a8"}, {"b": "w8a8", "c": "w4a4", "*": "w8a8"}):
    model = quantize(fn, policy(rules, ends=None))
    qparams, state = model.init(variables, x)
    grids = model.grids(qparams, state, variables, x)
    assert grids["a:out"].bits == 8 and sorted((grids["b"].bits, grids["c"].bits)) == [4, 8]
    assert int(state["a:out"]["stats"]["batches"].count) == 0
    _, state = jax.jit(model.observe)(state, variables, x)
    assert int(state["a:out"]["stats"]["batches"].count) == 1  # observed once, though read twice


def test_a_leaf_used_twice_has_one_grid_and_any_batch_size_works():
  def tied(variables, x):
    w = variables["params"]["w"]
    return jax.nn.relu(x @ w) @ w

  x = data((6, 5))
  variables = {"params": {"w": data((5, 5), 2)}}
  model = quantize(tied, "w4a4 learned")
  qparams, state = model.init(variables, x)
  assert [name for name in state if ":" not in name] == ["input", "w"] or set(state) == {
    "input",
    "w",
    "w:out",
    "w#1:out",
  }
  small, full = (jax.jit(model.apply)(qparams, state, variables, v)[0] for v in (x[:2], x))
  assert small.shape == (2, 5)
  np.testing.assert_allclose(small, full[:2], atol=1e-6)


def test_attention_products_are_quantized_without_a_kernel():
  def fn(variables, x):
    q, k = x @ variables["params"]["q"], x @ variables["params"]["k"]
    return jnp.einsum("bqd,bkd->bqk", q, k)

  x = data((2, 3, 4))
  variables = {"params": {"q": data((4, 4), 1), "k": data((4, 4), 2)}}
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert {"q:out", "k:out"} <= set(grids)
  name = next(n for n in grids if n not in ("input", "q", "k", "q:out", "k:out"))

  @jax.jit
  def by_hand(x):
    q, k = (fake_quant(x, grids["input"]) @ fake_quant(variables["params"][n], grids[n]) for n in "qk")
    product = jnp.einsum("bqd,bkd->bqk", fake_quant(q, grids["q:out"]), fake_quant(k, grids["k:out"]))
    return fake_quant(product, grids[name])

  found = jax.jit(model.apply)(qparams, state, variables, x)[0]
  np.testing.assert_allclose(found, by_hand(x), atol=1.01 * float(grids[name].scale))


def test_codes_of_the_weights_dequantize_to_those_that_apply_uses():
  x = data((5, 7))
  variables, model, qparams, state = make(Mlp(), x, "w4a8 learned")
  from quant.grid import codes

  for name, grid in model.grids(qparams, state, variables, x).items():
    if name.endswith("kernel"):
      w = variables["params"][name.split("/")[0]]["kernel"]
      np.testing.assert_array_equal(dequantize(codes(w, grid), grid), jax.jit(fake_quant)(w, grid))


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(6)(nn.relu(nn.Dense(6, name="up")(x))), None


def test_scan_and_remat_equal_the_unrolled_layers():
  """Learned scales, their gradients and the moving averages of the observer, each layer its own."""
  layers, x = 3, data((8, 6))
  scanned = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)()
  stacked = initial(scanned, x, None)

  def unrolled(variables, x):
    for i in range(layers):
      x, _ = Block().apply({"params": variables["params"][f"layer{i}"]}, x, None)
    return x

  apart = {"params": {f"layer{i}": jax.tree.map(lambda p, i=i: p[i], stacked["params"]) for i in range(layers)}}
  spec = policy("w4a4 learned ema(rate=0.3)", ends=None)
  one, many = quantize(lambda v, x: scanned.apply(v, x, None)[0], spec), quantize(unrolled, spec)

  def loss(model, qparams, state, variables):
    return jnp.sum(model.apply(qparams, state, variables, x)[0] ** 2)

  results = []
  for model, variables in ((one, stacked), (many, apart)):
    qparams, state = model.init(variables, x)
    for scale in (1.0, 2.0, 3.0):
      out, state = jax.jit(model.observe)(state, variables, scale * x)
    qparams, state = model.freeze(qparams, state)
    grads = jax.jit(jax.grad(lambda q, v, m=model, s=state: loss(m, q, s, v), (0, 1)))(qparams, variables)
    results.append((out, jax.jit(model.apply)(qparams, state, variables, x)[0], state, grads))
  (out, quantized, state, grads), (out2, quantized2, state2, grads2) = results
  np.testing.assert_allclose(out, out2, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(quantized, quantized2, rtol=1e-4, atol=1e-4)
  for leaf in ("up/kernel", "Dense_0/kernel", "up/kernel:out"):
    for i in range(layers):
      close(state[leaf]["used"]["scale"][i], state2[f"layer{i}/{leaf}"]["used"]["scale"], rtol=1e-5)
      np.testing.assert_allclose(grads[0][leaf][i], grads2[0][f"layer{i}/{leaf}"], rtol=1e-3, atol=1e-4)
  for i in range(layers):
    close(jax.tree.map(lambda g, i=i: g[i], grads[1]["params"]), grads2[1]["params"][f"layer{i}"], rtol=1e-3, atol=1e-3)
    high = state["up/kernel:out"]["stats"]["moving_extrema"].high[i]
    np.testing.assert_allclose(high, state2[f"layer{i}/up/kernel:out"]["stats"]["moving_extrema"].high, rtol=1e-5)


def test_a_state_of_another_model_is_refused():
  x = data((3, 7))
  variables, model, qparams, state = make(Mlp(), x, "w8a8")
  less = {name: entry for name, entry in state.items() if name != "input"}
  with pytest.raises(UserError, match="has no grid 'input', and this model needs it"):
    model.apply(qparams, less, variables, x)
  with pytest.raises(UserError, match="holds grid 'other', and this model has no such tensor"):
    model.observe({**state, "other": state["input"]}, variables, x)


@pytest.mark.parametrize("setting", ["w8a8", "w8a8 learned"])
def test_scales_of_other_channels_are_refused(setting):
  """Of a model before its channels were removed, or with another granularity."""
  rng = np.random.default_rng(0)
  v = {"a": jnp.asarray(rng.normal(size=(7, 6)) * 4.0 ** np.arange(6), jnp.float32), "b": jnp.ones((6, 2))}
  x, fn = data((3, 7)), lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]
  wide, tensor = quantize(fn, setting).init(v, x), quantize(fn, f"{setting} per_tensor").init(v, x)
  cut = graph.keep_channels(graph.net(fn, v, x), {"a": [4, 5]})
  model, small = quantize(cut.infer, setting), cut.variables
  for use in (lambda q, s: model.apply(q, s, small, x), lambda q, s: model.grids(q, s, small, x)):
    for (qparams, state), shape in ((wide, r"\(6,\)"), (tensor, r"\(\)")):
      with pytest.raises(UserError, match=rf"state has scales of 'a' of the shape {shape}, and .* needs \(2,\)"):
        use(qparams, state)
    if "learned" in setting:
      with pytest.raises(UserError, match=r"qparams have scales 'a' of the shape \(6,\), and .* needs \(2,\)"):
        use(wide[0], model.init(small, x)[1])


def test_trained_scales_of_another_model_are_refused():
  x = data((3, 7))
  variables, model, qparams, state = make(Mlp(), x, "w8a8 learned")
  name = sorted(qparams)[0]
  less = {key: scale for key, scale in qparams.items() if key != name}
  for use in (model.apply, model.grids):
    with pytest.raises(UserError, match=f"qparams have no scale '{name}', and this model learns it"):
      use(less, state, variables, x)
    with pytest.raises(UserError, match="qparams have a scale 'other', and this model learns no such scale"):
      use({**qparams, "other": jnp.zeros(())}, state, variables, x)
    with pytest.raises(UserError, match="the qparams given is of type NoneType"):
      use(None, state, variables, x)
    with pytest.raises(UserError, match="the quantizer state given is of type NoneType"):
      use(qparams, None, variables, x)
  with pytest.raises(UserError, match="the quantizer state given is of type NoneType"):
    model.observe(None, variables, x)
  with pytest.raises(UserError, match="qparams have a scale .*, and the quantizer state has no such grid"):
    model.freeze(state, qparams)


def test_mistakes_are_named():
  @jax.custom_jvp
  def hidden(x, w):
    return x @ w

  hidden.defjvp(lambda primals, tangents: (hidden(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]))
  x, variables = data((3, 4)), {"params": {"w": data((4, 4))}}
  with pytest.raises(UserError, match="'w' cannot be quantized: it is inside a custom_jvp rule"):
    quantize(lambda v, x: hidden(x, v["params"]["w"]), "w8a8").init(variables, x)
  with pytest.raises(UserError, match="'input' has the name of an activation"):
    quantize(lambda v, x: x @ v["params"]["input"], "w8a8").init({"params": {"input": data((4, 4))}}, x)
  with pytest.raises(UserError, match="matches nothing"):
    quantize(lambda v, x: x @ v["params"]["w"], {"conv*": "w8"}).init(variables, x)


def test_pixels_on_ties_get_the_codes_of_the_input_that_a_runtime_is_given():
  """Preprocessing in the same program: merged with the grid's 1 / s it would round 8 of 16 levels the other way."""
  pixels = (np.arange(4 * 64).reshape(4, 64) % 17 * 15).astype(np.uint8)
  normalise = lambda pixels: pixels.astype(jnp.float32) * np.float32(1 / 255)
  x, variables = jax.jit(normalise)(pixels), {"params": {"w": jnp.eye(64)}}
  model = quantize(lambda v, x: x @ v["params"]["w"], policy({"output": "float", "*": "w8a8"}, ends=None))
  qparams, state = model.init(variables, x)
  assert float(np.asarray(x).max() * 255) < 254  # so that the levels are not whole steps
  together = jax.jit(lambda state, variables, p: model.apply(qparams, state, variables, normalise(p))[0])
  apart = jax.jit(lambda state, variables, x: model.apply(qparams, state, variables, x)[0])
  np.testing.assert_array_equal(together(state, variables, pixels), apart(state, variables, x))


def test_a_learned_scale_is_the_same_as_an_argument_and_as_a_constant():
  parameters = jnp.asarray(np.random.default_rng(0).normal(size=4096) * 3 - 4, jnp.float32)
  np.testing.assert_array_equal(jax.jit(lambda: to_scale(parameters))(), jax.jit(to_scale)(parameters))
