"""Untrusted files and directories: they are data, and code that they name is not run for that."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store.model_file import save_tree
from leanax.pipeline import evaluate, job, stage, teacher_outputs, trained, workdir
from leanax.pipeline.tables import students
from tests.integration import jobs

PREPROCESS = {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}
CLASSES = tuple(f"class_{i}" for i in range(4))
NET = """
import pathlib
import flax.linen as nn

pathlib.Path(__file__).with_name("imported").touch()


class Net(nn.Module):
  hidden: int = 8

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
    return nn.Dense(4)(x)
"""
ATTACKS = {
  "a command": ("os:system", {"command": "touch {mark}"}),
  "a class that runs one": ("subprocess:Popen", {"args": ("touch", "{mark}")}),
  "a function in Python": ("subprocess:getoutput", {"cmd": "touch {mark}"}),
  "a module on the path": ("net_of_others:Net", {}),
  "what zoo has imported": ("zoo.mlp:jax.numpy", {}),
  "a name of zoo's imports": ("zoo.mlp_nnx:itertools", {}),
  "a class that zoo imports": ("zoo.lenet:nn", {}),
  "zoo as a prefix": ("zoo:os.system", {"command": "touch {mark}"}),
  "zoo's loader": ("zoo.mlp:__loader__", {}),
  "a dotted module": ("zoo.mlp.os:system", {"command": "touch {mark}"}),
  "another package called zoo": ("zoo_of_others:Net", {}),
  "a builtin": ("builtins:eval", {"source": "open('{mark}', 'w')"}),
  "no text": (3, {}),
  "a list": (["os", "system"], {}),
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A directory on the path with a module that leaves a mark when it is imported."""
  folder = tmp_path / "elsewhere"
  folder.mkdir()
  for name in ("net_of_others", "zoo_of_others"):
    (folder / f"{name}.py").write_text(NET)
  monkeypatch.syspath_prepend(str(folder))
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "cache"))
  yield folder
  for name in ("net_of_others", "zoo_of_others"):
    sys.modules.pop(name, None)


def weights(path, name, kwargs, **changes):
  """A file that another program wrote, its checksums sound: variables that fit a dense net of 36, 8 and 4 units."""
  rng = np.random.default_rng(0)
  params = {
    f"Dense_{i}": {"kernel": rng.normal(size=s).astype(np.float32), "bias": np.zeros(s[1], np.float32)}
    for i, s in enumerate(((36, 8), (8, 4)))
  }
  recipe = {"name": name, "kwargs": kwargs, "image": (6, 6, 1), "classes": CLASSES, "preprocess": PREPROCESS}
  recipe |= {"edits": (), "rules": (), "ends": "w8a8", "heads": (), **changes}
  save_tree(path, {"variables": {"params": params}}, {"recipe": recipe})
  return path


