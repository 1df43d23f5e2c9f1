"""The whole main job, tiny: its files, a second call that trains nothing, and a stopped one that ends the same."""

import json
import shutil

import jax
import numpy as np
import pytest

from leanax import deploy, engine
from leanax.deploy.formats.litert import constants
from leanax.engine.data import Preprocess, normalise
from leanax.engine.store import metrics
from leanax.pipeline import exporting, stage, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.report import measure
from tests.integration import jobs

FIGURES = {"accuracy", "file_accuracy", "agreement", "parameters", "nonzero", "macs", "file_bytes", "latency_us"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
  folder = tmp_path_factory.mktemp("job")
  return folder, compress(jobs.experiment(), folder)


def models(folder):
  return {name: (folder / "models" / f"{name}.safetensors").read_bytes() for name in jobs.STAGES}


def test_a_row_for_every_stage_with_every_figure(job):
  folder, result = job
  rows = result["rows"]
  assert tuple(row["name"] for row in rows) == jobs.STAGES
  for row in rows:
    assert row.keys() >= FIGURES, row["name"]
    assert all(row[key] is not None for key in FIGURES)
    assert ("codes_differ" in row) == (row["name"] == "int8")
    assert "decisions" not in row
  teacher, alone, _, pruned, int8 = rows
  sizes = [36 * 32 + 32 + 32 * 16 + 16 + 16 * 4 + 4, 36 * 8 + 8 + 8 * 4 + 4]
  assert [teacher["parameters"], alone["parameters"]] == sizes
  assert [teacher["macs"], alone["macs"]] == [36 * 32 + 32 * 16 + 16 * 4, 36 * 8 + 8 * 4]
  kept = round(0.4 * 36 * 8) + round(0.4 * 8 * 4)
  for row in (pruned, int8):  # biases may be zero or not
    assert kept <= row["nonzero"] <= kept + 12
  assert int8["file_bytes"] < alone["file_bytes"] < teacher["file_bytes"]
  assert teacher["agreement"] == 1.0
  assert teacher["accuracy"] > 0.7
  assert int8["accuracy"] > 0.5  # chance is 0.25
  written = json.loads((folder / "result.json").read_text())
  assert written == json.loads(json.dumps(result))


def test_the_curves_and_the_events_are_there(job):
  folder, result = job
  lines = metrics.read(folder)
  assert [line["step"] for line in lines] == list(range(2, 5 * jobs.STEPS + 1, 2))
  assert set(result["curves"]) == set(jobs.STAGES)
  for name, curves in result["curves"].items():
    assert [step for step, _ in curves["loss"]] == list(range(2, jobs.STEPS + 1, 2)), name
    assert {"train_accuracy", "validation_accuracy", "grad_norm"} <= curves.keys()
    events = list((folder / "tensorboard" / name).iterdir())
    assert events and all(path.stat().st_size > 200 for path in events)
  assert result["curves"]["pruned"].keys() >= {"hinton", "hard_labels"}
  assert "<svg" in (folder / "report.html").read_text()
  assert all(name in (folder / "report.html").read_text() for name in jobs.STAGES)


def test_the_files_run_in_the_real_runtime_as_the_row_says(job):
  folder, result = job
  test = stage_data().test
  for row in result["rows"]:
    file = deploy.litert().open(folder / "files" / f"{row['name']}.tflite")
    assert file.bytes == row["file_bytes"]
    hits = file.run(test.images).argmax(-1) == test.labels  # raw pixels: the file knows its preprocessing
    assert float(np.mean(hits)) == row["file_accuracy"], row["name"]
    assert file.input.dtype == ("int8" if row["name"] == "int8" else "float32")


def test_the_layers_of_a_file_by_hand(job):
  folder, result = job
  assert list(result["layers"]) == [f"{name}.tflite" for name in jobs.STAGES]
  test, figures = stage_data().test, result["layers"]["int8.tflite"]
  student = trained.load(folder / "models" / "int8.safetensors")[0]
  params = student.variables["params"]
  x = np.asarray(normalise(test.images, Preprocess(**student.recipe.preprocess)), np.float64).reshape(64, -1)
  file = deploy.open_file(folder / "files" / "int8.tflite").run(test.images)
  for row, name, bias, shape in zip(figures, ("Dense_0", "Dense_1"), (8, 4), ((36, 8), (8, 4)), strict=True):
    kernel = np.asarray(params[name]["kernel"], np.float64)
    assert (row["name"], row["operator"], row["macs"]) == (f"{name}/kernel", "Dense", kernel.size)
    assert (row["weight_bits"], row["input_bits"]) == (8, 8)
    assert row["bytes"] == kernel.size + 4 * bias + 4 * 2 * bias  # codes, biases, and the scales of both
    assert row["sparsity"] == pytest.approx(np.mean(kernel == 0)) and row["full_rank"] == min(shape)
    assert row["rank"] == np.linalg.matrix_rank(kernel)
    assert (row["codes"], row["codes_differ"]) == (64 * bias, 0)
    x = x @ kernel + np.asarray(params[name]["bias"], np.float64)
    x = np.maximum(x, 0) if name == "Dense_0" else x
  assert figures[-1]["sqnr"] == pytest.approx(10 * np.log10(np.sum(x**2) / np.sum((x - file) ** 2)), abs=1e-3)
  timed = result["layers_latency"]["int8.tflite"]
  assert timed["sum"] >= sum(row["latency_us"] for row in figures) >= 0 and timed["whole"] > 0
  teacher = result["layers"]["teacher.tflite"]
  assert [row["macs"] for row in teacher] == [36 * 32, 32 * 16, 16 * 4]
  assert all(row["sqnr"] is None and row["codes"] is None and row["input_bits"] == 32 for row in teacher)
  joules = [one["energy"]["joules"] for one in result["shipping"]["files"] if not one["energy"]["measured"]]
  assert not joules or joules[0] == pytest.approx(4.6e-12 * result["rows"][0]["macs"])


def test_classes_run_times_and_the_pages(job):
  folder, result = job
  found, labels = result["classes"], stage_data().test.labels
  decisions = deploy.open_file(folder / "files" / "int8.tflite").run(stage_data().test.images).argmax(-1)
  counts = np.zeros((4, 4), int)
  np.add.at(counts, (labels, decisions), 1)
  assert found["examples"] == counts.sum(1).tolist() and list(found["of"]) == [f"{name}.tflite" for name in jobs.STAGES]
  assert found["of"]["int8.tflite"]["right"] == counts.diagonal().tolist()
  off = [[a, b, int(counts[a, b])] for a in range(4) for b in range(4) if a != b and counts[a, b]]
  assert found["of"]["int8.tflite"]["taken_for"] == off
  assert list(result["run"]) == list(jobs.STAGES) and all(one["seconds"] > 0 for one in result["run"].values())
  page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
  assert "Dense_0/<wbr>kernel" in page and "Dense_0/kernel" in text
  for words in ("UTC after", "share of bytes", "share of time", "takes it for", "energy", "Layers of"):
    assert words in page and words in text, words
  assert "confusion" not in text and 'class="matrix"' in page


def stage_data():
  from leanax.pipeline import build

  return build.dataset(jobs.experiment())


def test_evaluate_prints_the_figures_of_the_rows(job):
  folder, result = job
  printed = jobs.program("evaluate", f"--workdir={folder}")
  assert printed.returncode == 0, printed.stderr
  assert printed.stdout.splitlines() == [
    f"{row['name']}: {100 * row['accuracy']:.2f} % of 64" for row in result["rows"]
  ]
  file = folder / "files" / "int8.tflite"
  printed = jobs.program("evaluate", f"--workdir={folder}", f"--model={file}")
  assert printed.stdout == f"{file}: {100 * result['rows'][-1]['file_accuracy']:.2f} % of 64\n"


def test_pruned_weights_are_integer_zeros_in_the_file(job):
  folder, _ = job
  student, _ = trained.load(folder / "models" / "int8.safetensors")
  found = {a.shape: a for a in constants((folder / "files" / "int8.tflite").read_bytes())}
  for layer in student.variables["params"].values():
    kernel = np.asarray(layer["kernel"])
    codes = found[kernel.T.shape]  # the file has (out, in)
    assert codes.dtype == np.int8
    pruned = kernel.T == 0
    assert 0.55 < pruned.mean() < 0.65
    assert not codes[pruned].any()
    assert codes[~pruned].any()


def test_simulation_reference_and_runtime_agree_on_a_dense_stack(job):
  folder, result = job
  parity = result["rows"][-1]["parity"]
  assert parity["reference/runtime"]["count"] == 0
  assert parity["reference/runtime"]["total"] == 64 * 4
  assert parity["simulation/reference"]["count"] == result["rows"][-1]["codes_differ"] == 0
  # The file's codes are those of the reference on other images too, as they come from the model that was saved.
  student = trained.load(folder / "models" / "int8.safetensors")[0]
  about = exporting.description(student.recipe, jobs.experiment(), "int8")
  network, content = measure.export(student, deploy.litert(), about)
  assert content == (folder / "files" / "int8.tflite").read_bytes()
  images = np.random.default_rng(0).normal(size=(40, 6, 6, 1)).astype(np.float32)
  assert deploy.parity(network, deploy.litert().open(content), images)["reference/runtime"].count == 0


def test_a_second_call_trains_and_measures_nothing(job, monkeypatch):
  folder, result = job
  before = {
    path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".safetensors", ".jsonl", ".tflite")
  }

  def never(*_, **__):
    raise AssertionError("a finished stage was trained or measured again")

  monkeypatch.setattr(engine, "fit", never)
  monkeypatch.setattr("leanax.pipeline.compress.measure_model", never)
  again = compress(jobs.experiment(), folder)
  assert again["rows"] == result["rows"]
  assert again["curves"] == result["curves"]
  assert before == {path: path.read_bytes() for path in before}


