"""A new head in the place of all that follows an activation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.graph import head
from tests.graph import models
from tests.graph.test_net import KEY, Dropped, equal, fn

TAP = "Conv_1/kernel:out"
STEPS = [["pool", (4, 4)], ["layer", "wide"], ["relu"], ["mean"], ["layer", "last"]]
PARAMS = {
  "wide": {"kernel": models.normal(0, 3, 3, 6, 5), "bias": models.normal(1, 5)},
  "last": {"kernel": models.normal(2, 5, 2), "bias": models.normal(3, 2)},
}


@pytest.fixture(scope="module")
def whole():
  x = models.images(4)
  return graph.net_of(fn, models.made(Dropped(), x), x)


@pytest.fixture(scope="module")
def net(whole):
  return graph.replace_head(whole, TAP, STEPS, PARAMS)


def head64(features):
  x = np.float64(features)
  x = x.reshape(len(x), 4, 2, 4, 2, 6).mean((2, 4))
  wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.float64(PARAMS["wide"]["kernel"])
  x = sum(wide[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)) + PARAMS["wide"]["bias"]
  return np.maximum(x, 0).mean((1, 2)) @ np.float64(PARAMS["last"]["kernel"]) + PARAMS["last"]["bias"]


def test_the_head_reads_the_activation_and_the_layers_behind_it_are_gone(whole, net):
  x = models.images(3)
  found = graph.taps(whole.infer, [TAP])(whole.variables, x)[1][TAP]
  equal(net.infer(net.variables, x), head64(found), rtol=1e-4, atol=1e-5)
  assert "Dense_0" not in net.variables["params"] and set(net.variables["params"]["head"]) == {"wide", "last"}
  stored = json.loads(json.dumps([net.edits, graph.shapes(whole.variables)]))
  again = graph.edit(whole.infer, *stored)
  equal(again(net.variables, x), net.infer(net.variables, x), rtol=0, atol=0)


def test_it_trains_with_the_remaining_statistics(whole, net):
  x = models.images(4)
  out, state = net.apply(net.variables, x, train=True, key=KEY)
  expected = fn(whole.variables, x, train=True, key=KEY)[1]
  equal(state, {"batch_stats": expected["batch_stats"]})
  gradient = jax.grad(lambda v: jnp.sum(net.apply(v, x, train=True, key=KEY)[0] ** 2))(net.variables)
  assert out.shape == (4, 2) and all(jnp.any(g) for g in jax.tree.leaves(gradient["params"]["head"]))


def test_other_edits_follow(net):
  x = models.images(4)
  folded = graph.fold_batch_norms(net)
  equal(folded.infer(folded.variables, x), net.infer(net.variables, x))
  small = graph.keep_channels(folded, {"head/wide/kernel": [0, 2, 4]})
  assert named_leaves(small.variables)["params/head/last/kernel"].shape == (3, 2)
  again = graph.replace_head(small, "head/wide/kernel", [["mean"]], {}, "empty")
  equal(
    again.infer(again.variables, x),
    graph.taps(small.infer, ["head/wide/kernel"])(small.variables, x)[1]["head/wide/kernel"].mean((1, 2)),
  )
  assert folded.apply(folded.variables, x, train=True, key=KEY)[1] == {}


def test_a_size_that_does_not_divide_is_averaged_too():
  x = models.normal(0, 2, 5, 7, 3)
  want = np.stack([np.float64(x)[:, a:b].mean(1) for a, b in ((0, 3), (2, 5))], 1)
  want = np.stack([want[:, :, a:b].mean(2) for a, b in ((0, 3), (2, 5), (4, 7))], 2)
  np.testing.assert_allclose(head.run([["pool", [2, 3]]], {}, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"tap": "Conv_9/kernel:out"}, "unknown activation or operation 'Conv_9/kernel:out'"),
    ({"steps": [["layers", "last"]]}, "unknown step of a head 'layers'; did you mean 'layer'"),
    ({"steps": [["layer", "lost"]]}, "unknown layer of a head 'lost'; did you mean 'last'"),
    ({"steps": [["mean"], ["layer", "last"]]}, r"'last' of a head reads 5 channels and gets .* \(4, 6\)"),
    ({"name": "Conv_0"}, "the head's name 'Conv_0' is taken among the parameters"),
  ],
)
def test_mistakes_are_named(whole, change, words):
  with pytest.raises(UserError, match=words):
    graph.replace_head(whole, **{"tap": TAP, "steps": STEPS, "params": PARAMS, **change})


def test_variables_that_are_not_divided_are_refused():
  net = graph.net(lambda v, x: x @ v["a"], {"a": jnp.ones((3, 4))}, jnp.ones((2, 3)))
  with pytest.raises(UserError, match="where the variables are {'params': tree, ...}"):
    graph.replace_head(net, "a", [["relu"]], {})
