"""Kernels with a scale for each group of inputs, against numpy."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from leanax.core.errors import UserError
from tests.numbers import array
from tests.quant.test_leaf_grids import restored

W = np.random.default_rng(0).normal(size=(12, 5)) * np.repeat([0.01, 1.0, 30.0], 4)[:, None]
V = {"w": jnp.asarray(W, jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(7, 12)), jnp.float32)


def fn(v, x):
  return x @ v["w"]


def rounded(w, group, top, per_tensor=False):
  """Groups of rows on narrow symmetric grids, in float64."""
  parts = w.reshape(-1, group, w.shape[1])
  scale = np.abs(parts).max((1, 2) if per_tensor else 1, keepdims=True) / top
  return (np.clip(np.round(parts / scale), -top, top) * scale).reshape(w.shape)


def made(fn, variables, x, setting):
  model = quant.quantize(fn, quant.policy(setting, ends=None))
  return model, *model.init(variables, x)


def infer(net, params=None):
  variables = net.variables if params is None else {**net.variables, "params": params}
  return jax.jit(net.infer)(variables, X)


@pytest.mark.parametrize("group", [1, 2, 4, 12])
@pytest.mark.parametrize("words", ["", " per_tensor", " learned start=range"])
def test_each_group_has_a_scale(group, words):
  model, qparams, state = made(fn, V, X, f"w4g{group}{words}")
  expected = rounded(W.astype(np.float32).astype(np.float64), group, 7, "per_tensor" in words)

  @jax.jit
  def run(*given):
    grid = model.grids(*given)["w"]
    return model.apply(*given)[0], grid.scale, restored(V["w"], grid)

  out, scale, both = run(qparams, state, V, X)
  np.testing.assert_allclose(out, np.asarray(X, np.float64) @ expected, rtol=1e-4, atol=1e-4)
  assert scale.shape == ((12 // group,) if "per_tensor" in words else (12 // group, 5))
  for values in both:
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("blocks", [(1, 1), (3, 5), (12, 1), (3, 1), (12, 5), (4, 5)])
def test_scales_of_any_lengths_that_divide_the_array(blocks):
  """Of the array's rank: each number serves a block."""
  largest = np.abs(W.reshape(blocks[0], -1, blocks[1], 5 // blocks[1])).max((1, 3))
  scale = jnp.asarray(largest / 7, jnp.float32)
  grid = quant.Grid(scale, jnp.asarray(np.zeros(blocks, np.int32)), 4, True, True)
  whole = np.asarray(scale, np.float64).repeat(12 // blocks[0], 0).repeat(5 // blocks[1], 1)
  codes = np.clip(np.round(np.asarray(V["w"], np.float64) / whole), -7, 7)
  loss = lambda s, grid: jnp.sum(quant.tqt()(V["w"], dataclasses.replace(grid, scale=s)))
  own, *values, gradient = jax.jit(
    lambda s, g: (quant.codes(V["w"], g), *restored(V["w"], g), quant.lsq()(V["w"], g), jax.grad(loss)(s, g))
  )(scale, grid)
  np.testing.assert_array_equal(own, codes)
  for found in values:
    np.testing.assert_allclose(found, codes * whole, rtol=1e-6)
  assert gradient.shape == blocks and np.all(np.isfinite(gradient))


def test_scales_that_divide_nothing_are_refused():
  grid = quant.Grid(jnp.ones((5, 5)), jnp.zeros((5, 5), jnp.int32), 4)
  with pytest.raises(
    UserError, match=r"scales of shape \(5, 5\) was given the shape \(12, 5\), which they do not divide"
  ):
    quant.codes(V["w"], grid)
  with pytest.raises(UserError, match="needs the axis that they lie along"):
    quant.codes(V["w"], dataclasses.replace(grid, scale=jnp.ones(5), zero_point=jnp.zeros(5, jnp.int32)))


def test_one_group_is_the_grid_of_a_channel():
  found = []
  for setting in ("w4g12", "w4"):
    model, *given = made(fn, V, X, setting)
    found.append(jax.jit(model.apply)(*given, V, X)[0])
  np.testing.assert_array_equal(*found)


def test_learned_scales_have_the_gradient_of_lsq_in_each_group():
  """That of the estimator on the kernel in groups, whose products are the same."""
  model, qparams, state = made(fn, V, X, "w4g4 learned start=range")

  def loss(qparams, v):
    return jnp.sum(jnp.sin(model.apply(qparams, state, v, X)[0]))

  def alone(t, v):
    grid = quant.Grid(jnp.exp(t), jnp.zeros((3, 5), jnp.int32), 4, True, True, (0, 2), (3, 4, 5))
    return jnp.sum(jnp.sin(X @ quant.lsq()(v["w"], grid, 4)))

  found, expected = jax.jit(lambda q: (jax.grad(loss, (0, 1))(q, V), jax.grad(alone, (0, 1))(q["w"], V)))(qparams)
  assert qparams["w"].shape == (3, 5)
  np.testing.assert_allclose(found[0]["w"], expected[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1]["w"], expected[1]["w"], rtol=1e-4, atol=1e-5)


def convolved(x, w, strides, groups):
  """A convolution without padding of (batch, *positions, channels) and (*positions, channels in, out), from the sum."""
  ndim, size, outs = len(strides), w.shape[-2], w.shape[-1] // groups
  lengths = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], w.shape, strides, strict=False)]
  y = np.zeros((len(x), *lengths, w.shape[-1]))
  for at in itertools.product(*map(range, lengths)):
    window = x[:, *(slice(i * s, i * s + k) for i, s, k in zip(at, strides, w.shape, strict=False))]
    for group in range(groups):
      here, there = slice(group * size, (group + 1) * size), slice(group * outs, (group + 1) * outs)
      y[:, *at, there] = np.tensordot(window[..., here], w[..., there], ndim + 1)
  return y


