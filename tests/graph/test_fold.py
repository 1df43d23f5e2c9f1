"""Batch norms folded into the layer before them, whatever their spelling."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from tests.graph import models


def check(fn, variables, x, folded):
  fn2, variables2, edits = models.folded(fn, variables, x[:1])
  assert [e["site"] for e in edits] == folded
  stored = json.loads(json.dumps([edits, graph.shapes(variables)]))
  every = jax.jit(lambda v, v2, x: (fn(v, x), fn2(v2, x), graph.edit(fn, *stored)(v2, x)))
  expected, out, again = every(variables, variables2, x)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(again, out)
  return fn2, variables2, edits


def test_linen():
  case = models.conv_net()
  fn2, variables2, _ = check(case.fn, case.variables, case.x, ["Conv_0/kernel", "Conv_1/kernel"])
  layers = [("Conv_0", "kernel"), ("Conv_0", "bias"), ("Conv_1", "kernel"), ("Conv_1", "bias")]
  layers += [("Dense_0", "kernel"), ("Dense_0", "bias")]
  assert set(named_leaves(variables2)) == {"/".join(("params", *layer)) for layer in layers}
  found = graph.trace(fn2, variables2, case.x)
  assert [name for name, op in found.sites.items() if op.kind == "bias"] == [
    "Conv_0/bias",
    "Conv_1/bias",
    "Dense_0/bias",
  ]
  assert found.sites["Conv_0/bias"].site == "Conv_0/kernel"
  primitives = [node.primitive for node in found.flat]
  assert "rsqrt" not in primitives and "sub" not in primitives
  again = graph.rewrite(fn2, lambda op, inputs, extras: None)
  out, expected = jax.jit(lambda v, x: (again({}, v, x)[0], fn2(v, x)))(variables2, case.x)
  np.testing.assert_array_equal(out, expected)
  gradient = jax.jit(jax.grad(lambda v: jnp.sum(fn2(v, case.x) ** 2)))(variables2)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient))


def test_fold_by_hand():
  case = models.conv_net()
  _, variables2, _ = models.folded(case.fn, case.variables, case.x)
  p, s = case.variables["params"], case.variables["batch_stats"]["BatchNorm_1"]
  slope = np.asarray(p["BatchNorm_1"]["scale"]) / np.sqrt(np.asarray(s["var"]) + 1e-5)
  offset = (np.asarray(p["Conv_1"]["bias"]) - np.asarray(s["mean"])) * slope + np.asarray(p["BatchNorm_1"]["bias"])
  np.testing.assert_allclose(variables2["params"]["Conv_1"]["kernel"], p["Conv_1"]["kernel"] * slope, rtol=1e-5)
  np.testing.assert_allclose(variables2["params"]["Conv_1"]["bias"], offset, rtol=1e-5, atol=1e-6)


def test_nnx():
  case = models.nnx_conv_net()
  _, variables2, _ = check(case.fn, case.variables, case.x, ["conv/kernel"])
  assert "conv/bias" in {name.removeprefix("params/") for name in named_leaves(variables2)}


def norm_textbook(y, p):
  return (y - p["m"]) / jnp.sqrt(p["v"] + 1e-3) * p["g"] + p["b"]


def norm_precomputed(y, p):
  a = p["g"] * jax.lax.rsqrt(p["v"] + 1e-3)
  return p["b"] - (-y * a) - p["m"] * a


def norm_channels_first(y, p):
  s = (3, 1, 1)
  y = y.transpose(0, 3, 1, 2)
  y = y * (p["g"] / jnp.sqrt(p["v"] + 1e-3)).reshape(s) + (p["b"] - p["m"] * p["g"] / jnp.sqrt(p["v"] + 1e-3)).reshape(
    s
  )
  return y.transpose(0, 2, 3, 1)


def norm_flat(y, p):
  return norm_textbook(y.reshape(-1, y.shape[-1]), p).reshape(y.shape)


@jax.jit
def norm_called(y, p):
  return jax.jit(norm_precomputed)(y, p)


@pytest.mark.parametrize("norm", [norm_textbook, norm_precomputed, norm_channels_first, norm_flat, norm_called])
@pytest.mark.parametrize("remat", [False, True])
def test_spellings(norm, remat):
  stats = {k: jnp.abs(models.normal(i, 3)) + 0.5 for i, k in enumerate("gbmv")}
  variables = {
    "params": {"a": {"kernel": models.normal(4, 3, 3, 3, 3)}, "w": models.normal(5, 3, 2)},
    "bn": stats,
  }

  def block(variables, x):
    kernel = variables["params"]["a"]["kernel"].transpose(3, 2, 0, 1)
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))
    return jax.nn.relu(norm(y, variables["bn"]))

  def fn(variables, x):
    y = jax.checkpoint(block)(variables, x) if remat else block(variables, x)
    return y.mean((1, 2)) @ variables["params"]["w"]

  fn2, variables2, _ = check(fn, variables, models.images(2), ["a/kernel"])
  assert set(named_leaves(variables2)) == {"params/a/kernel", "params/a/bias", "params/w"}
  assert graph.trace(fn2, variables2, models.images(2)).sites["a/bias"].site == "a/kernel"


def test_other_arithmetic_than_a_batch_norm_stays():
  def fn(variables, x):
    p = variables["params"]
    y = x @ p["shared"] * p["gain"]  # the kernel is read twice
    z = y @ p["last"] / 2.0 + p["positions"]  # not the same at every position
    return z + x @ p["shared"], y @ p["tail"] + p["bias"]  # a plain bias

  shapes = {"shared": (3, 3), "gain": (3,), "last": (3, 3), "positions": (2, 3), "tail": (3, 4), "bias": (4,)}
  variables = {"params": {name: models.normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}}
  _, variables2, edits = models.folded(fn, variables, jnp.ones((2, 3)))
  assert edits == []
  jax.tree.map(np.testing.assert_array_equal, variables, variables2)


def test_mistakes_are_named():
  case = models.conv_net()
  fn2, variables2, edits = models.folded(case.fn, case.variables, case.x)
  with pytest.raises(UserError, match=r"no batch norm after 'Conv_0/kernel'"):
    graph.edit(case.train, edits, graph.shapes(case.variables))(variables2, case.x)
  with pytest.raises(UserError, match=r"unknown edit 'fold_batch_nrm'; did you mean 'fold_batch_norm'"):
    graph.edit(case.fn, [{"edit": "fold_batch_nrm"}], [])
  del variables2["params"]["Conv_0"]["bias"]
  with pytest.raises(UserError, match=r"lack 'Conv_0/bias'"):
    fn2(variables2, case.x)
  with pytest.raises(
    UserError, match="nested dicts, lists and tuples of arrays to be written down, but 'a/0' is in a Par"
  ):
    graph.shapes({"a": jax.tree_util.Partial(abs, jnp.ones(1))})


def test_variables_in_lists():
  def fn(variables, x):
    for layer in variables:
      x = norm_textbook(x @ layer["w"], layer["bn"])
    return x

  norm = {k: jnp.abs(models.normal(i, 3)) + 0.5 for i, k in enumerate("gbmv")}
  layers = [{"w": models.normal(4, 3, 3), "bn": norm}] * 2
  _, variables2, _ = check(fn, layers, jnp.ones((2, 3)), ["0/w", "1/w"])
  assert list(named_leaves(variables2)) == ["0/bias", "0/w", "1/bias", "1/w"]


class General(nn.Module):
  """Kernels with several axes of outputs: with a bias, without one, and a norm over one of the axes alone."""

  @nn.compact
  def __call__(self, x):
    def norm(*axis):
      return nn.BatchNorm(use_running_average=True, axis=axis)

    x = nn.relu(norm(-2, -1)(nn.DenseGeneral((4, 3))(x)))
    x = nn.relu(norm(-1)(nn.DenseGeneral((2, 5), axis=(-2, -1), use_bias=False)(x)))
    return norm(-1)(jnp.einsum("bhd,edh->bhe", x, self.param("experts", nn.initializers.ones, (3, 5, 2))))


def test_several_axes_of_outputs():
  module, x = General(), models.normal(1, 4, 6)
  variables = models.made(module, x)
  names = ["DenseGeneral_0/kernel", "DenseGeneral_1/kernel", "experts"]
  _, variables2, edits = check(module.apply, variables, x, names)
  assert [e["bias"] for e in edits] == ["DenseGeneral_0/bias", "DenseGeneral_1/bias", "bias"]
  p, s = variables["params"], variables["batch_stats"]
  found = {name: leaf.shape for name, leaf in named_leaves(variables2["params"]).items()}
  assert found == {
    "DenseGeneral_0/bias": (4, 3),
    "DenseGeneral_0/kernel": (6, 4, 3),
    "DenseGeneral_1/bias": (2, 5),
    "DenseGeneral_1/kernel": (4, 3, 2, 5),
    "bias": (2, 3),
    "experts": (3, 5, 2),
  }
  slope = np.float64(p["BatchNorm_0"]["scale"]) / np.sqrt(np.float64(s["BatchNorm_0"]["var"]) + 1e-5)
  kernel, bias = (np.float64(p["DenseGeneral_0"][key]) for key in ("kernel", "bias"))
  new = variables2["params"]["DenseGeneral_0"]
  np.testing.assert_allclose(new["kernel"], kernel * slope, rtol=1e-6)
  expected = (bias - s["BatchNorm_0"]["mean"]) * slope + p["BatchNorm_0"]["bias"]
  np.testing.assert_allclose(new["bias"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("flat", [lambda *parts: "/".join(parts), lambda *parts: parts])
def test_flat_dicts(flat):
  stats = {k: jnp.abs(models.normal(i, 3)) + 0.5 for i, k in enumerate("gbmv")}
  variables = {flat("a", "kernel"): models.normal(4, 3, 3), flat("b", "kernel"): models.normal(5, 3, 3)}
  variables |= {flat("b", "bias"): models.normal(6, 3)} | {flat("n", k): leaf for k, leaf in stats.items()}

  def fn(v, x):
    p = {k: v[flat("n", k)] for k in "gbmv"}
    x = norm_textbook(x @ v[flat("a", "kernel")], p)
    return norm_textbook(x @ v[flat("b", "kernel")] + v[flat("b", "bias")], p)

  x = models.normal(7, 2, 3)
  fn2, variables2, edits = models.folded(fn, variables, x)
  assert set(variables2) == {flat(layer, part) for layer in "ab" for part in ("kernel", "bias")}
  np.testing.assert_allclose(fn2(variables2, x), fn(variables, x), rtol=1e-5, atol=1e-5)
  stored = json.loads(json.dumps([edits, graph.shapes(variables)]))
  np.testing.assert_array_equal(graph.edit(fn, *stored)(variables2, x), fn2(variables2, x))


def test_folding_does_not_compile_a_chain_at_a_time():
  """Of 24 layers with three widths; the programs are those of single equations on a vector of each width."""
  widths = [4, 5, 6] * 8
  layers = [
    {"w": models.normal(i, a, b), "bn": {k: jnp.abs(models.normal(j, b)) + 0.5 for j, k in enumerate("gbmv")}}
    for i, (a, b) in enumerate(zip([6, *widths], widths, strict=False))
  ]

  def fn(variables, x):
    for layer in variables:
      x = jax.nn.relu(norm_textbook(x @ layer["w"], layer["bn"]))
    return x

  def compiled(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
      programs.append(event)

  programs = []
  jax.monitoring.register_event_duration_secs_listener(compiled)
  _, _, edits = models.folded(fn, layers, jnp.ones((1, 6)))
  jax.monitoring.unregister_event_duration_listener(compiled)
  assert len(edits) == 24 and len(programs) < 16


def test_taps():
  case = models.conv_net()
  names = ["input", "Conv_0/kernel", "Conv_0/kernel:out", "Conv_1/kernel:add:out"]
  out, found = jax.jit(graph.taps(case.fn, names))(case.variables, case.x)
  np.testing.assert_array_equal(out, jax.jit(case.fn)(case.variables, case.x))
  np.testing.assert_array_equal(found["input"], case.x)
  assert found["Conv_0/kernel"].min() < 0 <= found["Conv_0/kernel:out"].min()
  kernel = case.variables["params"]["Conv_0"]["kernel"]
  conv = jax.lax.conv_general_dilated(case.x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  np.testing.assert_allclose(found["Conv_0/kernel"], conv, rtol=1e-5, atol=1e-5)
  assert found["Conv_1/kernel:add:out"].shape == (2, 8, 8, 4)
  with pytest.raises(UserError, match="did you mean 'Conv_0/kernel'"):
    graph.taps(case.fn, ["Conv_0/kernal"])(case.variables, case.x)
  with pytest.raises(UserError, match="the names of taps are the text 'Conv_0/kernel'; expected a list of names"):
    graph.taps(case.fn, "Conv_0/kernel")
