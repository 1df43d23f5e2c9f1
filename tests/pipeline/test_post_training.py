"""A trained model, its weights and data to a quantized file and a report, without a config and without training."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from leanax import deploy
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.pipeline import build, post_training
from leanax.zoo import mlp
from tests.integration import jobs

MLP = "zoo.mlp:MLP(widths=(16,))"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A safetensors file of the weights of a perceptron for digits, not trained."""
  module = mlp.MLP(widths=(16,))
  variables = jax.jit(module.init)(jax.random.key(1), np.zeros((1, 8, 8, 1), np.float32))
  path = tmp_path_factory.mktemp("weights") / "net.safetensors"
  flat = {name.removeprefix("params/"): np.array(leaf) for name, leaf in named_leaves(variables).items()}
  safetensors.numpy.save_file(flat, path)
  return str(path), module, variables


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("my.nets:Net", ("my.nets:Net", {})),
    ("my.nets:Net()", ("my.nets:Net", {})),
    (
      "my.nets:Net(width=32, widths=(8, 16), name='a(b')",
      ("my.nets:Net", {"width": 32, "widths": (8, 16), "name": "a(b"}),
    ),
  ],
)
def test_a_model_is_an_import_path_with_keywords(text, found):
  assert post_training.model(text) == found


@pytest.mark.parametrize("text", ["a:B(", "a:B(3)", "a:B(x=y)", "a:B(**x)", "a:B(x=1", "a:B(x=1) + 2", "a:B(x=1).y()"])
def test_what_is_no_call_with_literals_is_refused_by_one_sentence(text):
  with pytest.raises(UserError, match=r"--model=.*: expected an import path, such as my.nets:Net"):
    post_training.model(text)


def test_the_program_writes_the_files_and_a_report(weights, tmp_path):
  """The float row is the user's own function on the test split; the file's codes are those of the simulation."""
  path, module, variables = weights
  outs = [tmp_path / "net.tflite", tmp_path / "net.onnx"]
  arguments = [f"--model={MLP}", f"--weights={path}", "--data=digits", *(f"--out={out}" for out in outs)]
  ended = jobs.program("post_training", *arguments, "--limit=200", "--input=uint8")
  assert ended.returncode == 0, ended.stderr
  for out in outs:
    assert f"{out}: w8a8, {out.stat().st_size:,} bytes" in ended.stdout
  result = json.loads((tmp_path / "net_report" / "result.json").read_text())
  assert result["command"].startswith("python -m scripts.post_training '--model=zoo.mlp:MLP(")
  rows = {row["name"]: row for row in result["rows"]}
  assert list(rows) == ["float", "quantized"] and rows["quantized"]["codes_differ"] == 0
  config = post_training.config("zoo.mlp:MLP", {"widths": (16,)}, path, "digits", limit=200)
  test = build.dataset(config).test
  logits = np.asarray(module.apply(variables, test.images.astype(np.float32) / 255))
  assert rows["float"]["accuracy"] == np.mean(logits.argmax(-1) == test.labels)
  runner = deploy.open_file(outs[0])
  assert runner.input.dtype == "uint8"
  codes = runner.run(test.images)
  assert np.mean(codes.argmax(-1) == logits.argmax(-1)) > 0.9
  assert runner.description is not None and runner.description.made["stage"] == "quantized"


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"setting": "w8q8"}, "--quant=w8q8: quantization setting 'w8q8'"),
    ({"weights": "nothing.safetensors"}, "there are no weights at nothing.safetensors"),
    ({"kwargs": {"widths": (8,)}}, "'Dense_0/bias' has shape \\(16,\\); the model's has \\(8,\\)"),
    ({"entry": "ema"}, "has no entry 'ema'; it has 'Dense_0', 'Dense_1'"),
    ({"calibration_batches": 0}, "'stages.quantized.quant.calibration_batches' is 0"),
  ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_directory(weights, tmp_path, changes, sentence):
  given = {"path": "zoo.mlp:MLP", "kwargs": {"widths": (16,)}, "weights": weights[0], "data": "digits", **changes}
  with pytest.raises(UserError, match=sentence):
    post_training.run(post_training.config(**given), tmp_path / "run", [], {"input": "", "output": ""})
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nothing.safetensors", "net.h5"])
def test_a_file_of_weights_is_missed_before_data_are_read(tmp_path, monkeypatch, name):
  (tmp_path / "net.h5").touch()
  config = post_training.config("zoo.mlp:MLP", {}, str(tmp_path / name), "folder:nowhere")
  with pytest.raises(UserError, match="there are no weights at|expected weights as .safetensors"):
    post_training.run(config, tmp_path / "run", [], {})


@pytest.mark.parametrize(
  ("out", "sentence"),
  [
    ("net.txt", "--out=net.txt has the suffix of no file format"),
    ("net.packed", "--input=uint8: net.packed holds the model as it is; expected no --input"),
    ("/nowhere/net.tflite", "--out=/nowhere/net.tflite: there is no directory '/nowhere'"),
  ],
)
def test_a_file_that_cannot_be_written_is_refused_first(out, sentence):
  with pytest.raises(UserError, match=sentence):
    post_training.formats([out], {"input": "uint8", "output": ""})
  assert post_training.formats(["a.onnx", "b.packed", "c.onnx"], {}) == (".onnx",)
  assert post_training.formats(["b.packed"], {}) == (".tflite",)


def test_a_flag_that_is_no_number_is_one_sentence(weights, tmp_path):
  line = [f"--model={MLP}", f"--weights={weights[0]}", "--data=digits", f"--out={tmp_path / 'net.tflite'}"]
  ended = jobs.program("post_training", *line, "--size=64,x")
  assert ended.returncode == 2
  assert ended.stderr.splitlines() == ["error: --size=64,x: expected numbers with commas between them"]


def test_a_network_below_chance_gives_a_warning_that_names_the_classes():
  result = {"classes": {"names": ["a", "b", "c"]}, "rows": [{"accuracy": 0.1}]}
  assert "right in 10.00% of the test pictures" in post_training._below_chance(result)
  assert "the classes are a, b, c, in this order; --classes gives" in post_training._below_chance(result)
  for accuracy in (0.2, 0.9, None):
    assert not post_training._below_chance({**result, "rows": [{"accuracy": accuracy}]})