def armed(kwargs, mark):
  return json.loads(json.dumps(kwargs).replace("{mark}", str(mark)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_runs_nothing_that_it_names(elsewhere, tmp_path, attack):
  name, kwargs = ATTACKS[attack]
  mark = tmp_path / "ran"
  file = weights(tmp_path / "model.safetensors", name, armed(kwargs, mark))
  with pytest.raises(UserError, match=r"model\.safetensors (holds a model of|is damaged: its model)") as refused:
    trained.load(file)
  assert "\n" not in str(refused.value)
  assert not mark.exists() and not (elsewhere / "imported").exists() and "net_of_others" not in sys.modules


def test_a_file_as_evaluated_and_as_a_teacher(elsewhere, tmp_path):
  mark = tmp_path / "ran"
  file = weights(tmp_path / "model.safetensors", "os:system", {"command": f"touch {mark}"})
  folder = tmp_path / "run"
  context = jobs.opened(folder)
  with pytest.raises(UserError, match=r"'os:system', code that is not run unless you name it"):
    evaluate.evaluate(folder, str(file))
  config = jobs.experiment(run=("teacher", "distilled"), stages__distilled__teacher=str(file))
  with pytest.raises(UserError, match=r"'os:system', code that is not run unless you name it"):
    stage.prepare(config, context.data)
  given = config.stages["distilled"]
  with pytest.raises(UserError, match=r"'os:system', code that is not run unless you name it"):
    teacher_outputs.sources(given, {})
  shutil.copy(file, job.model_file(folder, "teacher").parent.mkdir() or job.model_file(folder, "teacher"))
  for call in (lambda: evaluate.evaluate(folder), lambda: stage.run_stage("teacher", context, {})):
    with pytest.raises(UserError, match=r"'os:system', code that is not run unless you name it"):
      call()
  assert not mark.exists()


def test_code_that_the_user_names_is_read(elsewhere, tmp_path):
  file = weights(tmp_path / "model.safetensors", "net_of_others:Net", {"hidden": 8})
  with pytest.raises(UserError, match=r"pass --model_code=net_of_others:Net, or add it to 'models' in a config"):
    trained.load(file)
  assert not (elsewhere / "imported").exists()
  with pytest.raises(UserError, match="code that is not run unless you name it"):
    trained.load(file, {"net_of_others:Other"})
  with pytest.raises(UserError, match="code that is not run unless you name it"):
    trained.load(file, ["net_of_others"])
  loaded, _ = trained.load(file, ["net_of_others:Net"])
  assert loaded.recipe.kwargs == {"hidden": 8} and (elsewhere / "imported").exists()


def test_a_name_that_is_not_a_text_names_no_code(tmp_path):
  """Whoever passes one import path as `code` and not a collection does not allow its parts."""
  file = weights(tmp_path / "model.safetensors", "net", {})
  with pytest.raises(UserError, match="code that is not run unless you name it"):
    trained.load(file, "net_of_others:Net")


def test_a_models_entry_names_the_code_of_a_teacher_s_file(elsewhere, tmp_path):
  file = weights(tmp_path / "teacher.safetensors", "net_of_others:Net", {"hidden": 8})
  changes = {"run": ("distilled",), "stages__distilled__teacher": str(file)}
  data = jobs.opened(tmp_path / "run").data
  with pytest.raises(UserError, match="code that is not run unless you name it"):
    stage.prepare(jobs.experiment(**changes), data)
  changes |= {"models__theirs": {"name": "net_of_others:Net", "kwargs": {}}, "stages__distilled__epochs": 0}
  spec = jobs.write(tmp_path / "config.py", **changes)  # its stage, its resume and the table of students read the file
  for _ in range(2):
    (row,) = students.students(str(spec), "theirs", 2, tmp_path / "table")["stages"]
    assert len(row["agreement"]) == 2


def test_a_file_of_other_images_or_classes_is_not_scored(tmp_path):
  jobs.opened(tmp_path / "run")
  dense = {"widths": (8,), "classes": 4}
  file = weights(tmp_path / "model.safetensors", "zoo.mlp:MLP", dense)
  assert evaluate.evaluate(tmp_path / "run", str(file))[0][2] == 64
  for changes, sentence in (
    ({"image": (4, 9, 1)}, r"model\.safetensors reads images of \(4, 9, 1\), and 'synthetic/test' has \(6, 6, 1\)"),
    (
      {"classes": CLASSES[::-1]},
      r"of other classes than 'synthetic/test': class 0 is 'class_3' there and 'class_0' here",
    ),
    ({"classes": CLASSES[:3]}, r"class 3 is None there and 'class_3' here"),
  ):
    weights(file, "zoo.mlp:MLP", dense, **changes)
    with pytest.raises(UserError, match=sentence):
      evaluate.evaluate(tmp_path / "run", str(file))


def finished(folder, name="net_of_others:Net"):
  """A run of a user's model whose first stage is finished."""
  changes = {"models": {"student": {"name": name, "kwargs": {}}}, "stages": {"teacher": {}}}
  config = jobs.experiment(run=("teacher",), **changes)
  workdir.claim(folder, config)
  return weights(folder / "models" / "teacher.safetensors", name, {"hidden": 8})


def test_one_s_own_run_needs_no_flag_and_a_copied_one_does(elsewhere, tmp_path, monkeypatch):
  finished(tmp_path / "run")
  assert workdir.is_own(tmp_path / "run")
  (own,) = evaluate.evaluate(tmp_path / "run")
  shutil.move(tmp_path / "run", tmp_path / "moved")
  assert evaluate.evaluate(tmp_path / "moved") == [own]
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "another computer"))
  sys.modules.pop("net_of_others")
  (elsewhere / "imported").unlink()
  with pytest.raises(UserError, match=r"--model_code=net_of_others:Net"):
    evaluate.evaluate(tmp_path / "moved")
  assert not (elsewhere / "imported").exists()
  assert evaluate.evaluate(tmp_path / "moved", code=["net_of_others:Net"]) == [own]
  finished(tmp_path / "moved")  # the user's own config once more
  assert evaluate.evaluate(tmp_path / "moved") == [own]


