"""What a model file claims of its model is refused before it is made: sizes, depths, and parts that are no parts."""

import time

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store import metrics
from leanax.engine.store.model_file import save_tree
from leanax.pipeline import trained, workdir

RECIPE = {
  "name": "zoo.mlp:MLP",
  "kwargs": {"widths": [4], "classes": 3},
  "image": [2, 2, 1],
  "classes": ["a", "b", "c"],
  "preprocess": {"scale": 1 / 255, "mean": [0.0], "std": [1.0]},
  "edits": [],
}
SHAPES = {"Dense_0": (4, 4), "Dense_1": (4, 3)}
VARIABLES = {
  "params": {name: {"kernel": np.ones(s, np.float32), "bias": np.ones(s[1], np.float32)} for name, s in SHAPES.items()}
}
GROUP = {"edit": "quantize", "rules": [["*", "w8a8"]], "ends": None, "carrier": "float32", "half": False}
# The change of the recipe, and what the sentence says.
CLAIMS = {
  "a huge input": ({"image": [10**9, 10**9, 3]}, "more than 134,217,728 numbers"),
  "an input of no numbers": ({"image": ["2", 2, 1]}, "'image' sizes"),
  "an infinite size": ({"image": [float("inf"), 2, 1]}, "'image' sizes"),
  "a huge layer": ({"kwargs": {"widths": [10**12], "classes": 3}}, "does not fit its model"),
  "a number beyond all": ({"kwargs": {"widths": [10**400], "classes": 3}}, "does not fit its model"),
  "a text for a width": ({"kwargs": {"widths": "ab", "classes": 3}}, "does not fit its model"),
  "no keywords": ({"kwargs": [1, 2]}, "is damaged: its model is not described as one"),
  "an edit of no group": ({"edits": [3]}, "is damaged: its model is not described as one"),
  "an output of no name": ({"output": 3}, "is damaged: its model is not described as one"),
  "a mean of no number": ({"preprocess": {"mean": []}}, "is damaged: its model is not described as one"),
  "a scale of no number": ({"preprocess": {"scale": []}}, "is damaged: its model is not described as one"),
  "a scale beyond all": ({"preprocess": {"scale": 10**400}}, "is damaged: its model is not described as one"),
  "grids that are not there": ({"edits": [GROUP]}, "x.safetensors"),
}


def saved(path, changes, **trees):
  save_tree(path, {"variables": VARIABLES, **trees}, {"recipe": {**RECIPE, **changes}})
  return path


def test_the_file_is_read_as_it_is(tmp_path):
  assert trained.load(saved(tmp_path / "x.safetensors", {}))[0].recipe.image == (2, 2, 1)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_refused_in_a_sentence(tmp_path, claim):
  changes, words = CLAIMS[claim]
  with pytest.raises(UserError) as caught:
    trained.load(saved(tmp_path / "x.safetensors", changes))
  text = str(caught.value)
  assert words in text and "x.safetensors" in text and "\n" not in text and len(text) < 700


def test_a_model_of_any_depth_is_left_in_time(tmp_path, monkeypatch):
  monkeypatch.setattr(trained, "TRACING", 1)
  changes, start = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": [10**9], "widths": [2]}}, time.monotonic()
  with pytest.raises(UserError, match=r"x\.safetensors is damaged: tracing its model, .*, takes more than 1 s"):
    trained.load(saved(tmp_path / "x.safetensors", changes))
  assert time.monotonic() - start < 30


@pytest.mark.parametrize("trees", [{"variables": np.ones(2)}, {"qparams": np.ones(2)}, {"quant_state": np.ones(2)}])
def test_what_holds_no_arrays_by_name_is_damage(tmp_path, trees):
  with pytest.raises(UserError, match="its variables are no groups of arrays"):
    trained.load(saved(tmp_path / "x.safetensors", {}, **trees))


@pytest.mark.parametrize(
  "given",
  ["[]", "3", '{"data": 3}', '{"a.b": 1}', '{"stages": {"x": {"learning_rate": [1, {"a.b": 2}]}}}', '{"seed": {}}']
  + ['{"most_lost": 1' + "0" * 400 + "}"],
  ids=range(7),
)
def test_a_saved_config_of_anything_is_a_sentence(tmp_path, given):
  (tmp_path / "config.json").write_text(given)
  with pytest.raises(UserError) as caught:
    workdir.saved(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ['{"step": 1, "x": "float64"}', '{"step": 1e999}', '{"step": "1"}', "[1]", '{"x": 1}'])
def test_a_line_of_metrics_of_anything_is_a_sentence(tmp_path, line):
  (tmp_path / metrics.NAME).write_text(line + "\n")
  with pytest.raises(UserError, match="line 1: expected an object like"):
    metrics.read(tmp_path)
