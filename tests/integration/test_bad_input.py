"""A user's mistakes, each through the whole program: one sentence, exit status 2, and nothing compiled before it."""

import re
import shutil
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy

from leanax.core.errors import UserError
from leanax.engine.data import Dataset, loading, make_split, stock
from leanax.engine.store.checkpoint import Checkpoints
from leanax.pipeline.compress import compress
from leanax.pipeline.config import flags
from tests.integration import jobs

COMPILES: list[str] = []


def note(name, *_, **__):
  if name.endswith("backend_compile_duration"):
    COMPILES.append(name)


jax.monitoring.register_event_duration_secs_listener(note)


@pytest.fixture
def refused(capsys):
  """Runs the main job as the program does; it must end with this sentence and status 2, and have compiled nothing."""

  def run(config, folder, sentence, compiled=False):
    COMPILES.clear()
    with pytest.raises(SystemExit) as ended, flags._sentences():
      compress(config(), folder)
    printed = capsys.readouterr().err
    last = printed.splitlines()[-1]
    assert ended.value.code == 2
    assert last.startswith("error: ") and sentence in last, last
    assert compiled or (printed.count("\n") == 1 and not COMPILES)
    return last

  return run


def test_the_count_of_compilations_counts():
  COMPILES.clear()
  jax.jit(lambda x: x * 3 + 1)(np.arange(5.0, dtype=np.float32))
  assert COMPILES


def stage(name, **changes):
  return {f"stages__{name}__{key}": value for key, value in changes.items()}


PRETRAINED = {**jobs.EXPERIMENT["models"]["student"], "weights": "nowhere.safetensors"}
WARM_UP = {"name": "linear", "low": 0.0, "high": 1.0, "start": 0.0, "end": 0.3}
SPARSE = {"name": "magnitude", "density": 0.4}

