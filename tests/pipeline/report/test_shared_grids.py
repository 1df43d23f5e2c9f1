"""Tensors that share a grid: which do, and which of them have too few of its levels, with ranges by hand in numpy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from leanax.pipeline import explain, trained
from leanax.pipeline.config.experiment import Quant, Stage
from leanax.pipeline.report import parts, plain, report, shared_grids


class Branches(nn.Module):
  """Two branches that are joined."""

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    x = jnp.concatenate([nn.relu(nn.Dense(3)(x)), nn.relu(nn.Dense(3)(x))], -1)
    return nn.Dense(4)(x)


RECIPE = trained.Recipe("tests.pipeline.report.test_shared_grids:Branches", {}, (2, 2, 1), tuple("abcd"), {})
SMALL, JOIN, LARGE = "Dense_1/kernel:out#1", "Dense_1/kernel:out", "Dense_0/kernel:out"


def example(factor):
  """A quantized model whose second branch is so much smaller, with images, and the numpy results of both branches."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(50, 2, 2, 1)).astype(np.float32)
  params = {
    f"Dense_{k}": {
      "kernel": rng.normal(size=shape).astype(np.float32) * scale,
      "bias": np.zeros(shape[1], np.float32),
    }
    for k, (shape, scale) in enumerate((((4, 3), 1.0), ((4, 3), factor), ((6, 4), 1.0)))
  }
  net = quant.post_training(graph.net(trained.functions(RECIPE).fn, {"params": params}, x), [x], "w8a8")
  rows = x.reshape(50, 4).astype(np.float64)
  branches = [np.maximum(rows @ params[f"Dense_{k}"]["kernel"], 0).max() for k in (0, 1)]
  return trained.Trained(RECIPE._replace(edits=(quant.edit.data("w8a8"),)), net.variables), x, branches


def test_the_small_branch_of_a_join_is_named():
  model, x, (large, small) = example(np.float32(0.01))
  assert [set(names) for names in quant.shared_grids(trained.net(model))] == [{SMALL, JOIN, LARGE}]
  (found,) = shared_grids.narrow(model, x)
  assert found["tensor"] == SMALL and set(found["with"]) == {JOIN, LARGE}
  assert found["bits"] == pytest.approx(np.log2(large / small), rel=1e-4) and found["bits"] > 5
  assert shared_grids.narrow(*example(np.float32(1.0))[:2]) == []


def test_a_range_holds_zero():
  assert [shared_grids.width(x) for x in ([2.0, 3.0], [-3.0, -2.0], [-1.0, 3.0], [])] == [3.0, 3.0, 4.0, 0.0]


def test_the_limit_and_zeros():
  widths = {"a": 8.0, "b": 1.99, "c": 2.0, "d": 0.0, "e": 1.0}
  assert shared_grids.of_ranges([("a", "b", "c", "d"), ("e",)], widths) == [
    {"tensor": "b", "with": ["a", "c", "d"], "bits": pytest.approx(np.log2(8 / 1.99))}
  ]
  assert shared_grids.of_ranges([], {}) == []


def test_a_net_without_joins_shares_nothing():
  x = np.ones((2, 3), np.float32)
  two = {"a": np.eye(3, dtype=np.float32), "b": np.eye(3, dtype=np.float32)}
  net = graph.net(lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"], two, x)
  assert quant.shared_grids(quant.post_training(net, [x], "w8a8")) == []


def test_explain_lists_the_tensors_of_one_grid():
  model, *_ = example(np.float32(1.0))
  floats = trained.in_float(model)
  text = explain.stage("int8", Stage(quant=Quant(rules=(("*", "w8a8"),))), floats)
  (line,) = [line for line in text.splitlines() if line.startswith("one grid: ")]
  assert set(line.removeprefix("one grid: ").split(", ")) == {SMALL, JOIN, LARGE}


def test_the_pages_say_it_with_what_helps():
  one = {"tensor": "b:out", "with": ["a:out", "c:out"], "bits": 5.0}
  words = parts.narrowed(one)
  assert words.startswith(
    "b:out shares one grid with a:out, c:out, whose range is up to 32 times as wide: it has 5.0 bits"
  )
  assert "graph.move_scale" in words
  row = {"name": "a", "operator": "Dense", "bytes": 3, "macs": 7, "weight_bits": 8, "input_bits": 8, "sparsity": None}
  row |= {"rank": None, "full_rank": None, "sqnr": None, "codes": None, "codes_differ": None}
  shipped = {"files": [{"name": "a.tflite", "bytes": 12}], "recommended": "a.tflite"}
  result = {"shipping": shipped, "layers": {"a.tflite": [row]}, "narrow": {"a.tflite": [one]}}
  assert words in plain.common(result) and words in report._layers(result)
