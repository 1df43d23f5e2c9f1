"""The export of stages: known before anything trains, and never the end of a run that trained."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import quant
from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import formats
from leanax.pipeline import build, evaluate, explain, exporting, one_file, stage, trained
from leanax.pipeline.compress import compress, open_run
from leanax.pipeline.report import measure
from leanax.pipeline.tables.reproduce import markdown, summary
from tests.conformance.file_formats import npz
from tests.integration import jobs

SORTED = {"models__student": {"name": "tests.pipeline.nets:Sorted"}}
ONE = {"run": ("alone",), "stages__alone__epochs": 0}
INT8 = {"start": "alone", "kind": "post_training", "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 1}}


def described(network):
  return network.layers, {n: (t.shape, t.dtype, t.grid and t.axis) for n, t in network.tensors.items()}


def test_norms_are_folded_on_shapes_as_on_numbers():
  recipe = trained.Recipe("tests.pipeline.nets:Rows", {}, (4, 4, 1), tuple("abcd"), {"scale": 1.0})
  variables = trained.variable_shapes(recipe)
  both = []
  for given, numbers in ((variables, False), (trained.distinct(variables), True)):
    try:
      both.append(described(exporting.network(trained.Trained(recipe, given), numbers)))
    except UserError as error:
      both.append(str(error))
  assert both[0] == both[1]


def test_what_cannot_be_exported_is_one_sentence_before_anything_trains(tmp_path):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  config = jobs.experiment(
    **SORTED,
    run=("alone", "distilled", "teacher"),
    stages__distilled__objective={"hard_labels": {}},
    stages__distilled__teacher="",
  )
  with pytest.raises(UserError) as refused:
    open_run(config, tmp_path / "run", export=True)
  assert not [name for name in compiled if name.endswith("backend_compile_duration")]
  sentence = str(refused.value)
  assert sentence.startswith("stages 'alone', 'distilled' cannot be exported as tflite: cannot lift 'sort' at nets.py:")
  assert "set 'stages.alone.export' and 'stages.distilled.export' to () to train without a file, or " in sentence
  assert "'stages.distilled.export_failure' to 'report' for a row of the report that says why" in sentence
  assert not (tmp_path / "run").exists()


def test_grids_that_no_file_has_are_known_before(tmp_path):
  four = {**INT8, "quant": {"rules": (("*", "w4a4"),), "ends": "w4a4"}}
  with pytest.raises(UserError, match="stage 'int8' cannot be exported as tflite: the activation .* has 4 bits"):
    open_run(jobs.experiment(**{**ONE, "run": ("alone", "int8")}, stages__int8=four), tmp_path / "run", export=True)


def test_groups_that_a_format_does_not_hold_are_known_before(tmp_path):
  """Scales that are not known yet are taken for different ones."""
  groups = {**INT8, "quant": {"rules": (("Dense_1/*", "w4g2"), ("*", "w8a8"))}}
  net = {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8, 8), "classes": 4}}
  changes = {**ONE, "run": ("alone", "int8"), "models__student": net, "stages__int8": groups}
  with pytest.raises(
    UserError, match="'int8' cannot be exported as tflite: the kernel of layer 'Dense_1/kernel' has a"
  ):
    open_run(jobs.experiment(**changes), tmp_path / "run", export=True)
  open_run(jobs.experiment(**changes, stages__int8__export=("onnx",)), tmp_path / "run", export=True)


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    (("tflit",), "config key 'stages.alone.export': unknown file format 'tflit'; expected one of"),
    (("litert(weight=int8)",), "config key 'stages.alone.export': unknown option .* did you mean 'weights'"),
    (("tflite", "litert"), r"config key 'stages.alone.export' is \('tflite', 'litert'\); expected each format once"),
  ],
)
def test_formats_that_there_are_not(given, sentence):
  with pytest.raises(UserError, match=sentence):
    stage.check(jobs.experiment(**ONE, stages__alone__export=given))


def test_a_stage_without_a_file_is_a_row(tmp_path, capsys):
  config = jobs.experiment(
    **{**SORTED, **ONE, "run": ("alone", "other")},
    stages__alone__export=(),
    stages__other={"epochs": 0, "export_failure": "report", "start": "alone"},
  )
  result = compress(config, tmp_path)
  alone, other = result["rows"]
  for row in result["rows"]:
    assert {"accuracy", "parameters", "nonzero", "macs"} <= row.keys() and "file_accuracy" not in row
    assert (tmp_path / "models" / f"{row['name']}.safetensors").exists()
  assert not list(tmp_path.glob("files/*.tflite")) and result["shipping"] == {}
  assert json.loads((tmp_path / "result.json").read_text())["rows"] == result["rows"]
  assert "export" not in alone and other["export"].startswith("tflite: cannot lift 'sort' at nets.py:")
  printed = capsys.readouterr().err
  assert (
    "warning: stage 'other' was trained, but not exported: tflite: cannot lift" in printed and "'alone'" not in printed
  )
  assert "cannot lift &#x27;sort&#x27;" in (tmp_path / "report.html").read_text()
  assert "**other** was trained, but not exported: tflite: cannot lift 'sort'" in (tmp_path / "report.md").read_text()
  assert "–" in markdown(summary([result, result]))


def test_what_only_numbers_show_ends_no_run(tmp_path, monkeypatch, capsys):
  export, failing = measure.export, {False: UserError("the layer 'x' holds NaN"), True: ZeroDivisionError("by zero")}

  def fails(model, file_format, description):
    if model.recipe.is_quantized in failing:
      raise failing[model.recipe.is_quantized]
    return export(model, file_format, description)

  monkeypatch.setattr(measure, "export", fails)
  config = jobs.experiment(**{**ONE, "run": ("alone", "int8")}, stages__int8=INT8)
  first, second = compress(config, tmp_path)["rows"]
  assert first["export"] == "tflite: the layer 'x' holds NaN" and first["agreement"] == 1.0
  assert second["export"] == "tflite: ZeroDivisionError: by zero"
  assert f"warning: stage 'alone' was trained, but not exported: {first['export']}" in capsys.readouterr().err
  # The same call again makes what can be made, and nothing is trained; the first model stands for its file.
  del failing[True]
  _, second = compress(config, tmp_path)["rows"]
  left = trained.load(tmp_path / "models" / "alone.safetensors")[0]
  decisions = trained.predict(left, build.dataset(config).test.images).argmax(-1)
  kept = json.loads((tmp_path / "files" / "int8.json").read_text())
  assert "export" not in second and second["agreement"] == np.mean(np.array(kept["decisions"]) == decisions)
  failing.clear()
  rows = compress(config, tmp_path)["rows"]
  assert all("export" not in row and row["latency"]["runs"] == 5 for row in rows)
  # What was prepared on shapes is what was exported.
  jobs_of = open_run(config, tmp_path).jobs
  prepared = exporting.prepare(config, {name: job.leaves for name, job in jobs_of.items()})
  for name in config.run:
    ((one,), real) = prepared[name], exporting.network(trained.load(tmp_path / "models" / f"{name}.safetensors")[0])
    assert (one.suffix, one.failure, real.quantized) == (".tflite", "", name == "int8")
    assert described(one.network) == described(real), name


def test_a_file_can_say_how_it_was_made():
  recipe = trained.Recipe(
    "my.nets:Net", {}, (4, 4, 1), ("a", "b"), {}, (quant.edit.data([("Dense*", "w4a8"), ("*", "w8a8")]),)
  )
  config = jobs.experiment(seed=3, licence="MIT", about="digits", shared=("teacher",))
  found = exporting.description(recipe, config, "int8", "python -m scripts.compress")
  assert (found.classes, found.licence) == (("a", "b"), "MIT")
  assert {**found.made, "leanax": ""} == {
    "about": "digits", "stage": "int8", "experiment": "tiny", "seed": "3", "command": "python -m scripts.compress",
    "model": "my.nets:Net", "quantization": "Dense* w4a8; * w8a8", "leanax": "",
  }  # fmt: skip
  plain = exporting.description(recipe.in_float, jobs.experiment(), "alone")
  assert {*plain.made} - {"leanax"} == {"stage", "experiment", "seed", "model"} and plain.licence == ""
  assert "seed" not in exporting.description(recipe, config, "teacher").made  # it is that of the first seed


def test_the_files_of_a_run_say_what_they_are(tmp_path):
  config = jobs.experiment(**{**ONE, "run": ("alone", "int8")}, stages__int8=INT8)
  first = compress(config, tmp_path)
  paths = {name: tmp_path / "files" / f"{name}.tflite" for name in config.run}
  found = {name: deploy.open_file(path).description for name, path in paths.items()}
  assert found["alone"].classes == build.dataset(config).test.classes and found["alone"].licence == ""
  assert found["int8"].made | {"leanax": ""} == {
    "stage": "int8", "experiment": "tiny", "seed": "0", "model": "zoo.mlp:MLP", "quantization": "* w8a8", "leanax": "",
  }  # fmt: skip
  # Other words make the files again, and nothing is trained or lost; equal words are equal bytes.
  words = {"about": "four kinds of noise", "licence": "MIT"}
  changed = jobs.experiment(**{**ONE, "run": ("alone", "int8")}, stages__int8=INT8, **words)
  second = compress(changed, tmp_path)
  again = deploy.open_file(paths["int8"]).description
  assert (again.licence, again.made["about"]) == ("MIT", "four kinds of noise")
  assert again.classes == found["int8"].classes
  assert second["rows"][1]["file_accuracy"] == first["rows"][1]["file_accuracy"]
  written = paths["int8"].read_bytes()
  paths["int8"].unlink()
  compress(changed, tmp_path)
  assert paths["int8"].read_bytes() == written
  # A file that is exported by itself says the same, unless it is given other words.
  one_file.write(str(tmp_path), str(tmp_path / "x.tflite"), "int8", ends={"input": "", "output": ""})
  assert (tmp_path / "x.tflite").read_bytes() == written
  one_file.write(str(tmp_path), str(tmp_path / "y.tflite"), "int8", ends={"input": "", "output": ""}, licence="BSD")
  other = deploy.open_file(tmp_path / "y.tflite").description
  assert other == deploy.Description(again.classes, "BSD", again.made)
  one_file.write(str(tmp_path), str(tmp_path / "z.packed"), "int8", ends={"input": "", "output": ""})
  assert trained.load(tmp_path / "z.packed")[1] == {"stage": "int8", **words}


def test_a_stage_has_a_file_of_each_format(tmp_path, monkeypatch, capsys):
  """With a format of the tests beside LiteRT; the row's figures are of the first file."""
  monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(Path(npz.__file__).parent)])
  monkeypatch.setattr(formats, "npz", npz.npz, raising=False)
  result = compress(jobs.experiment(**ONE, stages__alone__export=("npz", "tflite")), tmp_path)
  (row,), found = result["rows"], result["shipping"]
  assert [one["name"] for one in found["files"]] == ["alone.npz", "alone.tflite"]
  assert found["against"] == "alone.npz" and found["recommended"] == "alone.tflite" and found["snippet"]
  for one in found["files"]:
    path = tmp_path / "files" / one["name"]
    assert path.stat().st_size == one["bytes"] > 0 and one["compressed_bytes"] > 0
    assert one["accuracy"] == row["accuracy"] and one["lost"]["points"] == 0 and one["latency"]["runs"] == 5
  assert row["file_bytes"] == found["files"][0]["bytes"] and row["latency"] == found["files"][0]["latency"]
  # The same directory with other formats: the model stays, and the files are those that are named now.
  fewer = compress(jobs.experiment(**ONE, stages__alone__export=("tflite",)), tmp_path)
  assert [one["name"] for one in fewer["shipping"]["files"]] == ["alone.tflite"]
  assert fewer["rows"][0]["file_bytes"] == found["files"][1]["bytes"]
  assert {path.name for path in (tmp_path / "files").iterdir()} == {"alone.json", "alone.tflite", "latency.json"}
  # What was cut short, by a full disk or a copy, is made again.
  whole = (tmp_path / "files" / "alone.tflite").read_bytes()
  (tmp_path / "files" / "alone.tflite").write_bytes(whole[:100])
  (tmp_path / "files" / "latency.json").write_text("{")
  capsys.readouterr()
  compress(jobs.experiment(**ONE, stages__alone__export=("tflite",)), tmp_path)
  said = capsys.readouterr().err
  assert f"warning: {tmp_path / 'files' / 'alone.tflite'} is missing or was changed; it is made again" in said
  assert "latency.json' is damaged: it holds no JSON object; it is made again" in said
  assert (tmp_path / "files" / "alone.tflite").read_bytes() == whole
  # And with other options of a format: a kernel of 288 numbers of 2 bytes in place of 4, behind one more operator.
  half = compress(jobs.experiment(**ONE, stages__alone__export=("litert(weights=float16)",)), tmp_path)
  assert 0 < fewer["rows"][0]["file_bytes"] - half["rows"][0]["file_bytes"] < 2 * 288
  assert (tmp_path / "files" / "alone.tflite").stat().st_size == half["rows"][0]["file_bytes"]


