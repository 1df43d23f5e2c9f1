"""Layers in the shapes that others write them in: each is a site, is explained, and is quantized to eight bits."""

import jax
import numpy as np
import pytest

from leanax import graph
from quant.quantize import quantize
from tests.quant.test_calibration import data, decibels


def convolution(spec, window):
  def fn(v, x):
    return jax.lax.conv_general_dilated(x, v["w"], window, "SAME", dimension_numbers=spec) + v["b"]

  return fn


def dense(v, x):
  return x @ v["w"] + v["b"]


def mapped(v, x):
  return jax.vmap(lambda x: jax.nn.relu(v["w"] @ x + v["b"]))(x)


def mapped_twice(v, x):
  return jax.vmap(jax.vmap(lambda x: v["w"] @ x + v["b"]))(x)


CASES = {
  "dense on positions": (dense, {"w": data((4, 6)), "b": data((6,))}, data((5, 3, 4), 1)),
  "W @ x under vmap": (mapped, {"w": data((6, 4)), "b": data((6,))}, data((5, 4), 1)),
  "W @ x under two": (mapped_twice, {"w": data((6, 4)), "b": data((6,))}, data((5, 3, 4), 1)),
  "one dimension": (
    convolution(("NWC", "WIO", "NWC"), (1,)),
    {"w": data((3, 4, 6)), "b": data((6,))},
    data((5, 8, 4), 1),
  ),
  "channels first": (
    convolution(("NCHW", "OIHW", "NCHW"), (2, 2)),
    {"w": data((6, 4, 3, 3)), "b": data((6, 1, 1))},
    data((5, 4, 8, 8), 1),
  ),
  "three dimensions": (
    convolution(("NDHWC", "DHWIO", "NDHWC"), (1, 1, 1)),
    {"w": data((2, 3, 3, 2, 4)), "b": data((4,))},
    data((2, 4, 4, 4, 2), 1),
  ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_it_is_quantized_with_one_scale_for_each_channel(name):
  fn, variables, x = CASES[name]
  found = graph.trace(fn, variables, x).sites
  assert [(site, op.kind) for site, op in found.items()][1:] == [("b", "bias"), ("output", "output")]
  assert found["w"].kind in ("dot", "conv") and found["w"].macs > 0
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  assert {site: str(one.setting) for site, one in model.explain(variables, x).items()} == {
    "w": "w8a8",
    "output": "w8a8",
  }
  assert model.grids(qparams, state, variables, x)["w"].scale.size == variables["b"].size
  batches = [np.asarray(x), np.asarray(x)[:1], np.concatenate([x, x])]
  both = lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0])
  for pair in jax.jit(lambda *held: [both(*held, batch) for batch in batches])(qparams, state, variables):
    assert decibels(*pair) > 30