@pytest.mark.sampled(4)
@pytest.mark.parametrize("words", ["", " per_tensor"])
@pytest.mark.parametrize(
  "layout, shape, strides, groups, group",
  [
    (("NHWC", "HWIO"), (2, 3, 8, 4), (1, 2), 1, 2),
    (("NHWC", "HWIO"), (2, 3, 8, 4), (1, 2), 1, 8),
    (("NCHW", "OIHW"), (2, 3, 8, 4), (1, 1), 1, 4),
    (("NHWC", "HWIO"), (2, 2, 4, 6), (1, 1), 2, 2),
    (("NHWC", "HWIO"), (2, 2, 1, 8), (1, 1), 8, 1),
    (("NWC", "WIO"), (3, 8, 4), (2,), 1, 1),
  ],
)
def test_convolutions_have_a_scale_for_each_group_of_input_channels(layout, shape, strides, groups, group, words):
  """At all positions of the kernel together; in float64 from the definition."""
  rng = np.random.default_rng(4)
  w = rng.normal(size=shape) * np.geomspace(0.1, 10, shape[-2])[:, None]
  x = rng.normal(size=(2, *(5,) * len(strides), shape[-2] * groups))
  plain = {1: ("NWC", "WIO"), 2: ("NHWC", "HWIO")}[len(strides)]
  x_axes, w_axes = ([one.index(letter) for letter in own] for one, own in zip(plain, layout, strict=True))
  v = {"k": jnp.asarray(w.transpose(w_axes), jnp.float32)}
  given = jnp.asarray(x.transpose(x_axes), jnp.float32)

  def conv(v, x):
    numbers = (*layout, layout[0])
    return jax.lax.conv_general_dilated(
      x, v["k"], strides, "VALID", dimension_numbers=numbers, feature_group_count=groups
    )

  model, qparams, state = made(conv, v, given, f"w4g{group}{words}")
  w, x = (np.asarray(one, np.float32).astype(np.float64) for one in (w, x))
  parts = w.reshape(*shape[:-2], -1, group, shape[-1])
  others = tuple(i for i in range(parts.ndim) if i != parts.ndim - 3 and (words or i != parts.ndim - 1))
  scale = np.abs(parts).max(others, keepdims=True) / 7
  rounded = (np.clip(np.round(parts / scale), -7, 7) * scale).reshape(shape)
  expected = convolved(x, rounded, strides, groups).transpose(x_axes)

  @jax.jit
  def run(*trained):
    grid = model.grids(*trained, v, given)["k"]
    return model.apply(*trained, v, given)[0], grid.scale, quant.dequantize(quant.codes(v["k"], grid), grid)

  out, own, values = run(qparams, state)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
  assert own.size == scale.size and quant.labels(state)["k/grid"] == f"w4g{group}"
  np.testing.assert_allclose(values, rounded.transpose(w_axes), rtol=1e-5)
  note = model.explain(v, given)["k"].note
  assert note == f"a scale for each {group} inputs: .onnx files hold its codes, in a layer of floats"
  net = quant.post_training(graph.net(conv, v, given), [given], quant.policy(f"w4g{group}{words}", None))
  again = graph.net(conv, v, given).edited(json.loads(json.dumps(net.edits)), net.variables, quant.edit.KIND)
  outs = jax.jit(lambda variables, x, *trained: (again.infer(variables, x), model.apply(*trained, v, x)[0]))
  np.testing.assert_array_equal(*outs(net.variables, given, qparams, state))


