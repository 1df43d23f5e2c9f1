"""Quantization as the last edit of a net."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from leanax.core.errors import UserError
from leanax.engine import models

V = {
  "params": {
    name: jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
    for i, (name, shape) in enumerate({"a": (5, 6), "bias": (6,), "b": (6, 3)}.items())
  }
}
X = jnp.asarray(np.random.default_rng(9).normal(size=(8, 5)), jnp.float32)
BATCHES = (X, 2 * X, 3 * X)


def infer(net, params=None):
  """The output of one program, not one for each operation."""
  variables = net.variables if params is None else {**net.variables, "params": params}
  return jax.jit(net.infer)(variables, X)


def fn(v, x):
  p = v["params"]
  return jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]


@functools.cache
def make(setting="w8a8 learned", **more):
  return quant.post_training(graph.net(fn, V, X), BATCHES, setting, **more)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("setting", ["w8a8", "w4a8 learned per_tensor", "w4a4 percentile(q=99.0)"])
def test_a_quantized_net_is_what_quantize_computes(setting):
  net, model = make(setting), quant.quantize(fn, setting)
  qparams, state = model.init(V, X)
  for x in BATCHES:
    _, state = jax.jit(model.observe)(state, V, x)
  qparams, state = model.freeze(qparams, state)
  assert net.variables.keys() == {"params", "qparams", "quant_state"}
  jax.tree.map(np.testing.assert_array_equal, dict(net.variables), {**V, "qparams": qparams, "quant_state": state})
  out, collections = jax.jit(net.apply)(net.variables, X)
  np.testing.assert_array_equal(out, jax.jit(model.apply)(qparams, state, V, X)[0])
  assert collections.keys() == {"qparams", "quant_state"}
  jaxprs = [
    str(jax.make_jaxpr(f)(*a))
    for f, a in (
      (lambda v, x: net.infer(v, x), (net.variables, X)),
      (lambda *a: model.apply(*a)[0], (qparams, state, V, X)),
    )
  ]
  assert len(jaxprs[0].splitlines()) == len(jaxprs[1].splitlines())


def test_the_edit_is_data():
  net = make("w4a8 learned ema(rate=0.5)", carrier="int8")
  edits = json.loads(json.dumps(net.edits))
  again = graph.net(fn, V, X).edited(edits, net.variables, quant.edit.KIND)
  np.testing.assert_array_equal(infer(again), infer(net))
  with pytest.raises(UserError, match="unknown edit 'quantize'"):
    graph.net(fn, V, X).edited(edits, net.variables)


def test_trained_scales_get_gradients_and_batches_may_have_any_size():
  net = make()

  def loss(trained):
    return jnp.sum(net.apply({**net.variables, **trained}, X[:3], train=True)[0] ** 2)

  grads = jax.jit(jax.grad(loss))({name: net.variables[name] for name in ("params", "qparams")})
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads["params"]))
  assert set(grads["qparams"]) == {"a", "b", "a:out", "b:out"} and all(map(np.any, grads["qparams"].values()))


def scales(net):
  """The trained scales, and the frozen ones."""
  return net.variables["qparams"], {name: one["used"]["scale"] for name, one in net.variables["quant_state"].items()}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kept", [[1, 2, 5], [4]])
@pytest.mark.parametrize("setting", ["w8a8", "w4a8 learned", "w4a4 tqt per_tensor"])
def test_channels_of_a_quantized_net_are_cut_with_their_scales(setting, kept):
  """Exactly the net whose readers give the removed channels the weight zero."""
  net, gone = make(setting), [i for i in range(6) if i not in kept]
  small = quant.before(net, lambda net: graph.keep_channels(net, {"a": kept}))
  zeroed = {**V["params"], "b": np.where(np.isin(np.arange(6), gone)[:, None], 0, V["params"]["b"])}
  assert small.variables["params"]["a"].shape == (5, len(kept))
  assert [one["edit"] for one in small.edits] == ["keep_channels", "quantize"]
  np.testing.assert_array_equal(infer(small), infer(net, zeroed))
  for before, after in zip(scales(net), scales(small), strict=True):
    cut = {"a": np.asarray(before["a"])[kept]} if "a" in before and "per_tensor" not in setting else {}
    jax.tree.map(np.testing.assert_array_equal, after, {**before, **cut})


def test_channels_in_another_order_take_their_scales_along():
  net = make("w4a8")
  moved = quant.before(net, lambda net: graph.permute(net, "a", 1, [3, 1, 0, 5, 4, 2]))
  np.testing.assert_array_equal(infer(moved), infer(net))


def test_groups_move_whole_or_are_calibrated_again():
  """Two channels that share a scale stay beside each other: another neighbour would be rounded by a foreign scale."""
  net = make(quant.policy([("b", "w4g2"), ("*", "w8a8")], ends=None))
  moved = quant.before(net, lambda net: graph.permute(net, "a", 1, [5, 4, 0, 1, 3, 2]))
  np.testing.assert_allclose(infer(moved), infer(net), rtol=1e-5)
  small = quant.before(net, lambda net: graph.keep_channels(net, {"a": [2, 3]}))
  np.testing.assert_array_equal(scales(small)[1]["b"], scales(net)[1]["b"][1:2])
  for change in (
    lambda net: graph.permute(net, "a", 1, [0, 2, 1, 3, 4, 5]),
    lambda net: graph.keep_channels(net, {"a": [0, 1, 3, 4]}),
  ):
    with pytest.raises(UserError, match="the edits take the groups of 'b' apart, .* calibrate again"):
      quant.before(net, change)


def test_an_edit_behind_the_grids_is_refused():
  net = make()
  for change in (
    lambda net: graph.permute(net, "a", 1, [3, 1, 0, 5, 4, 2]),
    lambda net: graph.keep_channels(net, {"a": [0]}),
    lambda net: quant.post_training(net, [X], "w4a4"),
  ):
    with pytest.raises(UserError):
      change(net)
  with pytest.raises(UserError, match="the edit 'permute' comes after 'quantize'; .* edited before its grids"):
    net.edited([{"edit": "permute", "leaf": "a", "axis": 1, "order": [0]}], net.variables)


class Norm(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_other_edits_ask_for_calibration():
  module = Norm()
  variables = jax.jit(module.init)(jax.random.key(0), X)
  net = models.net(module, variables, X)
  rounded = quant.post_training(net, [X], "w8a8")
  with pytest.raises(UserError, match="the grids are not those of a net after 'fold_batch_norm'; .* calibrate again"):
    quant.before(rounded, graph.fold_batch_norms)
  folded = quant.post_training(graph.fold_batch_norms(quant.float_net(rounded)), [X], "w8a8")
  np.testing.assert_allclose(infer(folded), jax.jit(module.apply)(variables, X), atol=0.05)


def test_dropout_stays_where_a_quantized_net_is_trained():
  module = Norm()
  net = graph.fold_batch_norms(models.net(module, jax.jit(module.init)(jax.random.key(0), X), X))
  net = quant.post_training(net, [X], "w8a8")
  apply = jax.jit(lambda key: net.apply(net.variables, X, train=True, key=key)[0])
  outs = [np.asarray(apply(jax.random.key(i))) for i in (0, 1)]
  assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_mistakes_are_named():
  with pytest.raises(UserError, match="there are no batches to calibrate with"):
    quant.post_training(graph.net(fn, V, X), [], "w8a8")
  with pytest.raises(UserError, match="the variables of a quantized net have no 'qparams'"):
    make().infer(V, X)
  for call in (quant.float_net, lambda net: quant.post_training(net, [X], "w8a8"), lambda net: quant.before(net, id)):
    with pytest.raises(UserError, match="the net is a function; expected a graph.Net"):
      call(fn)
  with pytest.raises(UserError, match="the net is a NoneType; expected a graph.Net"):
    quant.before(make(), lambda net: None)
  with pytest.raises(UserError, match="the net is not quantized"):
    quant.float_net(graph.net(fn, V, X))
  with pytest.raises(UserError, match="hold 'qparams' already; expected a float net, such as of quant.float_net"):
    quant.post_training(make(), [X], "w8a8")
  with pytest.raises(UserError, match="the net's variables are a list; expected a dict"):
    quant.post_training(graph.net(lambda v, x: x @ v[0], [V["params"]["a"]], X), [X], "w8a8")


@pytest.mark.parametrize(
  ("batch", "said"),
  [
    (np.ones((2, 5), np.float32), r"calibration batch 1 is float32 \(N, 5\); the net takes float32 \(N, 4\)"),
    (np.ones((2, 4), np.uint8), "calibration batch 1 is of uint8; the net takes float32: expected the numbers"),
  ],
)
def test_a_calibration_batch_that_the_net_does_not_take_is_named(batch, said):
  net = graph.net(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 3))}, jnp.ones((1, 4)))
  with pytest.raises(UserError, match=said):
    quant.post_training(net, [np.ones((2, 4), np.float32), batch], "w8a8")
