"""Scales and offsets that stand alone as depthwise convolutions: which of them can be, and the numbers of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models
from tests.graph.test_norms import Everywhere, stats, textbook


def test_norms_that_stay_are_convolutions_where_they_can_be():
  module, x = Everywhere(), models.images(2)
  folded = graph.fold_batch_norms(graph.net(module.apply, models.made(module, x), x))
  net = graph.depthwise_batch_norms(folded)
  left = {
    norm.name.removeprefix("batch_stats/BatchNorm_"): norm
    for norm in graph.batch_norms(folded.infer, folded.variables, x)
  }
  assert {name: norm.kernel for name, norm in left.items()} == {
    name: f"BatchNorm_{name}/scale" for name in ("0", "2", "3", "4", "6", "5", "9")
  }
  assert [one["scale"] for one in net.edits[len(folded.edits) :]] == [norm.kernel for norm in left.values()]
  assert graph.batch_norms(net.infer, net.variables, x) == []
  assert "batch_stats" not in net.variables
  np.testing.assert_allclose(
    jax.jit(net.infer)(net.variables, x), jax.jit(folded.infer)(folded.variables, x), rtol=1e-5, atol=1e-5
  )
  sites = graph.trace(net.infer, net.variables, x).sites
  assert all(sites[norm.kernel].kind == "conv" for norm in left.values())
  assert sites["BatchNorm_6/bias"].site == "BatchNorm_6/scale"  # the bias of the dense layer before is that one's


SHAPES = {(2, 4): 1, (2, 3, 4): 2, (2, 4, 2, 3): 1, (2, 3, 2, 2, 4): 4}  # and the axis of the channels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lacks", ["", "g", "b"])
def test_numbers_are_those_of_the_definition(shape, lacks):
  v = {"bn": stats(4) | {"g": jnp.array([0.5, -2.0, 0.0, 1.0])}}
  v["bn"] = {name: leaf for name, leaf in v["bn"].items() if name != lacks}
  x = models.normal(0, *shape)

  def fn(v, x):
    wide = [-1 if axis == SHAPES[shape] else 1 for axis in range(x.ndim)]
    p = {name: v["bn"][name].reshape(wide) for name in v["bn"]}
    y = (jnp.sin(x) - p["m"]) / jnp.sqrt(p["v"] + 1e-3)
    y = y * p["g"] if "g" in p else y
    return y + p["b"] if "b" in p else y

  net = graph.depthwise_batch_norms(graph.net(fn, v, x))
  p = {"g": 1, "b": 0} | {name: np.asarray(leaf, np.float64) for name, leaf in v["bn"].items()}
  slope = p["g"] / np.sqrt(p["v"] + 1e-3)
  (edit,) = net.edits
  found = net.variables["bn"]
  assert sorted(found) == sorted({"": ("b", "g"), "g": ("b", "scale"), "b": ("g", "bias")}[lacks])
  np.testing.assert_allclose(found[edit["scale"].rpartition("/")[2]], np.broadcast_to(slope, 4), rtol=1e-6)
  np.testing.assert_allclose(found[edit["bias"].rpartition("/")[2]], p["b"] - p["m"] * slope, rtol=1e-6)
  np.testing.assert_allclose(net.infer(net.variables, x), fn(v, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "fn",
  [
    lambda v, x: jnp.tanh(textbook(x, v["bn"])) * v["bn"]["g"] + v["bn"]["b"],  # others read both, too
    lambda v, x: textbook(textbook(x, v["bn"]) @ v["w"] @ x, v["bn"]),  # twice, of different activations
    lambda v, x: textbook(x, {**v["bn"], "m": v["w"][:1]}) + v["w"],  # along two axes
    lambda v, x: textbook(jnp.tanh(x[:, None] * x[..., None]), {**v["bn"], "m": v["w"]}),  # and without the first
    lambda v, x: textbook(x, {name: leaf[:, None] for name, leaf in v["bn"].items()}),  # along that of examples
    lambda v, x: textbook(x, {**v["bn"], "m": v["bn"]["m"] / 0}),
    lambda v, x: textbook(x, {"g": 1.0, "b": 0.0, "m": 0.0, "v": v["bn"]["v"]}),  # neither scale nor bias
    lambda v, x: textbook(x.astype(jnp.bfloat16), jax.tree.map(lambda p: p.astype(jnp.bfloat16), v["bn"])),
  ],
)
def test_others_stay(fn):
  net = graph.net(fn, {"w": models.normal(5, 3, 3), "bn": stats(3)}, jnp.ones((3, 3)))
  assert graph.depthwise_batch_norms(net) is net
  assert [norm.kernel for norm in graph.batch_norms(net.infer, net.variables, *net.example)] in ([None], [None, None])


def test_one_scale_by_its_name():
  fn = lambda v, x: jnp.tanh(x) * v["gain"] @ v["w"]
  v, x = {"gain": models.normal(1, 3), "w": models.normal(2, 3, 2)}, models.normal(3, 4, 3)
  net = graph.depthwise(graph.net(fn, v, x), "gain")
  assert set(net.variables) == {"gain", "bias", "w"}
  np.testing.assert_allclose(net.infer(net.variables, x), fn(v, x), rtol=1e-6)
  assert graph.trace(net.infer, net.variables, x).sites["gain"].kind == "conv"
  assert graph.depthwise_batch_norms(graph.net(fn, v, x)).edits == ()  # no batch norm
  with pytest.raises(UserError, match="the variables lack 'bias', which a depthwise convolution reads"):
    net.infer(v, x)


def test_a_scale_that_is_a_kernel_already_is_refused():
  net = graph.net(lambda v, x: jnp.maximum(x * v["scale"], 0), {"scale": jnp.array([1.0, 2.0, 3.0])}, jnp.ones((1, 3)))
  with pytest.raises(UserError, match="'scale' cannot be the kernel of a depthwise convolution"):
    graph.depthwise(graph.depthwise(net, "scale"), "scale")
