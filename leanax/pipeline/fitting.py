"""The training of a prepared stage: from the last checkpoint to the last step, with metrics and checkpoints."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax import engine
from leanax.engine import data as datasets
from leanax.engine.metrics import Metric, measured
from leanax.engine.store import checkpoint, metrics
from leanax.engine.train import progress, seeds
from leanax.engine.train.state import TrainState
from leanax.pipeline import build, diagnosis, patience, saving, stops, teacher_outputs
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Stage
from leanax.pipeline.job import Context, curves, first_step, lines, log_every
from leanax.pipeline.learning import Learning


class Ready(NamedTuple):
  """A stage of one run before its first step.

  Attributes:
    learning: how it is trained.
    state: its first state.
    arrays: the training examples on the device.
    outputs: those of its teachers, and how batches are made.
    teacher: the variables of its first teacher, or None.
    steps: of the stage.
  """

  learning: Learning
  state: TrainState
  arrays: Mapping[str, jax.Array]
  outputs: teacher_outputs.TeacherOutputs
  teacher: Any
  steps: int


def fit(name: str, contexts: Sequence[Context], ready: Sequence[Ready], over: str) -> list[TrainState]:
  """Trains up to the last step from the last checkpoint there is, writing metrics and checkpoints on the way.

  Args:
    name: the stage's.
    contexts: the runs; checkpoints of several lie in the directory that holds theirs.
    ready: the stage of each.
    over: "vmap" or "map" (`engine.train.seeds`) where there are several.

  Returns:
    The last state of each run.
  """
  # What all runs share is taken from the first one; of several, states and teachers are stacked.
  context, first = contexts[0], ready[0]
  learning, steps, state, variables = first.learning, first.steps, first.state, first.outputs.variables
  config, validation, terms = context.config, context.data.validation, learning.objective.terms
  metric = build.metrics(config)[0]
  offset, chosen = first_step(name, context), [each.config.seed for each in contexts]
  stage, most = config.stages[name], config.stages[name].patience
  if over:
    state = seeds.stack([one.state for one in ready])
    variables = seeds.stack([one.outputs.variables for one in ready])
  get_batch = _batches(first.outputs, stage)

  def per_run(state: TrainState) -> list[TrainState]:
    return [seeds.pick(state, index) for index in range(len(contexts))] if over else [state]

  # From the last checkpoint on.
  with contextlib.ExitStack() as opened:
    checkpoints = opened.enter_context(_checkpoints(name, context, over))
    state, saved = _restored(checkpoints, state)
    resumed = int(state.step)
    made = learning, state, get_batch, _examples(first), variables, chosen, config.parallel
    opened.enter_context(diagnosis.naming(diagnosis.Training(*made), checkpoints))
    bar = opened.enter_context(progress.Progress(steps, start=resumed, label=_label(name, contexts)))
    written = saving.lines(saved) or [lines(name, each) if resumed else [] for each in contexts]
    writers = [
      opened.enter_context(metrics.Writer(each.folder, after=resumed, part=name, first=offset, lines=kept))
      for each, kept in zip(contexts, written, strict=True)
    ]
    every = log_every(config, steps)
    saver = saving.Saving(checkpoints, saved, line=every, steps=steps, lines=lambda: [one.lines for one in writers])
    norms = engine.term_norms(learning.norm, learning.objective, get_batch, mode="jit" if over else config.parallel)
    seen = curves(name, context).get(patience.key(metric), []) if most and resumed else []

    # What is written: means since the last line, accuracies of what would be kept now, norms of the terms' gradients.
    def log(step: int, state: TrainState, history: dict[str, np.ndarray]) -> bool:
      if step <= resumed + every:
        bar.doing("compiling the evaluation")
      whole = saver.whole(history)
      for index, (writer, own, one) in enumerate(zip(writers, per_run(state), ready, strict=True)):
        values = _means({key: series[index] if over else series for key, series in whole.items()})
        values |= _validated(one, own, values, validation, metric)
        if len(terms) > 1 and config.gradient_norms:
          values |= norms(step - 1, own, _examples(one), one.outputs.variables, seed=chosen[index])
        writer.write(step, {key: value for key, value in values.items() if key != "accuracy"})
        if index == 0:
          bar.update(step, _shown(values))
          seen.append((step, values.get(patience.key(metric), patience.WORST[metric.better])))
      if most and step < steps and patience.best(seen, metric) == len(seen) - 1:
        saver.save(step, state, {}, {patience.key(metric): seen[-1][1]})
      return patience.is_over(seen, most, metric)

    hooks = [engine.Hook(every, log), saver.hook(config.checkpoint_every)]
    shared: Any = {"hooks": hooks, "tick": bar.update, "steps_per_call": config.steps_per_call or None}
    shared["steps"] = resumed if patience.is_over(seen, most, metric) else steps
    shared |= {"teacher_name": teacher_outputs.called(name, stage), "teacher_variables": variables}
    # The steps themselves; none where it was stopped after it had ended early.
    with stops.held():
      if over:
        data, own = _apart([_examples(one) for one in ready])
        state, _ = seeds.fit(learning.step, state, get_batch, data, own=own, seeds=chosen, over=over, **shared)
      else:
        shared |= {"seed": chosen[0], "mode": config.parallel}
        state, _ = engine.fit(learning.step, state, get_batch, _examples(first), **shared)
      saver.stop(state, name)
    if most and seen:
      state = _best(state, seen, metric, checkpoints)
      print(f"stage {name!r}: {patience.sentence(patience.ended(seen, steps, metric))}", file=sys.stderr)
  return per_run(state)


def _restored(checkpoints: checkpoint.Checkpoints, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
  """Returns the state of the last checkpoint and what was saved beside it; the given one and {} where there is none."""
  if checkpoints.latest() is None:
    return state, {}
  found = checkpoints.restore(state)
  return found.state, found.extra


def _best(state: TrainState, seen: patience.Curve, metric: Metric, checkpoints: checkpoint.Checkpoints) -> TrainState:
  """Returns the state of the best evaluation: the last one, or that of its checkpoint."""
  step, _ = seen[patience.best(seen, metric)]
  return state if int(state.step) == step else checkpoints.restore(state, step).state


def place_curves(name: str, context: Context, kept: metrics.Lines | None) -> None:
  """Makes a finished stage's lines of metrics.jsonl, and its event file, what they were when its model was saved.

  They go to where the stage stands in the run now, after a change of others.

  Args:
    name: the stage's.
    context: the run.
    kept: the lines that were saved with the model; None of one from before they were.
  """
  if steps := context.jobs[name].steps:
    place = (first_step(name, context), log_every(context.config, steps), context.config.stages)
    metrics.restore(context.folder, kept, name, *place)


def refuse_old_curves(name: str, context: Context, over: str) -> None:
  """Refuses a finished stage whose curves and checkpoints count each of an update's batches as a step."""
  if context.config.stages[name].optimizer.accumulate > 1 and _folder(name, context, over).is_dir():
    _checkpoints(name, context, over, read_only=True).close()


