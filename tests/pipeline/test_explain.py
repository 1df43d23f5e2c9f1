"""The tables that are printed of a model before anything trains."""

import jax
import jax.numpy as jnp

from leanax import graph
from leanax.engine.train.parallel import AXIS
from leanax.pipeline import explain, trained
from tests.integration import jobs

RESNET = {"blocks": (1,), "widths": (4,), "classes": 3, "axis_name": AXIS}


def lines(text):
  """The cells of each line, by its first."""
  return {cells[0]: cells[1:] for cells in ([c for c in line.split("  ") if c] for line in text.splitlines())}


def test_costs_of_sites_and_those_that_only_training_has():
  def fn(variables, x, train):
    h = jax.nn.relu(x @ variables["trunk"])
    return h @ variables["last"], h @ variables["second"] if train else None

  variables = {"trunk": jnp.ones((3, 4)), "second": jnp.ones((4, 2)), "last": jnp.ones((4, 2))}
  evaluated, as_trained = (
    graph.trace(lambda v, x, train=train: fn(v, x, train), variables, jnp.ones((1, 3))) for train in (False, True)
  )
  found = lines(explain.sites("net", evaluated, as_trained))
  assert list(found) == ["model net: 20 MACs", "site", "trunk", "last", "second"]
  assert [cell.strip() for cell in found["trunk"]] == ["dot", "1x4", "12", "12,288", "48 B", "16 B", "input, trunk"]
  assert found["second"][0] == "dot (training only)" and found["last"][0].strip() == "dot"


def test_a_model_with_statistics_over_the_devices_is_traced_as_it_trains():
  recipe = trained.Recipe("zoo.resnet:ResNet", RESNET, (8, 8, 1), ("0", "1", "2"), {})
  evaluated, as_trained = explain.traces(recipe)
  assert graph.training_only(as_trained, evaluated) == ()
  assert any(node.primitive == "psum" for node in as_trained.flat)
  assert not any(node.primitive == "psum" for node in evaluated.flat)


def test_batch_norms_are_listed_as_folded_or_kept():
  recipe = trained.Recipe("tests.pipeline.nets:Normed", {}, (8, 8, 1), ("0", "1", "2"), {})
  variables = jax.jit(trained.functions(recipe).model.init)(jax.random.key(0), trained.example(recipe))
  assert explain.norms(recipe, variables) == [
    "batch_stats/BatchNorm_0: folded into Conv_0/kernel",
    "batch_stats/BatchNorm_1: a depthwise convolution with the kernel BatchNorm_1/scale: it follows "
    "'Conv_0/kernel:max_pool', and not a dot or a convolution",
  ]
  assert explain.norms(recipe, {"params": variables["params"]}) == []
  assert explain.norms(recipe._replace(edits=({"edit": "fold_batch_norm"},)), variables) == []


def test_files_are_listed_by_layer_or_refused_in_a_sentence():
  four = {"rules": (("*", "w8a4"),), "ends": "w8a4"}
  changes = {"run": ("alone", "other", "int8", "low", "none"), "stages__other": {"epochs": 0}}
  for name, quant in (("int8", {"rules": (("*", "w8a8"),)}), ("low", four), ("none", {"rules": (("*", "w8a8"),)})):
    changes[f"stages__{name}"] = {"kind": "post_training", "start": "alone", "quant": quant}
  text = explain.explain(jobs.experiment(**changes, stages__none__export=()))
  floats, int8, refused, none = text.split("\n\n")[-4:]
  assert 4 * (36 * 8 + 8 + 8 * 4 + 4) == 1328
  assert floats.splitlines()[0] == "tflite file of stages alone, other: float32, 1.33 kB of weights"
  last = [[cell.strip() for cell in lines(table)["Dense_1/kernel"]] for table in (floats, int8)]
  kernel, bias, scales = 8 * 4, 4, 4
  assert last[0] == ["Dense", "float32", "float32", f"{4 * (kernel + bias)} B"]
  assert last[1] == ["Dense", "int8", "int8", f"{kernel + 4 * bias + 2 * 4 * scales} B"]  # both have scales
  assert refused.startswith("stage 'low' cannot be exported as tflite: the activation 'input' has 4 bits; ")
  assert none == "stage none: no file"
