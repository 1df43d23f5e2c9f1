"""Users' models go through the whole main job: nnx, plain functions, a user's module, pretrained weights."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from leanax import deploy
from leanax.core.trees import named_leaves
from leanax.deploy.formats.litert import constants
from leanax.engine.store.model_file import load_tree
from leanax.pipeline import build, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.config import experiment
from tests.integration import jobs

NORMALISED = {"scale": 1 / 255, "mean": (0.4,), "std": (0.3,)}
USERS = '''
"""A user's nets, of linen and of nothing."""
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
  hidden: int = 8

  @nn.compact
  def __call__(self, x, deterministic=True):
    x = nn.Dense(self.hidden, name="body")(x.reshape(x.shape[0], -1))
    x = nn.Dropout(0.1, deterministic=deterministic)(nn.relu(x))
    return nn.Dense(4, name="head")(x)


def functions(hidden):
  def init(key, x):
    a, b = jax.random.split(key)
    size = x[0].size
    weights = [jax.random.normal(a, (size, hidden)) * size**-0.5, jax.random.normal(b, (hidden, 4)) * hidden**-0.5]
    return {"params": {"layers": [{"w": w, "b": jnp.zeros(w.shape[1])} for w in weights]}}

  def apply(variables, x):
    first, second = variables["params"]["layers"]
    x = jnp.maximum(x.reshape(x.shape[0], -1) @ first["w"] + first["b"], 0)
    return x @ second["w"] + second["b"]

  return init, apply
