"""Jobs beyond one class for each example: masks, yes and no, numbers, several outputs, series and tokens."""

import json
import pathlib
import sys

import jax
import ml_collections
import numpy as np
import pytest

import kd
from leanax import deploy
from leanax.core import files
from leanax.core.errors import UserError
from leanax.engine import metrics
from leanax.pipeline import evaluate, stage
from leanax.pipeline.compress import compress, open_run
from leanax.pipeline.config import loading
from leanax.pipeline.seeds import compress_seeds
from tests.integration import jobs

STAGE = {"epochs": 6, "batch_size": 16, "optimizer": {"learning_rate": 0.03}}
GRIDS = {"rules": (("*", "w8a8"),), "calibration_batches": 1}
INT8 = {"kind": "post_training", "start": "float", "batch_size": 16, "quant": GRIDS}
IOU = {"name": "mean_iou", "ignore_label": 255}
OF_BOTH = {
  "mask": {"loss": "hard_labels", "output": "mask"},
  "place": {"loss": "huber", "source": "batch", "output": "place"},
}
# data and its keywords, model and its keywords, objective, metrics
TASKS = {
  "mask": ("squares", {"ignored": True}, "Masks", {}, {"hard_labels": {"ignore_label": 255}}, (IOU, "own_tasks:dice")),
  "halves": ("halves", {}, "Vector", {"outputs": 3}, {"sigmoid_cross_entropy": {}}, ("f1", "accuracy")),
  "places": ("places", {}, "Vector", {}, {"squared_error": {"source": "batch"}}, ({"name": "mae", "unit": "px"}, "r2")),
  "both": ("both", {}, "Both", {}, OF_BOTH, ("own_tasks:weighted_error", {"name": "mean_iou", "output": "mask"})),
  "waves": ("waves", {}, "Vector", {"outputs": 3}, {"hard_labels": {}}, ("accuracy",)),
  "tokens": (
    "waves",
    {"tokens": True},
    "Embedded",
    {},
    {"own": {"loss": "own_tasks:focal", "gamma": 1.0}},
    ("accuracy",),
  ),
}


@pytest.fixture(autouse=True)
def users(monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
  yield
  sys.modules.pop("own_tasks", None)


def experiment(task, **changes):
  data, options, model, kwargs, objective, judged = TASKS[task]
  whole = {
    "name": task,
    "data": {"name": f"own_tasks:{data}", "kwargs": options},
    "metrics": judged,
    "models": {"student": {"name": f"own_tasks:{model}", "kwargs": kwargs}},
    "stages": {"float": {**STAGE, "objective": objective}, "int8": INT8},
    "run": ("float", "int8"),
    "evaluations": 2,
    "checkpoint_every": 3,
    "latency_runs": 2,
  }
  for path, value in changes.items():
    *groups, last = path.split("__")
    place = whole
    for group in groups:
      place[group] = place = dict(place.get(group) or {})
    place[last] = value
  return loading.resolve(ml_collections.ConfigDict(whole))


@pytest.mark.slow  # docs/tasks.md runs such a job
def test_a_mask_from_config_to_file(tmp_path):
  """The metrics of the int8 file are those of its own answers, counted here; nothing grows with the pixels."""
  distilled = {"hard_labels": {"ignore_label": 255}, "hinton": {"temperature": 2.0}}
  config = experiment(
    "mask",
    stages__float__epochs=40,
    stages__float__augment={"crop": 1, "flip": True},
    stages__int8={**STAGE, **INT8, "kind": "train", "epochs": 1, "teacher": "float", "objective": distilled},
  )
  result = compress(config, tmp_path)
  first, last = result["rows"]
  assert first["mean_iou"] > 0.7 and last["codes_differ"] == 0 and last["answers_agree"] > 0.9
  import own_tasks

  images, labels = own_tasks.squares(ignored=True)["test"]
  answers = deploy.open_file(tmp_path / "files" / "int8.tflite").run(images).argmax(-1)
  known, found = labels != 255, []
  for c in (0, 1):
    one, other = (answers == c) & known, (labels == c) & known
    found.append((one & other).sum() / (one | other).sum())
  assert last["file_mean_iou"] == pytest.approx(np.mean(found), rel=1e-12)
  yes, wanted = answers == 1, labels == 1
  assert last["file_dice"] == pytest.approx((2 * (yes & wanted).sum() + 1) / (yes.sum() + wanted.sum() + 1), rel=1e-12)
  assert result["classes"]["values"]["int8.tflite"] == pytest.approx(found, rel=1e-12)
  kept = json.loads((tmp_path / "files" / "int8.json").read_text())
  assert "decisions" not in kept and np.shape(kept["statistics"]["union"]) == (24, 2)
  file = result["shipping"]["files"][1]
  assert file["lost"]["points"] == pytest.approx(100 * (first["file_mean_iou"] - last["file_mean_iou"]), abs=1e-9)
  page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
  for words in ("points of mean IoU lost to float.tflite", "mean IoU of the file", "same answers as float"):
    assert words in page and words in text
  assert "Mean IoU on the validation split" in page and "| square |" in text and "accuracy" not in text.lower()
  assert {"mean_iou", "dice"} == set(evaluate.evaluate_all(tmp_path).values[0][1])
  assert evaluate.evaluate(tmp_path, str(tmp_path / "files" / "int8.tflite")) == [
    (str(tmp_path / "files" / "int8.tflite"), last["file_mean_iou"], 24)
  ]
  # Figures of before have no statistics: the stage is measured, and compared with the first one, again.
  files.write(tmp_path / "files" / "int8.json", json.dumps({k: v for k, v in kept.items() if k != "statistics"}))
  assert compress(config, tmp_path)["rows"][1]["answers_agree"] == last["answers_agree"]
  assert json.loads((tmp_path / "files" / "int8.json").read_text())["statistics"] == kept["statistics"]


# The others, whose like docs/tasks.md runs, are slow for time only.
SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("halves", "places", "waves", "tokens")]


