"""The model of a stage: saved and loaded the same, folded the same, and damaged files refused."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.data import Input, Preprocess
from leanax.engine.store.model_file import save_tree
from leanax.pipeline import calibrate, learning, trained
from leanax.pipeline.config.experiment import Quant
from tests.graph.models import fill, normal
from tests.integration import jobs

PREPROCESS = {"scale": 1 / 255, "mean": (0.3,), "std": (0.2,)}
RESNET = trained.Recipe(
  "zoo.resnet:ResNet", {"blocks": (1,), "widths": (4,), "classes": 3}, (8, 8, 1), ("a", "b", "c"), PREPROCESS
)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def resnet():
  variables = jax.jit(trained.functions(RESNET).model.init)(jax.random.key(0), trained.example(RESNET))
  stats = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])  # as after some training
  return trained.Trained(RESNET, {**variables, "batch_stats": stats})


@pytest.fixture(scope="module")
def int8(resnet):
  folded = trained.fold(resnet)
  quantized = Quant((("*", "w8a8 learned"),))
  return calibrate.calibrated(quantized, folded, [normal(1, 4, 8, 8, 1)], Input(4, 0, Preprocess(**PREPROCESS)))


def test_predict_preprocesses(resnet):
  x = (IMAGES / np.float32(255) - np.float32(0.3)) / np.float32(0.2)
  expected = trained.functions(RESNET).fn(resnet.variables, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(trained.predict(resnet, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_folding_changes_the_form_and_not_the_logits(resnet):
  folded = trained.fold(resnet)
  assert not trained.functions(RESNET).edited and trained.functions(folded.recipe).edited
  assert "batch_stats" not in folded.variables
  np.testing.assert_allclose(trained.predict(folded, IMAGES), trained.predict(resnet, IMAGES), rtol=1e-4, atol=1e-4)
  assert trained.fold(folded) is folded
  json.dumps(folded.recipe._asdict())


@pytest.mark.parametrize("which", ["resnet", "int8"])
def test_a_file_gives_back_the_model(which, tmp_path, request):
  model = request.getfixturevalue(which)
  path = tmp_path / "m.safetensors"
  trained.save(path, model, stage="s", note=[1])
  loaded, more = trained.load(path)
  assert more == {"stage": "s", "note": [1]}
  assert loaded.recipe == model.recipe
  for before, after in zip(trained.trees(model.variables), trained.trees(loaded.variables), strict=True):
    assert before.keys() == after.keys()
  actual, desired = named_leaves(loaded.variables), named_leaves(model.variables)
  assert actual.keys() == desired.keys()
  for name, leaf in desired.items():
    np.testing.assert_array_equal(actual[name], leaf, err_msg=name)
  np.testing.assert_array_equal(trained.predict(loaded, IMAGES), trained.predict(model, IMAGES))
  first = path.read_bytes()
  for _ in range(4):  # equal models are equal files
    trained.save(path, loaded, stage="s", note=[1])
    assert path.read_bytes() == first


def test_integers_are_simulated_where_there_are_rules(int8):
  logits = trained.predict(int8, IMAGES)
  (output,) = [g for name, g in trained.grids(int8).items() if name == "Dense_0/kernel:out"]
  np.testing.assert_allclose(quant.fake_quant(logits, output), logits, rtol=0, atol=1e-6)
  assert len(np.unique(logits)) <= 256


def test_objects_that_are_not_models_are_refused(tmp_path, resnet):
  save_tree(tmp_path / "arrays.safetensors", {"a": np.zeros(2)})
  with pytest.raises(UserError, match="holds arrays but no model; expected a file that a stage has written"):
    trained.load(tmp_path / "arrays.safetensors")
  with pytest.raises(UserError, match="there is no file"):
    trained.load(tmp_path / "none.safetensors")
  changed = resnet._replace(recipe=RESNET._replace(kwargs={**RESNET.kwargs, "blocks": (2,)}))
  trained.save(tmp_path / "changed.safetensors", changed)
  with pytest.raises(
    UserError, match=r"lacks .*model 'zoo.resnet:ResNet' is not what it was when the file was written"
  ):
    trained.load(tmp_path / "changed.safetensors")


def test_a_folded_model_trains_on_in_float_with_its_dropout_and_the_norms_that_stayed():
  recipe = trained.Recipe("tests.pipeline.nets:Dropped", {}, (8, 8, 1), ("0", "1", "2"), PREPROCESS)
  x = normal(0, 4, 8, 8, 1)
  whole = trained.Trained(recipe, fill(trained.variable_shapes(recipe)))
  folded = trained.fold(whole)
  assert set(folded.variables["batch_stats"]) == {"BatchNorm_1"}
  forward = learning.forward_of(jobs.experiment().stages["teacher"], trained.functions(folded.recipe))
  run = jax.jit(lambda key: forward(folded.variables, {}, {}, x, train=True, key=key, axis_name=None))
  (a, state, _), (b, _, _) = run(jax.random.key(0)), run(jax.random.key(1))
  assert np.abs(a - b).max() > 1e-3
  assert jax.tree.structure(state) == jax.tree.structure({"batch_stats": folded.variables["batch_stats"]})
  before, after = folded.variables["batch_stats"]["BatchNorm_1"]["mean"], state["batch_stats"]["BatchNorm_1"]["mean"]
  features = nn.relu(nn.Conv(4, (3, 3)).apply({"params": folded.variables["params"]["Conv_0"]}, x))
  seen = nn.max_pool(features, (2, 2), (2, 2)).mean((0, 1, 2))
  np.testing.assert_allclose(after, 0.99 * before + 0.01 * seen, rtol=1e-5)


def test_a_norm_behind_a_pool_is_a_depthwise_convolution():
  recipe = trained.Recipe("tests.pipeline.nets:Normed", {}, (8, 8, 1), ("0", "1", "2"), PREPROCESS)
  whole = trained.Trained(recipe, fill(trained.variable_shapes(recipe)))
  folded = trained.fold(whole)
  assert [one["edit"] for one in folded.recipe.edits] == ["fold_batch_norm", "depthwise"]
  assert trained.fold_shapes(whole).recipe == folded.recipe and "batch_stats" not in folded.variables
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  np.testing.assert_allclose(trained.predict(folded, images), trained.predict(whole, images), rtol=1e-4, atol=1e-5)


KEPT = pathlib.Path(__file__).parent / "kept"


@pytest.mark.parametrize("name", ["head", "head_folded_int8"])
def test_older_model_files_open_and_give_the_same_logits(name):
  """Written when folded batch norms, replaced classifiers and quantizers were three fields of a recipe."""
  loaded, more = trained.load(KEPT / f"{name}.safetensors")
  images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 1), np.uint8)
  np.testing.assert_allclose(trained.predict(loaded, images), more["logits"], rtol=1e-6, atol=1e-7)
