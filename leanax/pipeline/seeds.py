"""Several seeds of one experiment: each a run in a directory of its own, trained in turn or all at once."""

from pathlib import Path
from typing import Any

import ml_collections

from leanax.core import files
from leanax.core.errors import UserError, unknown
from leanax.engine.train import seeds
from leanax.pipeline.compress import compress, open_run
from leanax.pipeline.stage import Context, model_file, run_stages
from leanax.pipeline.trained import Trained

WAYS = ("loop", *seeds.WAYS)


def compress_seeds(config: Any, folder: str | Path) -> list[dict[str, Any]]:
  """The whole job of the seeds `config.seed`, `config.seed + 1`, ..., `config.seeds` of them.

  Args:
    config: an experiment.
    folder: the run of a seed is in `folder/seedK`, as if `compress` had been called for it alone.

  Returns:
    What `compress` returns, a seed.
  """
  return [compress(run.config, run.folder) for run, _ in train_seeds(config, folder)]


def train_seeds(config: Any, folder: str | Path) -> list[tuple[Context, dict[str, Trained]]]:
  """Trains all stages of all seeds, without exporting anything.

  Args:
    config: an experiment; `seeds_over` says whether the seeds are trained one after the other ("loop"), or each stage
      of all of them in the same compiled steps ("vmap", "map"). The stages in `shared` are trained with the first seed,
      and are the same for all.
    folder: where the runs go; finished stages are read from it.

  Returns:
    Each seed's run, and what its stages left.
  """
  check(config)
  whole = open_run(config, folder)
  runs = [whole._replace(config=one, folder=whole.folder / f"seed{one.seed}") for one in single(config)]
  for run in runs:
    open_run(run.config, run.folder)
  done: list[dict[str, Trained]] = [{} for _ in runs]
  for name in config.run:
    if name in config.shared:
      run_stages(name, runs[:1], done[:1])
      _share(name, runs)
    if config.seeds_over != "loop" and name not in config.shared:
      left = run_stages(name, runs, done, config.seeds_over)
    else:
      left = [run_stages(name, [run], [before])[0] for run, before in zip(runs, done, strict=True)]
    for before, trained in zip(done, left, strict=True):
      before[name] = trained
  return list(zip(runs, done, strict=True))


def _share(name: str, runs: list[Context]) -> None:
  """Gives every run the first one's model of a stage."""
  first, *others = (model_file(run.folder, name) for run in runs)
  for file in others:
    if not file.is_file():
      file.parent.mkdir(parents=True, exist_ok=True)
      files.write(file, first.read_bytes())


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