@pytest.mark.parametrize("task", ["both", *SLOW])
def test_other_tasks_from_config_to_file(tmp_path, task):
  config = experiment(task)
  result = compress(config, tmp_path)
  first, last = result["rows"]
  names = [one["name"] for one in result["metrics"]]
  assert last["codes_differ"] == 0 and not last.get("export")
  context = open_run(config, tmp_path)
  for row in result["rows"]:
    given = deploy.open_file(tmp_path / "files" / f"{row['name']}.tflite").run(context.data.test.images)
    for name, metric in zip(names, judged(config), strict=True):
      assert row[f"file_{name}"] == pytest.approx(metrics.measured(metric, given, context.data.test.labels), rel=1e-9)
  assert first[names[0]] == pytest.approx(first[f"file_{names[0]}"], rel=1e-4)
  agree = {"halves": {"answers_agree"}, "places": {"difference"}, "both": {"answers_agree", "difference"}}
  assert {"agreement", "answers_agree", "difference"} & last.keys() == agree.get(task, {"agreement"})
  if task in ("places", "both"):
    assert first["difference"] == 0 and 0 < last["difference"] < 0.5
    assert "mean difference from float" in (tmp_path / "report.html").read_text()
  series = stage.curves("float", context)
  assert f"validation_{names[0]}" in series
  if task == "waves":  # its input's grid is of the series that were seen, from -1.3 to 1.6 or so, and not of pixels
    assert 0.005 < float(deploy.open_file(tmp_path / "files" / "int8.tflite").input.grid.scale) < 0.02
  if task == "places":
    assert (
      "MAE, lower is better" in (tmp_path / "report.md").read_text() and " px |" in (tmp_path / "report.md").read_text()
    )


def judged(config):
  from leanax.pipeline import build

  return build.metrics(config)


CHANGES = {"stages__float__optimizer": {"learning_rate": 0.03, "accumulate": 2}, "run": ("float",), "evaluations": 6}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mask", "both"])
def test_a_run_resumes_as_if_uninterrupted(tmp_path, task):
  def trained(folder):
    return stage.run_stage("float", open_run(experiment(task, **CHANGES), folder), {})

  whole = trained(tmp_path / "whole")
  with jobs.interrupted(4):
    trained(tmp_path / "broken")
  jax.tree.map(np.testing.assert_array_equal, whole.variables, trained(tmp_path / "broken").variables)


@pytest.mark.parametrize("mode", ["shard_map", "mesh"])
def test_four_devices_are_one(tmp_path, mode):
  """Masks whose ignored positions are not evenly spread over devices, and micro-batches."""
  done = [
    stage.run_stage("float", open_run(experiment("mask", **CHANGES, parallel=kind), tmp_path / kind), {})
    for kind in ("jit", mode)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), *(one.variables for one in done))