def copy_of_first(folder, to, count):
  """Makes a directory in which the first stages of a run are done, and nothing else."""
  for name in jobs.STAGES[:count]:
    for file in (f"models/{name}.safetensors", f"files/{name}.tflite", f"files/{name}.json"):
      if (folder / file).exists():
        (to / file).parent.mkdir(exist_ok=True)
        shutil.copy(folder / file, to / file)
  lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  of_them = [line for line in lines if json.loads(line)["step"] <= count * jobs.STEPS]
  (to / "metrics.jsonl").write_text("".join(of_them))
  shutil.copy(folder / "config.json", to)


@pytest.mark.slow
def test_a_second_run_in_another_directory_gives_the_same_bytes(job, tmp_path):
  folder, _ = job
  compress(jobs.experiment(), tmp_path)
  assert models(tmp_path) == models(folder)
  for name in ("metrics.jsonl", "config.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  for name in jobs.STAGES:
    file = f"files/{name}.tflite"
    assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ("name", "at"), [("teacher", 3), pytest.param("pruned", 7, marks=pytest.mark.slow), ("int8", 11)]
)
def test_a_stopped_run_ends_as_the_uninterrupted_one(job, tmp_path, monkeypatch, name, at):
  folder, result = job
  copy_of_first(folder, tmp_path, jobs.STAGES.index(name))
  with jobs.interrupted(at, name):
    compress(jobs.experiment(), tmp_path)
  assert not (tmp_path / "models" / f"{name}.safetensors").exists()
  assert (tmp_path / "checkpoints" / name / "4").exists() == (at > 4)
  fit, first_steps = engine.fit, []
  monkeypatch.setattr(
    engine, "fit", lambda step, state, *a, **k: first_steps.append(int(state.step)) or fit(step, state, *a, **k)
  )
  again = compress(jobs.experiment(), tmp_path)
  assert first_steps == [at // 4 * 4] + [0] * (len(jobs.STAGES) - jobs.STAGES.index(name) - 1)  # nothing is done twice
  assert models(tmp_path) == models(folder)
  assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
  same = FIGURES - {"latency_us"}
  assert [{k: row[k] for k in same} for row in again["rows"]] == [{k: row[k] for k in same} for row in result["rows"]]


@pytest.mark.slow
def test_stages_trained_out_of_order_lose_no_curve(job, tmp_path):
  """`scripts.train --stage=distilled` leaves out "alone", which comes before it; compress then trains that one."""
  folder, result = job
  from leanax.pipeline.compress import open_run

  copy_of_first(folder, tmp_path, 1)
  done = {}
  stage.run_with_needs("distilled", open_run(jobs.experiment(), tmp_path), done)
  assert set(done) == {"teacher", "distilled"}
  again = compress(jobs.experiment(), tmp_path)
  assert again["curves"] == result["curves"]
  assert models(tmp_path) == models(folder)


def test_a_float_stage_may_follow_an_int8_one(job, tmp_path):
  folder, _ = job
  stages = {**jobs.EXPERIMENT["stages"], "float": {**jobs.STAGE, "start": "int8"}}
  changes = {"stages": stages, "run": (*jobs.STAGES, "float")}
  for name in ("models", "files"):
    shutil.copytree(folder / name, tmp_path / name)
  shutil.copy(folder / "config.json", tmp_path)
  result = compress(jobs.experiment(**changes), tmp_path)
  last = result["rows"][-1]
  assert last["name"] == "float" and "codes_differ" not in last
  assert deploy.litert().open(tmp_path / "files" / "float.tflite").input.dtype == "float32"


def test_other_seeds_give_other_models(job, tmp_path):
  folder, _ = job
  compress(jobs.experiment(run=("teacher",), seed=1), tmp_path)
  teacher = (tmp_path / "models" / "teacher.safetensors").read_bytes()
  assert teacher != models(folder)["teacher"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "mesh", "shard_map"])
def test_the_parallel_modes_train_the_same_teacher(job, tmp_path, mode):
  folder, _ = job
  compress(jobs.experiment(run=("teacher",), parallel=mode), tmp_path)
  actual, desired = (trained.load(path / "models" / "teacher.safetensors")[0].variables for path in (tmp_path, folder))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), actual, desired)