def test_a_stage_that_no_layers_hold_has_a_file_of_its_own_function(tmp_path):
  """Of a sort, which nothing is lifted of: in float and with its integers simulated, known before and run after."""
  config = jobs.experiment(
    **{**SORTED, **ONE, "run": ("alone", "int8"), "stages__alone__export": ("stablehlo",)},
    stages__int8={**INT8, "export": ("stablehlo", "tflite"), "export_failure": "report"},
  )
  first, second = compress(config, tmp_path)["rows"]
  assert "export" not in first and second["export"].startswith("tflite: cannot lift 'sort'")
  test = build.dataset(config).test
  for row in (first, second):
    path = tmp_path / "files" / f"{row['name']}.stablehlo"
    model = evaluate.load(tmp_path, tmp_path / "models" / f"{row['name']}.safetensors")
    assert row["file_accuracy"] == row["accuracy"] and row["file_bytes"] == path.stat().st_size
    assert row["latency"]["wall_min"] > 0 and "codes_differ" not in row
    ((name, accuracy, _),) = evaluate.evaluate(tmp_path, str(path))
    assert name == str(path) and accuracy == row["accuracy"]
    runner, images = deploy.open_file(path), deploy.Preprocessing(**model.recipe.preprocess).apply(test.images[:5])
    expected = jax.jit(trained.functions(model.recipe).logits)(model.variables, images)
    np.testing.assert_array_equal(runner.run(images), np.asarray(expected))
  leaves = {name: job.leaves for name, job in open_run(config, tmp_path).jobs.items()}
  text = "\n".join(explain.exports(exporting.prepare(config, leaves)))
  assert "stablehlo file of stage alone: the model's own function, " in text
  assert "stage 'int8' cannot be exported as tflite: cannot lift 'sort'" in text