@pytest.mark.slow  # two jobs
@pytest.mark.parametrize("task", ["places", "both"])
def test_a_student_learns_numbers_from_its_teacher(tmp_path, task):
  """From the teacher's running outputs where there are several, and from stored ones otherwise."""
  own = {"soft": {"loss": "logit_l2", **({"output": "place"} if task == "both" else {})}}
  more = {"mask": {"loss": "hinton", "output": "mask"}} if task == "both" else {}
  student = {
    **STAGE,
    "epochs": 30,
    "teacher": "float",
    "objective": {**own, **more},
    "optimizer": {"learning_rate": 0.01},
  }
  config = experiment(task, stages__float__epochs=30, stages__int8=student, evaluations=8)
  result = compress(config, tmp_path)
  for term in (*own, *more):
    values = [value for _, value in result["curves"]["int8"][term]]
    assert values[-1] < 0.7 * values[0], term
  assert (tmp_path / "teacher_logits").is_dir() == (task == "places")


@pytest.mark.slow  # three jobs
def test_several_seeds_have_one_report(tmp_path):
  compress_seeds(experiment("places", seeds=3), tmp_path)
  text, found = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "result.json").read_text())
  assert "MAE lost to float.tflite" in text and " px ±" in text and "in MAE than float.tflite" in text
  assert found["metrics"][0]["name"] == "mae" and len(found["rows"][1]["file_r2"]) == 3
  assert found["files"][1]["mae"] == [
    json.loads((tmp_path / f"seed{k}/result.json").read_text())["rows"][1]["file_mae"] for k in range(3)
  ]


@pytest.mark.parametrize(
  ("task", "changes", "message"),
  [
    ("mask", {"metrics": ()}, "'metrics' is empty; expected at least one"),
    ("mask", {"metrics": ("mean_iuo",)}, "unknown method of leanax.engine.metrics 'mean_iuo'; did you mean 'mean_iou'"),
    ("mask", {"metrics": (IOU, IOU)}, r"'metrics\[1\]' is a second metric called 'mean_iou'; expected each once"),
    ("mask", {"metrics": ({"name": "mean_iou", "ignored": 1},)}, r"'metrics\[0\].ignored'; did you mean 'metrics\[0\]"),
    ("mask", {"metrics": ("mean_iou",)}, "'mean_iou' got the label 255 of 2 classes; .*given as 'ignore_label'"),
    ("mask", {"metrics": ("mae",)}, "'mae' compares outputs with labels that are floats"),
    ("mask", {"metrics": ("own_tasks:dise",)}, r"'metrics\[0\]'.*unknown name in module 'own_tasks' 'dise'|'dise'; di"),
    ("mask", {"metrics": ("own_tusks:dice",)}, "there is no module 'own_tusks' on the Python path"),
    ("mask", {"metrics": ("own_tasks:no_metric",)}, "gives a int; expected an engine.metrics.Metric"),
    ("mask", {"metrics": ("own_tasks:broken",)}, r"'broken' cannot be computed.*IndexError.*own_tasks.py:\d+"),
    ("mask", {"metrics": ({"name": "own_tasks:broken", "where": "value"},)}, r"ZeroDivisionError.*own_tasks.py:\d+"),
    ("mask", {"metrics": ("own_tasks:misnamed",)}, r"misnamed' fails: a metric is called .*own_tasks.py:\d+\)$"),
    ("mask", {"stages__float__objective": {"x": {"loss": "own_tasks:misread"}}}, r"misread' f.*tasks.py:\d+\)$"),
    ("mask", {"data__kwargs": {"ignord": True}}, "unknown option of data set 'own_tasks:squares' 'ignord'; did you me"),
    ("mask", {"data__name": "own_tasks:broken_data", "data__kwargs": {}}, r"fails: IndexError.*own_tasks.py:\d+"),
    ("mask", {"data__name": "own_tasks:no_metric", "data__kwargs": {}}, "gives a int; expected a datasets.Dataset, or"),
    ("mask", {"stages__float__objective": {"hard_labels": {}}}, "0 to 1, and 384 positions have .* in example 0 of"),
    ("mask", {"models__student__kwargs": {"classes": 3}}, r"\(1, 8, 8, 3\) for one example; expected \(1, 8, 8, 2\),"),
    ("mask", {"stages__float__examples": {"only": (1,)}}, "choose examples by their class; expected one label each"),
    ("mask", {"stages__float__objective": {"x": {"loss": "own_tasks:broken_loss", "ignore_label": 255}}}, r"own_tasks"),
    ("mask", {"stages__float__objective": {"x": {"loss": "own_tasks:dice"}}}, "gives a Metric; expected a loss, as kd"),
    ("mask", {"stages__float__objective": {"x": {"loss": "own_tasks:plain"}}}, "needs .student., .teacher., and"),
    ("places", {"data__kwargs": {"constant": True}}, "'r2' needs labels that vary, and those of output 0 are the same"),
    ("places", {"models__student__kwargs": {"outputs": 3}}, r"\(1, 3\) for one example; expected \(1, 2\), a number f"),
    ("places", {"stages__float__objective": {"hard_labels": {}}}, r"expects batch\['label'\] to be integers \(4,\)"),
    ("places", {"stages__float__augment": {"mixup": 0.2}}, "augment.mixup is 0.2, and labels are floats"),
    ("both", {"stages__float__objective": {"hard_labels": {}}}, "has several outputs, 'mask', 'place'; expected one o"),
    ("both", {"metrics": ("mean_iou",)}, "there are several outputs, 'mask', 'place'; expected one of them as its 'ou"),
    ("both", {"metrics": ({"name": "mae", "output": "plaec"},)}, "'plaec'; did you mean 'place'"),
    ("both", {"models__student__output": "mask"}, "expected no 'output', as all are kept"),
    ("both", {"models__student__name": "own_tasks:Masks"}, "has one output, an array; expected a dict of outputs"),
    ("both", {"data__kwargs": {"beyond": 2}}, r"gives 2 logits in its output 'mask', .* id 3 of 'own_tasks:both"),
    ("waves", {"stages__float__augment": {"flip": True}}, "augment.flip is True, a change of pictures, and the inputs"),
    ("tokens", {"preprocess": {"scale": 0.5}}, "'preprocess' is given, and the inputs are whole numbers"),
  ],
)  # fmt: skip
def test_mistakes_are_one_sentence_before_anything_trains(tmp_path, task, changes, message):
  if "models__student__name" in changes:
    changes = {**changes, "models__student__kwargs": {}}
  with pytest.raises(UserError, match=message) as raised:
    open_run(experiment(task, **changes), tmp_path / "run", export=True)
  assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_one_output_of_yes_or_no_is_no_class(tmp_path):
  context = open_run(
    experiment("halves", data__kwargs={"single": True}, models__student__kwargs={"outputs": 1}), tmp_path
  )
  assert context.data.test.labels.shape == (24, 1) and context.data.test.classes == ("low",)