def _label(name: str, contexts: Sequence[Context]) -> str:
  """Returns the label of a stage's progress: its place in the run, and the seeds where there are several."""
  run = contexts[0].config.run
  several = contexts[0].shared != contexts[0].folder
  seeds = [f"seed {', '.join(str(each.config.seed) for each in contexts)}"] if several else []
  return ", ".join([*seeds, f"stage {run.index(name) + 1} of {len(run)}", name])


def _shown(values: Mapping[str, float]) -> dict[str, float]:
  """Returns the numbers that are shown beside the steps: those of the validation split, and the loss."""
  first = {key.replace("_", " "): value for key, value in values.items() if key.startswith("validation_")}
  return {**first, "loss": values["loss"]}


def _folder(name: str, context: Context, over: str) -> Path:
  return (context.folder.parent if over else context.folder) / "checkpoints" / name


def _checkpoints(name: str, context: Context, over: str, read_only: bool = False) -> checkpoint.Checkpoints:
  """Opens a stage's checkpoints; those from when each of an update's batches was a step are refused."""
  count = context.config.stages[name].optimizer.accumulate
  written = {"stage": name} | ({"batches per step": count} if count > 1 else {})
  metric, folder = build.metrics(context.config)[0], _folder(name, context, over)
  best: dict[str, Any] = {"mode": "max" if metric.better == "higher" else "min"}
  best |= {"best": patience.key(metric)} if context.config.stages[name].patience else {}
  return checkpoint.Checkpoints(folder, keep=context.config.keep, config=written, read_only=read_only, **best)


def _batches(outputs: teacher_outputs.TeacherOutputs, stage: Stage) -> Callable[..., Any]:
  """Returns the batches as a function of the run's seed and the step, with what is stored of the teacher."""
  spec = outputs.spec

  def get_batch(data: Any, step: Any, *, seed: Any, part: Any) -> Any:
    augment = dataclasses.replace(spec.augment, seed=seed) if stage.augment.seed < 0 else spec.augment
    batch = datasets.train_batch_at(data, step, dataclasses.replace(spec, seed=seed, augment=augment), part)
    return {**batch, "teacher_logits": outputs.decode(batch)} if outputs.decode else batch

  return get_batch


def _means(history: Mapping[str, np.ndarray]) -> dict[str, float]:
  return {key: float(series.mean()) for key, series in history.items()}


def _validated(
  ready: Ready, state: TrainState, means: Mapping[str, float], validation: datasets.Split, metric: Metric
) -> dict[str, float]:
  """Returns the accuracy of training, and the metric of what would be kept of a state now."""
  found, learning = {}, ready.learning
  outputs = models.predict(learning.kept(state, ready.teacher), validation.images)
  # With a new head "accuracy" is that of the student's own classifier, which is not what is trained.
  if learning.head is None and "accuracy" in means:
    found["train_accuracy"] = means["accuracy"]
  if not any(np.isnan(x).any() for x in jax.tree.leaves(outputs)):  # else the next step is refused by its number
    value = measured(metric, outputs, validation.labels)
    found |= {patience.key(metric): value} if np.isfinite(value) else {}
  return found


def _examples(ready: Ready) -> dict[str, jax.Array]:
  """Returns a run's training examples, with the stored logits of its teachers."""
  return {**ready.arrays, **ready.outputs.stored}


def _equal(one: Any, other: Any) -> bool:
  """Returns whether two arrays are the same, or two mappings of arrays."""
  return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def _apart(runs: Sequence[Mapping[str, jax.Array]]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """(arrays that are the same in all runs, held once; the others, with the runs as leading axis)."""
  first = runs[0]
  same = {name for name in first if all(_equal(first[name], one[name]) for one in runs[1:])}
  data = {name: first[name] for name in first if name in same}
  return data, seeds.stack([{name: one[name] for name in one if name not in same} for one in runs])
