"""A stage's model as a packed file: it is read as the stage's own file is, and computes the same bits."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.engine.data import Input, Preprocess
from leanax.pipeline import calibrate, evaluate, trained, workdir
from leanax.pipeline.config.experiment import Quant
from tests.graph.models import normal
from tests.integration import jobs

RECIPE = trained.Recipe(
  "zoo.mlp:MLP", {"widths": (6,), "classes": 3}, (4, 4, 1), ("a", "b", "c"), {"scale": 1.0, "mean": (0.3,), "std": (2,)}
)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def models():
  variables = trained.functions(RECIPE).model.init(jax.random.key(0), trained.example(RECIPE))
  plain = trained.Trained(RECIPE, variables)
  batches, spec = [normal(1, 4, 4, 4, 1)], Input(4, 0, Preprocess(**RECIPE.preprocess))
  return {"float": plain, "int8": calibrate.calibrated(Quant((("*", "w8a8 learned"),)), plain, batches, spec)}


@pytest.mark.parametrize("which", ["float", "int8"])
def test_a_packed_model_computes_the_same_bits(models, which, tmp_path):
  model, path = models[which], tmp_path / "m.packed"
  content = trained.pack(model, stage=which)
  path.write_bytes(content)
  loaded, more = trained.load(path)
  assert more == {"stage": which} and loaded.recipe == model.recipe
  np.testing.assert_array_equal(trained.predict(loaded, IMAGES), trained.predict(model, IMAGES))
  assert trained.pack(loaded, stage=which) == content
  assert set(deploy.unpack(content).grids) == ({"Dense_0/kernel", "Dense_1/kernel"} if which == "int8" else set())


def test_packed_files_without_a_model_or_of_unknown_code_are_refused(models, tmp_path):
  path = tmp_path / "m.packed"
  for tree in ({}, []):
    path.write_bytes(deploy.pack(tree))
    with pytest.raises(UserError, match="holds arrays but no model"):
      trained.load(path)
  named = {**RECIPE._asdict(), "name": "os:system"}
  path.write_bytes(deploy.pack(models["float"].variables, metadata={"recipe": named}))
  with pytest.raises(UserError, match="os:system"):
    trained.load(path)
  path.write_bytes(deploy.pack({"params": {}}, metadata={"recipe": RECIPE._asdict()}))
  with pytest.raises(UserError, match=r"m\.packed"):
    trained.load(path)


@pytest.mark.slow
def test_the_program_writes_packed_and_stablehlo_files(models, tmp_path):
  workdir.claim(tmp_path, jobs.experiment())
  (tmp_path / "models").mkdir()
  trained.save(tmp_path / "models" / "teacher.safetensors", models["int8"])
  for name in ("packed", "stablehlo"):
    out = tmp_path / f"x.{name}"
    command = [sys.executable, "-m", "scripts.export", f"--workdir={tmp_path}", f"--out={out}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert f"{out}: stage teacher, {name}, {out.stat().st_size:,} bytes" in done.stdout
  assert evaluate.load(tmp_path, tmp_path / "x.packed").recipe == models["int8"].recipe
  file = deploy.open_file(out)
  np.testing.assert_array_equal(file.run(file.preprocessing.apply(IMAGES)), file.run(IMAGES))
  wrong = subprocess.run([*command, "--input=uint8"], cwd=Path(__file__).parents[2], capture_output=True, check=False)
  assert wrong.returncode == 2 and b"takes floats" in wrong.stderr