def test_stacks_slices_and_transposes_have_groups():
  stack = jnp.asarray(np.stack([V["w"], 3 * np.asarray(V["w"])]))
  uses = {
    "a scan": (lambda v, x: jax.lax.scan(lambda x, w: (x, x @ w), x, v["w"])[1], stack, (2, 3, 5)),
    "columns": (lambda v, x: x @ v["w"][:, :2] + (x @ v["w"][:, 3:]), V["w"], (3, 5)),
    "a transpose": (lambda v, x: x @ v["w"].T, jnp.asarray(np.asarray(V["w"]).T), (5, 3)),
  }
  for name, (used, w, shape) in uses.items():
    model, qparams, state = made(used, {"w": w}, X, "w4g4")
    grids = jax.eval_shape(model.grids, qparams, state, {"w": w}, X)
    assert grids["w"].scale.shape == shape, name
    leaf = np.asarray(w, np.float64)
    if name == "a scan":
      leaf = np.stack([rounded(one, 4, 7) for one in leaf])
    else:
      leaf = rounded(leaf.T, 4, 7).T if name == "a transpose" else rounded(leaf, 4, 7)
    found = jax.jit(model.apply)(qparams, state, {"w": w}, X)[0]
    expected = jax.jit(used)({"w": leaf.astype(np.float32)}, X)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_with_activations_the_product_is_one_of_floats_and_its_bias_stays_one():
  v = {**V, "b": jnp.asarray(np.full(5, 0.123456, np.float32))}
  model, qparams, state = made(lambda v, x: x @ v["w"] + v["b"], v, X, "w4g4a8")
  grids, found = jax.jit(lambda *given: (model.grids(*given), model.apply(*given)[0]))(qparams, state, v, X)
  rounded = jax.jit(quant.fake_quant)
  values = [np.asarray(rounded(a, g), np.float64) for a, g in ((X, grids["input"]), (V["w"], grids["w"]))]
  out = jnp.asarray(values[0] @ values[1] + np.float64(v["b"][0]), jnp.float32)
  np.testing.assert_allclose(found, rounded(out, grids["w:out"]), rtol=1e-5)


def test_a_setting_has_groups():
  for text in ("w4g32", "w4g32a8 learned", "w3g8a8 per_tensor"):
    assert str(quant.parse(text)) == text and quant.parse(str(quant.parse(text))) == quant.parse(text)
  assert quant.parse("w4g32a8").weights.group == 32 == quant.weights(4, group=32).weights.group
  for spec in ("w4g0", {"activations": 8, "group": 4}, {"weights": 4, "group": 2.0}):
    with pytest.raises(UserError, match="a quantization setting has groups of"):
      quant.parse(spec)
  with pytest.raises(UserError, match="does not begin with widths"):
    quant.parse("g32")
  ends = quant.quantize(fn, "w4g4a8").explain(V, X)["w"]
  assert str(ends.setting) == "w8a8"  # raised, as the first and last site


