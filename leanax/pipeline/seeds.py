"""Several seeds of one experiment: each is a run in its own directory, trained in turn or all at once."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from leanax.core import files
from leanax.pipeline import run_times, workdir
from leanax.pipeline.compress import compress, open_run
from leanax.pipeline.config.experiment import Experiment
from leanax.pipeline.job import Context, model_file
from leanax.pipeline.report import joint, joint_pages
from leanax.pipeline.stage import run_stages
from leanax.pipeline.trained import Trained


def compress_seeds(config: Experiment, folder: str | Path) -> list[dict[str, Any]]:
  """Runs the whole job for the seeds `config.seed`, `config.seed + 1`, ..., `config.seeds` of them.

  Args:
    config: an experiment.
    folder: the run of seed K is in `folder/seedK`, the same as by `compress` for that seed.

  Returns:
    What `compress` returns, per seed. Their joint report (`report.joint`) is written into `folder`.
  """
  start, folder = time.perf_counter(), Path(folder)
  files_of = [model_file(folder / f"seed{one.seed}", name) for one in single(config) for name in config.run]
  finished = all(path.is_file() for path in files_of)
  results = [compress(run.config, run.folder) for run, _ in train_seeds(config, folder, export=True)]
  if not finished:
    run_times.note(folder, "all seeds", time.perf_counter() - start)
  if len(results) > 1:
    found = joint.joint(results) | {"run": run_times.read(folder)}
    files.write(folder / "result.json", json.dumps(found, indent=1) + "\n")
    files.write(folder / "report.html", joint_pages.render(found))
    files.write(folder / "report.md", joint_pages.markdown(found))
  return results


def train_seeds(
  config: Experiment, folder: str | Path, export: bool = False
) -> list[tuple[Context, dict[str, Trained]]]:
  """Trains all stages of all seeds, without exporting anything.

  Args:
    config: an experiment; `seeds_over` says whether the seeds are trained one after the other ("loop"), or each stage
      of all of them in the same compiled steps ("vmap", "map"). The stages in `shared` are trained with the first seed,
      and are the same for all.
    folder: where the runs go; finished stages are read from it.
    export: whether their files are prepared too, which refuses what cannot be exported.

  Returns:
    Each seed's run, and the models of its stages.
  """
  context = open_run(config, folder, export)
  runs = [context._replace(config=one, folder=context.folder / f"seed{one.seed}") for one in single(config)]
  for run in runs:  # the stages are prepared once: nothing that depends on the seed is
    workdir.claim(run.folder, run.config)
  done: list[dict[str, Trained]] = [{} for _ in runs]
  for name in config.run:
    if name in config.shared:
      run_stages(name, runs[:1], done[:1])
      _share(name, runs)
    if config.seeds_over != "loop" and name not in config.shared:
      models = run_stages(name, runs, done, config.seeds_over)
    else:
      models = [run_stages(name, [run], [before])[0] for run, before in zip(runs, done, strict=True)]
    for before, trained in zip(done, models, strict=True):
      before[name] = trained
  return list(zip(runs, done, strict=True))


def _share(name: str, runs: list[Context]) -> None:
  """Gives every run the first one's model of a stage."""
  first, *others = (model_file(run.folder, name) for run in runs)
  for file in others:
    if not file.is_file():
      file.parent.mkdir(parents=True, exist_ok=True)
      files.write(file, first.read_bytes())


def single(config: Experiment) -> list[Experiment]:
  """Returns the experiment of each seed."""
  return [
    dataclasses.replace(config, seeds=1, seeds_over="loop", seed=config.seed + index) for index in range(config.seeds)
  ]
