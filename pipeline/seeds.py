"""Several seeds of one experiment: each a run in a directory of its own, trained in turn or all at once."""

from pathlib import Path
from typing import Any

import ml_collections

from core.errors import UserError, unknown
from engine import seeds
from pipeline.compress import compress, open_run
from pipeline.stage import Context, run_stages
from pipeline.trained import Trained

WAYS = ("loop", *seeds.WAYS)


def compress_seeds(config: Any, folder: str | Path) -> list[dict[str, Any]]:
  """The whole job of the seeds `config.seed`, `config.seed + 1`, ..., `config.seeds` of them.

  Args:
    config: an experiment; `seeds_over` says whether the seeds are trained one after the other ("loop"), or each stage
      of all of them in the same compiled steps ("vmap", "map").
    folder: the run of a seed is in `folder/seedK`, as if `compress` had been called for it alone.

  Returns:
    What `compress` returns, a seed.
  """
  check(config)
  context = open_run(config, folder)
  runs = [context._replace(config=one, folder=context.folder / f"seed{one.seed}") for one in single(config)]
  for run in runs:
    open_run(run.config, run.folder)
  if config.seeds_over != "loop":
    train_together(runs, config.seeds_over)
  return [compress(run.config, run.folder) for run in runs]


def check(config: Any) -> None:
  """Refuses ways that there are not, or that need one device.

  Raises:
    UserError: names the key.
  """
  if config.seeds_over not in WAYS:
    raise unknown("way in 'seeds_over'", config.seeds_over, WAYS)
  if config.seeds_over != "loop" and config.parallel != "jit":
    raise UserError(
      f"config key 'seeds_over' is {config.seeds_over!r}, which runs on one device; expected 'parallel' to be 'jit', "
      f"got {config.parallel!r}"
    )


def single(config: Any) -> list[ml_collections.ConfigDict]:
  """The experiment of each seed."""
  values = {**config.to_dict(), "seeds": 1, "seeds_over": "loop"}
  return [ml_collections.ConfigDict({**values, "seed": config.seed + k}) for k in range(config.seeds)]


def train_together(runs: list[Context], over: str) -> None:
  """Leaves every stage's model in each run's directory."""
  done: list[dict[str, Trained]] = [{} for _ in runs]
  for name in runs[0].config.run:
    for before, trained in zip(done, run_stages(name, runs, done, over), strict=True):
      before[name] = trained