def test_kernels_that_cannot_have_groups_are_refused_by_name():
  kernel = {"k": jnp.ones((3, 3, 4, 2))}
  conv = lambda v, x: jax.lax.conv_general_dilated(
    x, v["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  cases = [
    (fn, V, X, "w4g5", "the kernel of 'w' has 12 inputs, which groups of 5 do not divide"),
    (conv, kernel, jnp.ones((1, 5, 5, 4)), "w4g3", "the kernel of 'k' has 4 input channels, which groups of 3 do not"),
    (
      lambda v, x: conv({"k": x}, v["k"]),
      kernel,
      jnp.ones((2, 2, 2, 1)),
      "w4g2",
      "'k' cannot have groups of 2: it holds",
    ),
    (
      lambda v, x: conv({"k": v["k"].reshape(3, 3, 2, 4)}, x),
      kernel,
      jnp.ones((1, 5, 5, 2)),
      "w4g2",
      "of 'k' is computed",
    ),
    (
      lambda v, x: jnp.einsum("bij,ijo->bo", x, v["k"]),
      {"k": jnp.ones((3, 4, 2))},
      jnp.ones((2, 3, 4)),
      "w4g2",
      "2 axes",
    ),
    (lambda v, x: x @ jnp.tanh(v["w"]), V, X, "w4g4", "the kernel of 'w' is computed"),
    (lambda v, x: x[:, :8] @ v["w"][:8], V, X, "w4g4", "the kernel of 'w' is computed, or a part of a leaf"),
  ]
  for used, v, x, setting, words in cases:
    with pytest.raises(UserError, match=words):
      made(used, v, x, setting)
  with pytest.raises(UserError, match="latent_weights: the rule"):
    import optax

    quant.latent_weights(optax.sgd(0.1), "w4g4")


def test_a_state_of_other_groups_is_refused():
  _, qparams, state = made(fn, V, X, "w4g4")
  with pytest.raises(UserError, match="as 'w4g4', and this model needs 'w4g6'"):
    made(fn, V, X, "w4g6")[0].apply(qparams, state, V, X)


def test_channels_of_grouped_kernels_are_cut_with_their_scales():
  v = {"params": {"w": V["w"], "u": jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)), jnp.float32)}}
  net = graph.net(lambda v, x: jnp.tanh(x @ v["params"]["w"]) @ v["params"]["u"], v, X)
  net = quant.post_training(net, [X], quant.policy({"w": "w4g4a8", "*": "w8a8"}, ends=None))
  small = quant.before(net, lambda net: graph.keep_channels(net, {"w": [0, 2, 4]}))
  zeroed = {**v["params"], "u": np.where(np.isin(np.arange(5), [1, 3])[:, None], 0, v["params"]["u"])}
  np.testing.assert_allclose(infer(small), infer(net, zeroed), rtol=1e-5, atol=1e-5)


def test_inputs_of_grouped_kernels_are_cut_by_whole_groups_only():
  draw = lambda i, *shape: array(np.random.default_rng(i).normal(size=shape), jnp.float32)
  v = {"params": {"w": draw(0, 12, 8), "u": draw(1, 8, 3) * np.geomspace(0.01, 1.0, 8, dtype=np.float32)[:, None]}}
  net = graph.net(lambda v, x: jnp.tanh(x @ v["params"]["w"]) @ v["params"]["u"], v, X)
  net = quant.post_training(net, [X], quant.policy({"u": "w4g2", "*": "float"}, ends=None))
  kept, moved = [2, 3, 6, 7], [3, 2, 0, 1, 5, 4, 6, 7]
  small = quant.before(net, lambda net: graph.keep_channels(net, {"w": kept}))
  zeroed = {**v["params"], "u": np.where(np.isin(np.arange(8), kept)[:, None], v["params"]["u"], 0)}
  np.testing.assert_allclose(infer(small), infer(net, zeroed), rtol=1e-5, atol=1e-6)
  other = quant.before(net, lambda net: graph.permute(net, "w", 1, moved))
  np.testing.assert_allclose(infer(other), infer(net), rtol=1e-5, atol=1e-6)
  for change in (
    lambda net: graph.keep_channels(net, {"w": [0, 2, 4, 5]}),
    lambda net: graph.permute(net, "w", 1, [0, 2, 1, 3, 4, 5, 6, 7]),
  ):
    with pytest.raises(UserError, match="the edits take the groups of 'u' apart, which share a scale"):
      quant.before(net, change)
