"""Command lines, run as a user runs them: the sentence, the exit status, and that jax was not even imported."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from leanax.pipeline.config import described, flags
from leanax.pipeline.config.experiment import Data, Model, Optimizer, Stage

ROOT = pathlib.Path(__file__).resolve().parents[3]

PROGRAM = '''"""Compresses a model."""
import sys
from absl import flags as absl_flags
from leanax.core.errors import UserError
from leanax.pipeline.config import described, flags
from leanax.pipeline.config.experiment import Data, Model, Optimizer, Stage

_WORKDIR = absl_flags.DEFINE_string("workdir", None, "Where results go.", required=True)

def main(config):
  assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "numpy", "flax")], "heavy imports"
  if config.seed == 13:
    raise UserError("thirteen is not a seed")
  if config.seed == 14:
    raise ValueError("a bug of ours")
  stage = config.stages["train"]
  print("ran", config.name, config.seed, stage.optimizer.learning_rate, stage.optimizer.nesterov, _WORKDIR.value)

if __name__ == "__main__":
  flags.run(main)
'''

CONFIG = """
import ml_collections

def get_config(name="full"):
  stage = {"model": "net", "optimizer": {"name": "sgd", "learning_rate": 0.1}}
  return ml_collections.ConfigDict(
    {"name": name, "models": {"net": {"name": "zoo.lenet:LeNet5"}}, "stages": {"train": stage}, "run": ("train",)})
"""


@pytest.fixture
def run(tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  (tmp_path / "experiment.py").write_text(CONFIG)

  def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      [sys.executable, "program.py", *arguments],
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )

  return call


GOOD = ("--config=experiment.py", "--workdir=w")


@pytest.mark.parametrize(
  ("arguments", "output"),
  [
    (GOOD, "ran full 0 0.1 False w"),
    ((*GOOD, "--config.seed=3", "--config.stages.train.optimizer.learning_rate", "0.5"), "ran full 3 0.5 False w"),
    (("--config.seed=4", *GOOD, "--config.stages.train.optimizer.nesterov=yes"), "ran full 4 0.1 True w"),
    (
      (
        "--config",
        "experiment.py:smoke",
        "--workdir",
        "w",
        "--config.stages.train.optimizer.nesterov",
        "--config.seed=1",
      ),
      "ran smoke 1 0.1 True w",
    ),
  ],
)
def test_a_right_line_runs(run, arguments, output):
  result = run(*arguments)
  assert (result.returncode, result.stdout.strip(), result.stderr) == (0, output, "")


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((*GOOD, "--config.sed=3"), "unknown config key 'sed'; did you mean 'seed'"),
    (
      (*GOOD, "--config.stages.train.optimizer.momentm=3"),
      "unknown config key 'stages.train.optimizer.momentm'; did you mean 'stages.train.optimizer.momentum'",
    ),
    ((*GOOD, "--config.seed=abc"), "config key 'seed' expects an int, got 'abc'"),
    (
      (*GOOD, "--config.stages.train.optimizer.learning_rate=nan"),
      "config key 'stages.train.optimizer.learning_rate' expects a finite number, got 'nan'",
    ),
    ((*GOOD, "stray"), "unexpected word 'stray'; options are written --name=value"),
    ((*GOOD, "--wrkdir=x"), "unknown flag '--wrkdir'; did you mean '--workdir'?"),
    ((*GOOD, "--config=experiment.py"), "--config is given twice"),
    (("--config=experiment.py",), "--workdir is missing: Where results go."),
    (("--workdir=w",), "--config is missing: Path of the experiment's config, as in configs/digits.py."),
    (("--config=experimnt.py", "--workdir=w"), "unknown config file 'experimnt.py'; did you mean 'experiment.py'"),
    (("--config=x/y.py", "--workdir=w"), "config file 'x/y.py' does not exist"),
    ((*GOOD, "--config.run=trian"), "unknown stage in 'run' 'trian'; did you mean 'train'?"),
    ((*GOOD, "--config.seed=13"), "thirteen is not a seed"),
  ],
)
def test_a_mistake_is_one_sentence_and_status_2(run, arguments, sentence):
  result = run(*arguments)
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith(f"error: {sentence}")
  assert len(result.stderr.splitlines()) == 1


def test_a_bug_of_leanax_keeps_its_traceback(run):
  result = run(*GOOD, "--config.seed=14")
  assert result.returncode == 1
  assert "Traceback" in result.stderr


def test_help_exits_0_and_shows_the_keys(run):
  plain, full = run("--help"), run("--config=experiment.py", "--help")
  assert plain.returncode == full.returncode == 0
  assert plain.stdout.startswith("Compresses a model.\n\nFlags:")
  assert '  momentum: float = 0.9                 of "sgd" and "dot"; a number from 0 to below 1\n' in plain.stdout
  assert max(map(len, plain.stdout.splitlines())) <= described.WIDTH
  assert "--workdir: Where results go." in plain.stdout
  assert "stages.train.optimizer.learning_rate = 0.1" in full.stdout


def test_split_takes_overrides_from_anywhere():
  line = flags.split(["prog", "--config.a=1", "--x", "-config.b.c", "2", "--config=f", "--config.d"])
  assert line == flags.Line([("a", "1"), ("b.c", "2"), ("d", "true")], ["prog", "--x", "--config=f"])


def test_a_reader_that_stops_early_is_no_error(tmp_path, run):
  run("--help")  # the files are there
  line = f"{sys.executable} program.py --help | true; echo ${{PIPESTATUS[0]}}"
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert (result.stdout, result.stderr) == ("0\n", "")


def test_every_key_is_described_in_its_group():
  """A reader finds the type, the default and the words of each key under the key of its group."""
  lines = described.text().splitlines()
  assert max(map(len, lines)) <= described.WIDTH
  heads = {line.split(": ")[0]: number for number, line in enumerate(lines) if line and not line.startswith(" ")}
  groups = {"data": Data, "models.NAME": Model, "stages.NAME": Stage, "stages.NAME.optimizer": Optimizer}
  for where, group in groups.items():
    own = lines[heads[where] : lines.index("", heads[where])] if "" in lines[heads[where] :] else lines[heads[where] :]
    rows = [line for line in own if line.startswith("  ") and line[2] not in " " and ": " in line]
    keys = [line.split(":")[0].strip() for line in rows]
    expected = [field.name for field in dataclasses.fields(group) if not dataclasses.is_dataclass(field.default)]
    assert keys == expected
  text = " ".join(" ".join(lines).split())
  assert "warmup_steps: int = 0 a whole number, 0 or more" in text
  assert "from: str = '' the stage whose model it is cut out of; \"\" for none" in text
  assert "way: str = 'width' the leading channels, or whole blocks; one of 'width', 'layers'" in text
  assert "The way in which a step is spread over all local devices; one of 'jit', 'pmap'" in text
  assert "objective: group = {'hard_labels': {'weight': 1.0}} {a loss of kd:" in text


SOURCE = '''
class Group:
  """A group."""

  a: int = 1  # of "a", it's here
  b: str = "#"
  # Above c,
  # in two lines.
  c: float = f(
    2,  # and inside
  )  # and behind
  other = 3  # no field
'''


def test_comments_are_read_where_they_stand():
  assert described.comments(SOURCE) == {
    ("Group", "a"): 'of "a", it\'s here',
    ("Group", "b"): "",
    ("Group", "c"): "Above c, in two lines. and inside and behind",
  }