def test_a_changed_or_foreign_config_of_a_run_names_nothing(elsewhere, tmp_path):
  folder = tmp_path / "run"
  finished(folder)
  given = json.loads((folder / "config.json").read_text())
  given["models"]["other"] = {**given["models"]["student"], "name": "os:system"}
  (folder / "config.json").write_text(json.dumps(given))
  assert not workdir.is_own(folder)
  assert evaluate.model_code(folder) == set()
  (folder / "config.seal").write_bytes(b"\xff\x00")
  assert not workdir.is_own(folder)
  (folder / "config.seal").unlink()
  assert not workdir.is_own(folder)
  for text in ("[]", "3", "null"):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json' is damaged: it holds no JSON object"):
      workdir.saved(folder)


def test_the_key_of_seals_is_the_user_s_alone(tmp_path, monkeypatch):
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "cache"))
  workdir.claim(tmp_path / "a", jobs.experiment())
  key = tmp_path / "cache" / "seal.key"
  assert key.stat().st_mode & 0o077 == 0 and len(key.read_bytes()) == 64
  before = key.read_bytes()
  workdir.claim(tmp_path / "b", jobs.experiment(seed=1))
  assert key.read_bytes() == before and [p.name for p in key.parent.iterdir()] == ["seal.key"]
  shutil.copy(tmp_path / "a" / "config.seal", tmp_path / "b")
  assert workdir.is_own(tmp_path / "a") and not workdir.is_own(tmp_path / "b")
  (tmp_path / "file").touch()
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "file"))  # where no key can be kept
  workdir.claim(tmp_path / "c", jobs.experiment())
  assert not workdir.is_own(tmp_path / "c") and not (tmp_path / "c" / "config.seal").exists()


BROKEN = {
  "kwargs no group": {"kwargs": [1]},
  "an unknown field": {"sources": "os:system"},
  "preprocessing": {"preprocess": {"scale": 1.0, "mean": ["__import__('os')"], "std": [1.0]}},
  "no deviation": {"preprocess": {"scale": 1.0, "mean": [0.0], "std": [0.0]}},
  "an unknown preprocessing": {"preprocess": {"code": "x"}},
  "an image of texts": {"image": ["6", "6", 1]},
  "a negative image": {"image": [-6, 6, 1]},
  "an image of another size": {"image": [6, 7, 1]},
  "classes": {"classes": 4},
  "no list of edits": {"edits": 5},
  "an unknown edit": {"edits": [{"edit": "os.system"}]},
  "an edit without its keys": {"edits": [{"edit": "fold_batch_norm"}]},
  "edits of texts": {"edits": ["rm"]},
  "an observer": {"rules": [["*", {"weights": 8, "activations": 8, "observer": "os:system"}]]},
  "rules of numbers": {"rules": [[1, 2, 3]]},
  "a head": {"heads": [{"name": "h", "tap": "__class__", "size": None, "beside": True, "dropped": [], "shapes": []}]},
  "heads of a dtype": {
    "heads": [{"name": "h", "tap": "Dense_0", "beside": True, "dropped": [], "shapes": [[["a"], [1], "object"]]}]
  },
  "a keyword": {"kwargs": {"parent": 1}},
  "a keyword of a wrong type": {"kwargs": {"widths": ["os", "system"]}},
  "dropout of a text": {"kwargs": {"widths": [8], "dropout": "x"}},
}


@pytest.mark.filterwarnings("ignore")  # a warning alone would be no refusal
@pytest.mark.parametrize("change", BROKEN)
def test_an_invalid_description_is_one_sentence(tmp_path, change):
  changes = {"kwargs": {"widths": (8,), "classes": 4}, **BROKEN[change]}
  kwargs = changes.pop("kwargs")
  file = weights(tmp_path / "model.safetensors", "zoo.mlp:MLP", kwargs, **changes)
  with pytest.raises(UserError, match=r"model\.safetensors") as refused:
    trained.load(file)
  assert "\n" not in str(refused.value)


def test_a_sound_file_from_elsewhere_is_read(tmp_path):
  file = weights(tmp_path / "model.safetensors", "zoo.mlp:MLP", {"widths": (8,), "classes": 4})
  loaded, _ = trained.load(file)
  assert jax.tree.leaves(loaded.variables)[0].shape == (8,)
  file = weights(tmp_path / "narrow.safetensors", "zoo.mlp:MLP", {"widths": (7,), "classes": 4})
  with pytest.raises(UserError, match=r"narrow\.safetensors does not fit its model 'zoo\.mlp:MLP'"):
    trained.load(file)