def test_a_loss_of_all_outputs_reads_all_labels(tmp_path):
  """The user's own loss is minimised; terms with an output read the labels of it."""
  context = open_run(
    experiment("both", stages__float__objective={"x": {"loss": "own_tasks:sum_of_both"}}, run=("float",)), tmp_path
  )
  stage.run_stage("float", context, {})
  values = [value for _, value in stage.curves("float", context)["x"]]
  assert values[-1] < values[0]
  labels = {"a": np.array([0, 1]), "b": np.array([[1.0, 2.0]], np.float32).T}
  term = kd.Term("t", kd.hard_labels(), output="a")
  assert term.own({"label": labels, "id": 1}) == {"label": labels["a"], "id": 1}
  assert "label" not in kd.Term("t", kd.hard_labels(), output="c").own({"label": labels})
  assert kd.Term("t", kd.hard_labels()).own({"label": labels})["label"] is labels
  loss, _, logs = kd.weighted([term, kd.Term("u", kd.squared_error("batch"), output="b")])(
    {"a": np.zeros((2, 2), np.float32), "b": np.zeros((2, 1), np.float32)},
    None,
    {"label": labels, "target": {"b": labels["b"]}},
  )
  np.testing.assert_allclose([logs["t"], logs["u"], loss], [np.log(2), 2.5, np.log(2) + 2.5], rtol=1e-6)


def test_code_of_a_run_from_elsewhere_is_not_run(tmp_path, monkeypatch):
  config = experiment("mask", run=("float",), stages__float__epochs=1)
  stage.run_stage("float", open_run(config, tmp_path), {})
  model = "own_tasks:Masks"
  monkeypatch.setattr("leanax.pipeline.workdir.is_own", lambda folder: False)
  for named in ((model,), (model, "own_tasks:dice"), (model, "own_tasks:squares")):
    with pytest.raises(
      UserError, match="was made elsewhere and names 'own_tasks:.*code that is not run unless you name"
    ):
      evaluate.evaluate(tmp_path, code=named)
  assert evaluate.evaluate(tmp_path, code=(model, "own_tasks:dice", "own_tasks:squares"))[0][0] == "float"
