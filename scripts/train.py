"""Trains one stage of an experiment, and the missing stages that it starts from or learns from.

    python -m scripts.train --config=configs/digits.py --stage=teacher --workdir=runs/digits

The same command resumes a stopped run; `python -m scripts.compress` with the same workdir runs the other stages.
"""

from absl import flags

from leanax.core.errors import unknown
from leanax.pipeline import lock
from leanax.pipeline.config import flags as program
from leanax.pipeline.config.experiment import Experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the results, such as runs/digits.", required=True)
_STAGE = flags.DEFINE_string("stage", None, "The stage to train, one of the config's 'run'.", required=True)


def main(config: Experiment) -> None:
  if _STAGE.value not in config.run:
    raise unknown("stage", _STAGE.value, config.run)
  with lock.held(_WORKDIR.value):
    train(config)


def train(config: Experiment) -> None:
  from leanax.pipeline.compress import open_run
  from leanax.pipeline.stage import curves, run_with_needs

  context = open_run(config, _WORKDIR.value, export=True)
  run_with_needs(_STAGE.value, context, {})
  last = {name: series[-1][1] for name, series in curves(_STAGE.value, context).items()}
  print(", ".join(f"{name} {value:.4g}" for name, value in last.items()))


if __name__ == "__main__":
  program.run(main)