'''


@pytest.fixture
def users(tmp_path, monkeypatch):
  """A module outside of the repository, on the path of this process and of those it starts."""
  folder = tmp_path / "elsewhere"
  folder.mkdir()
  (folder / "users_nets.py").write_text(USERS)
  monkeypatch.syspath_prepend(str(folder))
  monkeypatch.setenv("PYTHONPATH", f"{folder}:{jobs.ROOT}")
  yield folder
  sys.modules.pop("users_nets", None)


def check_rows(result, folder, config):
  """Checks for any model: every figure, the files in the runtime, zeros that stay, few codes that differ."""
  rows = {row["name"]: row for row in result["rows"]}
  assert tuple(rows) == config.run
  test = build.dataset(config).test
  for name, row in rows.items():
    file = deploy.litert().open(folder / "files" / f"{name}.tflite")
    assert float(np.mean(file.run(test.images).argmax(-1) == test.labels)) == row["file_accuracy"]
    if name != "int8":
      assert row["file_accuracy"] == row["accuracy"]
  assert rows["int8"]["nonzero"] <= rows["pruned"]["nonzero"] + 40  # biases, and those of folded batch norms
  return rows


FRESH = """
import json, sys
import numpy as np
from leanax.pipeline.trained import load, predict
trained, _ = load(sys.argv[1], sys.argv[3:])
print(json.dumps(predict(trained, np.load(sys.argv[2])).tolist()))
"""


def check_fresh(folder, config, tmp_path, names=("teacher", "int8")):
  """A new process, in another directory, with the model's file and raw images alone, predicts what this one does.

  Code of the user's own is named to it, for a file names none that would be run.
  """
  code = experiment.model_code(config)
  images = build.dataset(config).test.images[:16]
  np.save(tmp_path / "images.npy", images)
  for name in names:
    model = tmp_path / f"{name}_alone.safetensors"
    model.write_bytes((folder / "models" / f"{name}.safetensors").read_bytes())
    printed = subprocess.run(
      [sys.executable, "-c", FRESH, str(model), str(tmp_path / "images.npy"), *code],
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(jobs.ROOT))},
      capture_output=True,
      text=True,
      check=False,
      timeout=120,
    )
    assert printed.returncode == 0, printed.stderr
    logits = np.array(json.loads(printed.stdout), np.float32)
    expected = trained.predict(trained.load(folder / "models" / f"{name}.safetensors", code)[0], images)
    np.testing.assert_array_equal(logits, expected)
    file = deploy.litert().open(folder / "files" / f"{name}.tflite").run(images)
    assert np.mean(file.argmax(-1) == logits.argmax(-1)) > 0.9
    np.testing.assert_allclose(file, logits, rtol=0, atol=0.5 if name == "int8" else 1e-4)


def own(teacher, student):
  return {"models__teacher": teacher, "models__student": student, "preprocess": NORMALISED}


@pytest.mark.parametrize(
  ("teacher", "student"),
  [
    pytest.param(
      {"name": "users_nets:functions", "kwargs": {"hidden": 32}},
      {"name": "zoo.mlp_nnx:MLP", "kwargs": {"features": 36, "widths": (8,), "classes": 4}},
      id="plain to nnx",
    ),
    pytest.param(
      {"name": "zoo.mlp_nnx:MLP", "kwargs": {"features": 36, "widths": (32, 16), "classes": 4}},
      {"name": "users_nets:Net", "kwargs": {"hidden": 8}},
      id="nnx to linen",
      marks=pytest.mark.slow,  # what it adds, a linen student, is that of the main job
    ),
    pytest.param(
      {"name": "zoo.mlp:plain_mlp", "kwargs": {"widths": (32, 16), "classes": 4}},
      {"name": "zoo.mlp:plain_mlp", "kwargs": {"widths": (8,), "classes": 4}},
      id="plain",
      marks=pytest.mark.slow,  # the user's teacher is a plain function, too
    ),
  ],
)
def test_the_main_job_with_models_of_any_kind(tmp_path, users, teacher, student):
  config = jobs.experiment(**own(teacher, student))
  folder = tmp_path / "run"
  rows = check_rows(compress(config, folder), folder, config)
  assert rows["pruned"]["nonzero"] < 0.7 * rows["distilled"]["nonzero"]
  assert rows["int8"]["parity"]["reference/runtime"]["count"] == 0
  check_fresh(folder, config, tmp_path)


@pytest.mark.slow
def test_a_batch_norm_student_is_folded_before_its_grids(tmp_path):
  net = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1,), "widths": (4,), "classes": 4}}
  alone = {"teacher": "", "objective": {"hard_labels": {"weight": 1.0}}}
  pruned = {**jobs.EXPERIMENT["stages"]["pruned"], **alone, "start": ""}
  stages = {"pruned": pruned, "int8": {**jobs.EXPERIMENT["stages"]["int8"], **alone}}
  config = jobs.experiment(models={"student": net}, stages=stages, run=("pruned", "int8"), preprocess=NORMALISED)
  folder = tmp_path / "run"
  rows = check_rows(compress(config, folder), folder, config)
  int8, _ = trained.load(folder / "models" / "int8.safetensors")
  pruned, _ = trained.load(folder / "models" / "pruned.safetensors")
  assert "batch_stats" in pruned.variables and "batch_stats" not in int8.variables
  assert [edit["edit"] for edit in int8.recipe.edits] == [*["fold_batch_norm"] * 3, "quantize"]
  assert rows["int8"]["parity"]["reference/runtime"]["max_steps"] <= 2
  # pruned kernels stay pruned through the fold, and are integer zeros in the file
  stored = constants((folder / "files" / "int8.tflite").read_bytes())
  zeros = sum(int((a == 0).sum()) for a in stored if a.dtype == np.int8 and a.ndim in (2, 4))
  kernels = {k: v for k, v in named_leaves(int8.variables["params"]).items() if k.endswith("kernel")}
  assert zeros >= sum(int((np.asarray(k) == 0).sum()) for k in kernels.values()) > 0
  check_fresh(folder, config, tmp_path, ["int8"])


@pytest.fixture
def torch_like(tmp_path):
  """Weights of the tiny student as another program would have saved them: (out, in), and other names."""
  rng = np.random.default_rng(1)
  arrays = {
    "net.fc1.weight": rng.normal(size=(8, 36)).astype(np.float32),
    "net.fc1.bias": rng.normal(size=8).astype(np.float32),
    "net.fc2.weight": rng.normal(size=(4, 8)).astype(np.float32),
    "net.fc2.bias": rng.normal(size=4).astype(np.float32),
    "step": np.zeros(1, np.float32),
  }
  safetensors.numpy.save_file(arrays, tmp_path / "weights.safetensors")
  key_map = (
    (r"^step$", None),
    (r"weight$", "kernel", (1, 0)),
    (r"^net\.fc1\.", "Dense_0/"),
    (r"^net\.fc2\.", "Dense_1/"),
  )
  return tmp_path / "weights.safetensors", key_map, arrays


def test_pretrained_weights_start_a_stage(tmp_path, torch_like):
  path, key_map, arrays = torch_like
  student = {**jobs.EXPERIMENT["models"]["student"], "weights": str(path), "key_map": key_map}
  stages = {"given": {**jobs.STAGE, "epochs": 0}, "tuned": {**jobs.STAGE, "start": "given"}}
  config = jobs.experiment(models={"student": student}, stages=stages, run=("given", "tuned"))
  rows = compress(config, tmp_path / "run")["rows"]
  tree = load_tree(tmp_path / "run" / "models" / "given.safetensors")[0]["variables"]["params"]
  np.testing.assert_array_equal(tree["Dense_0"]["kernel"], arrays["net.fc1.weight"].T)
  np.testing.assert_array_equal(tree["Dense_1"]["bias"], arrays["net.fc2.bias"])
  test = build.dataset(config).test
  x = test.images.reshape(len(test.images), -1) / np.float32(255)
  hidden = np.maximum(x @ arrays["net.fc1.weight"].T + arrays["net.fc1.bias"], 0)
  logits = hidden @ arrays["net.fc2.weight"].T + arrays["net.fc2.bias"]
  assert rows[0]["file_accuracy"] == np.mean(logits.argmax(-1) == test.labels)
  assert rows[1]["accuracy"] > rows[0]["accuracy"]


def test_a_saved_model_keeps_its_structure(users):
  """Lists in a user's variables are lists again when a file is read."""
  recipe = trained.Recipe("users_nets:functions", {"hidden": 3}, (6, 6, 1), tuple("abcd"), NORMALISED)
  variables = trained.functions(recipe).model.init(jax.random.key(0), trained.example(recipe))
  trained.save(users / "m.safetensors", trained.Trained(recipe, variables), stage="x")
  loaded, more = trained.load(users / "m.safetensors", [recipe.name])
  assert more == {"stage": "x"}
  assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
  assert loaded.recipe == recipe