MISTAKES = {
  "loss": (
    stage("distilled", objective={"hintn": {"weight": 1.0}}),
    "unknown method of kd 'hintn'; did you mean 'hinton'",
  ),
  "sparse method": (
    stage("pruned", sparsity={"name": "magnitud", "density": 0.4}),
    "unknown method of sparsity 'magnitud'; did you mean 'magnitude'?",
  ),
  "no sparse method": (
    stage("pruned", sparsity={"density": 0.4}),
    "config key 'stages.pruned.sparsity.name' is missing; expected a method of sparsity",
  ),
  "optimizer": (stage("alone", optimizer={"name": "adan"}), "'adan'; did you mean 'adam'"),
  "warm-up": (
    stage("alone", optimizer={"warmup_steps": 13}),
    "config group 'stages.alone.optimizer': schedule: warmup is 13 steps of 12 in all; expected fewer",
  ),
  "loss keyword": (
    stage("distilled", objective={"hinton": {"temprature": 2.0}}),
    "'stages.distilled.objective.hinton.temprature'; did you mean 'stages.distilled.objective.hinton.temperature'?",
  ),
  "loss no group": (stage("alone", objective={"hard_labels": 1.0}), "must be a group such as {'weight': 1.0}, got 1.0"),
  "objective no group": (stage("alone", objective="hinton"), "'stages.alone.objective' must be a group, got 'hinton'"),
  "loss no text": (stage("distilled", objective={"a": {"loss": 3}}), "unknown method of kd 3; the nearest of "),
  "weight": (
    stage("alone", objective={"hard_labels": {"weight": "a"}}),
    "config key 'stages.alone.objective.hard_labels.weight' is 'a'; expected a number from 0 to 1e6",
  ),
  "weight's schedule": (
    stage("alone", objective={"hard_labels": {"weight": {**WARM_UP, "start": "x"}}}),
    "config key 'stages.alone.objective.hard_labels.weight.start', a share of the stage, is 'x'; expected a number",
  ),
  "temperature": (
    stage("distilled", objective={"hinton": {"temperature": WARM_UP}}),
    "hinton: temperature is a schedule from 0.0 to 1.0; expected a number from 0.001 to 10000 at both ends",
  ),
  "average": (stage("alone", optimizer={"ema": 2.0}), "'stages.alone.optimizer.ema' is 2.0; expected a number from 0 "),
  "density": (
    stage("pruned", sparsity={**SPARSE, "density": 1.5}),
    "'stages.pruned.sparsity': density is 1.5; expected",
  ),
  "sparse keyword": (
    stage("pruned", sparsity={**SPARSE, "densty": 1}),
    "unknown config key 'stages.pruned.sparsity.densty'; did you mean 'stages.pruned.sparsity.density'",
  ),
  "schedule": (
    stage("pruned", sparsity={**SPARSE, "schedule": {"name": "cubc"}}),
    "unknown method of sparsity.schedules 'cubc'; did you mean 'cubic'?",
  ),
  "schedule keyword": (
    stage("pruned", sparsity={**SPARSE, "schedule": {"name": "cubic", "start": 0.1}}),
    "config key 'stages.pruned.sparsity.schedule.end' is missing",
  ),
  "sparsity rule": (
    stage("pruned", sparsity={**SPARSE, "rules": (("Dense_9/*", True),)}),
    "stage 'pruned': sparsity rule 'Dense_9/*' matches nothing; names near it: Dense_",
  ),
  "quantization rule": (
    stage("int8", quant={"rules": (("Conv*", "w4a8"), ("*", "w8a8"))}),
    "stage 'int8': quantization rule 'Conv*' matches nothing; names near it: ",
  ),
  "shadowed rule": (
    stage("int8", quant={"rules": (("*", "w4a8"), ("Dense_0*", "w8a8"))}),
    "stage 'int8': quantization rule 'Dense_0*' never applies: an earlier rule, '*', takes Dense_0/kernel",
  ),
  "setting": (stage("int8", quant={"rules": (("*", "w8a8 lerned"),)}), "'lerned'; did you mean 'learned'?"),
  "width": (stage("int8", quant={"rules": (("*", "w1a8"),)}), "bits"),
  "rule no pair": (stage("int8", quant={"rules": (("*",),)}), "expected (site glob, setting)"),
  "teacher": (
    stage("distilled", teacher=None),
    "'stages.distilled.teacher' is empty, but its objective compares with a teacher",
  ),
  "late teacher": (stage("alone", teacher="distilled"), "expected one that runs before it: teacher"),
  "model name": (
    {"models__student__name": "zoo.mlp:MLPP"},
    "unknown name in module 'zoo.mlp' 'MLPP'; did you mean 'MLP'?",
  ),
  "model module": ({"models__student__name": "zoo.mpl:MLP"}, "there is no module 'leanax.zoo.mpl' on the Python path"),
  "model path": ({"models__student__name": "MLP"}, "model 'MLP' is no import path; expected 'package.module:Name'"),
  "model keyword": (
    {"models__student__kwargs": {"width": (8,)}},
    "model 'zoo.mlp:MLP' does not take the keyword 'width'; it takes: widths, classes",
  ),
  "model value": (
    {"models__student__kwargs": {"widths": ("eight",), "classes": 4}},
    "model 'student', 'zoo.mlp:MLP' with {'classes': 4, 'widths': ('eight',)}, cannot be called with images of (6",
  ),
  "classes": (
    {"models__student__kwargs": {"widths": (8,), "classes": 5}},
    "model 'student', 'zoo.mlp:MLP', gives outputs of shape (1, 5) for one image; expected (1, 4), a logit for each",
  ),
  "no weights": ({"models__student": PRETRAINED}, "there are no weights at nowhere.safetensors"),
  "data set": ({"data": {"name": "digts"}}, "unknown data set 'digts'; did you mean 'digits'?"),
  "data option": ({"data__kwargs": {"clases": 3}}, "unknown option of data set 'synthetic' 'clases'; did you mean"),
  "data size": ({"data__kwargs": {"train": 0}}, "synthetic data: train is 0; expected a whole number, 1 or more"),
  "data dir": ({"data__kwargs": {"data_dir": "x"}}, "config key 'data.kwargs.data_dir'"),
  "validation twice": ({"data__validation": 0.5}, "'data.validation' and 'data.kwargs.validation' are both set"),
  "mode": ({"parallel": "pmp"}, "unknown parallel mode in 'parallel' 'pmp'; did you mean 'pmap'?"),
  "devices": (
    {"parallel": "pmap", **stage("pruned", batch_size=30)},
    "stage 'pruned': a batch of 30 examples does not divide over 4 devices",
  ),
  "batch": (stage("alone", batch_size=129), "stage 'alone': "),
  "channels": ({"preprocess": {"mean": (0.5, 0.5, 0.5)}}, "preprocess.mean has 3 numbers; expected 1"),
  "crop": (stage("alone", augment={"crop": 9}), "augment.crop is 9; expected 0 to below the images' 6x6 pixels"),
  "precision": (
    stage("alone", precision="float16"),
    "unknown precision in 'stages.alone.precision' 'float16'; did you mean",
  ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_the_first_stage(tmp_path, refused, mistake):
  changes, sentence = MISTAKES[mistake]
  refused(lambda: jobs.experiment(**changes), tmp_path / "run", sentence)
  assert not (tmp_path / "run").exists()  # so that the mended config may use it


CONFIG_MISTAKES = {
  "key": (["--config.sed=3"], "error: unknown config key 'sed'; did you mean 'seed'"),
  "type": (["--config.stages.alone.epochs=many"], "error: config key 'stages.alone.epochs' expects an int, got 'many'"),
  "group": (["--config.data=digits"], "error: config key 'data' is a group; set one of its keys: data."),
  "stage": (["--config.run=teacher,puned"], "error: unknown stage in 'run' 'puned'; did you mean 'pruned'?"),
}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  return jobs.write(tmp_path_factory.mktemp("config") / "tiny.py")


def one_sentence(result, sentence):
  assert (result.returncode, result.stdout) == (2, ""), result.stderr
  lines = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
  assert len(lines) == 1 and lines[0].startswith(sentence), result.stderr
  return [line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")]


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_mistake_in_the_config_does_not_import_jax(config_file, tmp_path, mistake):
  changes, sentence = CONFIG_MISTAKES[mistake]
  arguments = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *changes]
  imported = one_sentence(jobs.program("compress", *arguments, python=["-X", "importtime"]), sentence)
  assert "ml_collections" in imported
  assert not {"jax", "numpy", "flax", "optax"} & set(imported)
  assert not (tmp_path / "run").exists()


def test_missing_flags_and_files(config_file, tmp_path):
  found = jobs.program("compress", f"--config={config_file}")
  one_sentence(found, "error: --workdir is missing: The directory of the results")
  one_sentence(jobs.program("compress", f"--workdir={tmp_path}"), "error: --config is missing: Path of the experiment")
  one_sentence(
    jobs.program("compress", f"--workdir={tmp_path}", f"--config={config_file.with_name('tinny.py')}"),
    "error: unknown config file ",
  )


def test_an_unknown_method_compiles_nothing_in_a_real_process(config_file, tmp_path):
  arguments = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
  result = jobs.program("compress", *arguments, "--config.stages.pruned.sparsity.name=magnitud", JAX_LOG_COMPILES="1")
  one_sentence(result, "error: unknown method of sparsity 'magnitud'; did you mean 'magnitude'?")


def test_a_missing_extra_is_named_before_anything_trains(config_file, tmp_path):
  (tmp_path / "sitecustomize.py").write_text(
    "import sys\n"
    "class Blocker:\n"
    "  def find_spec(self, name, path=None, target=None):\n"
    "    if name.split('.')[0] == 'ai_edge_litert':\n"
    "      raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    "sys.meta_path.insert(0, Blocker())\n"
  )
  result = jobs.program(
    "compress",
    f"--config={config_file}",
    f"--workdir={tmp_path / 'run'}",
    PYTHONPATH=f"{tmp_path}:{jobs.ROOT}",
  )
  one_sentence(result, "error: LiteRT files need the package ai-edge-litert: pip install leanax[litert]")
  assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config(finished, tmp_path, refused):
  (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
  message = refused(
    lambda: jobs.experiment(**TEACHER, seed=1),
    tmp_path,
    "holds a run of another config: 'seed' was 0 and is 1 here",
  )
  assert message.endswith("use another --workdir")
  (tmp_path / "config.json").write_text("{")
  refused(lambda: jobs.experiment(**TEACHER), tmp_path, "config.json' is damaged: it holds no JSON object; put it back")


def test_a_workdir_that_is_a_file(tmp_path, refused):
  (tmp_path / "run").write_text("x")
  refused(lambda: jobs.experiment(**TEACHER), tmp_path / "run", "cannot be written: ")


TEACHER = {"run": ("teacher",), "stages__teacher__epochs": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  compress(jobs.experiment(**TEACHER), folder)
  return folder


@pytest.fixture
def stopped(finished, tmp_path):
  """A run with checkpoints of the steps 4 and 8 of its only stage, which is not finished."""
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / "models")
  shutil.rmtree(folder / "files")
  assert sorted(path.name for path in (folder / "checkpoints" / "teacher").iterdir()) == ["4", "8"]
  return folder


def damage(step):
  """Changes one byte in the middle of the largest file of a checkpoint."""
  path = max((p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_left_out_with_a_warning(stopped, finished, tmp_path):
  damage(stopped / "checkpoints" / "teacher" / "8")
  config = jobs.write(tmp_path / "teacher.py", **TEACHER)
  result = jobs.program("compress", f"--config={config}", f"--workdir={stopped}")
  assert result.returncode == 0, result.stderr
  (line,) = [line for line in result.stderr.splitlines() if "damaged" in line]
  assert line.startswith("warning: checkpoint ") and line.endswith("; taking the one before")
  assert "warnings.warn" not in result.stderr
  for name in ("models/teacher.safetensors", "metrics.jsonl"):
    assert (stopped / name).read_bytes() == (finished / name).read_bytes()


def test_no_sound_checkpoint_at_all(stopped, refused):
  for step in ("4", "8"):
    damage(stopped / "checkpoints" / "teacher" / step)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    message = refused(lambda: jobs.experiment(**TEACHER), stopped, "there is no sound checkpoint in ", compiled=True)
  assert "step 4: " in message


def test_a_foreign_checkpoint_directory(stopped, refused):
  (stopped / "checkpoints" / "teacher" / "model.ckpt").write_text("x")
  refused(
    lambda: jobs.experiment(**TEACHER),
    stopped,
    "is no directory of checkpoints: it holds 'model.ckpt'",
    compiled=True,
  )


def test_a_damaged_model_file_of_a_finished_stage(finished, tmp_path, refused):
  shutil.copytree(finished, tmp_path / "run")
  path = tmp_path / "run" / "models" / "teacher.safetensors"
  data = bytearray(path.read_bytes())
  data[-5] ^= 1
  path.write_bytes(bytes(data))
  refused(lambda: jobs.experiment(**TEACHER), tmp_path / "run", "teacher.safetensors is damaged: leaf ")


def test_the_weights_of_another_model(tmp_path, refused):
  safetensors.numpy.save_file({"body/kernel": np.zeros((3, 3), np.float32)}, tmp_path / "w.safetensors")
  entry = {**PRETRAINED, "weights": str(tmp_path / "w.safetensors")}
  message = refused(lambda: jobs.experiment(models__student=entry), tmp_path / "run", "has no array for 'Dense_0/bias'")
  assert "holds 'body/kernel', which the model does not use" in message
  entry = {**entry, "key_map": (("(", ""),)}
  refused(lambda: jobs.experiment(models__student=entry), tmp_path / "run", "expected (regular expression, replacement")


def test_damaged_original_files_of_a_set(tmp_path, refused, monkeypatch):
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "cache"))
  (tmp_path / "mnist").mkdir()
  for names in stock.FILES.values():
    for name in names:
      (tmp_path / "mnist" / name).write_bytes(b"\x1f\x8b not the images")
  data = {"name": "tfds:mnist", "dir": str(tmp_path)}
  refused(lambda: jobs.experiment(data=data), tmp_path / "run", "is not the original file of mnist: expected ")
  data["dir"] = str(tmp_path / "nowhere")
  refused(lambda: jobs.experiment(data=data), tmp_path / "run", "nowhere")


def test_a_label_out_of_range(tmp_path, refused, monkeypatch):
  def load():
    images, labels = np.zeros((8, 6, 6, 1), np.uint8), np.array([0, 1, 2, 3, 4, 0, 1, 2])
    return Dataset(*(make_split(images, labels, np.arange(8), tuple("abcd"), f"own/{n}") for n in ("a", "b", "c")))

  monkeypatch.setitem(loading.PLAIN, "own", load)
  config = {"data": {"name": "own"}}
  refused(lambda: jobs.experiment(**config), tmp_path / "run", "own/a: example 4 has label 4; expected 0 to 3")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = jobs.write(tmp_path / "tiny.py", **TEACHER, evaluations=12, checkpoint_every=1)
  key = "--config.stages.teacher.optimizer"
  steep = f"{key}.name=sgd", f"{key}.learning_rate=1000", "--config.preprocess.scale=1e6"
  result = jobs.program("compress", f"--config={config}", f"--workdir={tmp_path / 'run'}", *steep)
  assert (result.returncode, result.stdout) == (2, "")
  last = result.stderr.splitlines()[-1]
  found = re.match(r"error: training stopped: (loss|grad_norm) is (nan|inf) at step (\d+); ", last)
  assert found, result.stderr
  assert "Traceback" not in result.stderr
  step = int(found[3])
  assert step > 1
  with Checkpoints(tmp_path / "run" / "checkpoints" / "teacher", read_only=True) as checkpoints:
    assert checkpoints.latest() == step - 1
  assert not (tmp_path / "run" / "models").exists()


def test_a_second_start_stops_at_the_same_place(tmp_path, capsys):
  """Going on from the last good checkpoint gives the same sentence: nothing of the bad step was kept."""
  steep = {"stages__teacher__optimizer": {"name": "sgd", "learning_rate": 1000.0}, "preprocess": {"scale": 1e6}}
  config = jobs.experiment(**TEACHER, **steep, evaluations=12)
  messages = []
  for _ in range(2):
    with pytest.raises(UserError) as caught:
      compress(config, tmp_path)
    messages.append(str(caught.value))
  assert messages[0] == messages[1]
  capsys.readouterr()
