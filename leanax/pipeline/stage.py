"""One stage of an experiment: from what earlier stages left to a trained model, resumable at any step."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import quant
from leanax import engine
from leanax.core import keys
from leanax.core.errors import unknown
from leanax.engine import data as rooms
from leanax.engine.data import Dataset, Input, batches
from leanax.engine.store import checkpoint, metrics
from leanax.engine.train import forward, progress, seeds
from leanax.engine.train.state import TrainState
from leanax.pipeline import build, cutting, learning, schema, teaching, together
from leanax.pipeline import trained as models
from leanax.pipeline.learning import Learning
from leanax.pipeline.trained import Functions, Recipe, Trained


class Context(NamedTuple):
  """What all stages of a run share: the experiment, its directory and its data.

  Attributes:
    config: the experiment.
    folder: the run's directory.
    data: its data.
    shared: where what runs of several seeds may share is kept.
  """

  config: Any
  folder: Path
  data: Dataset
  shared: Path


def run_stage(name: str, context: Context, done: Mapping[str, Trained]) -> Trained:
  """Trains a stage, or goes on where it stopped, or reads what it left.

  Args:
    name: a key of the experiment's stages.
    context: the run.
    done: what earlier stages left.
  """
  return run_stages(name, [context], [done])[0]


def run_stages(
  name: str, contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str = ""
) -> list[Trained]:
  """`run_stage` of several runs that differ in their seeds only, trained together.

  Args:
    name: a key of the experiments' stages.
    contexts: the runs; checkpoints of several lie in the directory that holds theirs.
    done: what earlier stages left, a run.
    over: "vmap" or "map" (`engine.train.seeds`) where there are several.
  """
  paths = [model_file(context.folder, name) for context in contexts]
  if all(path.is_file() for path in paths):
    if (
      contexts[0].config.stages[name].optimizer.accumulate > 1 and _checkpoint_folder(name, contexts[0], over).is_dir()
    ):
      _checkpoints(name, contexts[0], over, read_only=True).close()  # refuses curves whose steps were batches
    return [models.load(path, schema.model_code(contexts[0].config))[0] for path in paths]
  ready = [_prepare(name, context, before) for context, before in zip(contexts, done, strict=True)]
  left = []
  for path, one, state in zip(paths, ready, _fit(name, contexts, ready, over), strict=True):
    trained = one.learning.left(state)
    models.save(path, jax.device_get(trained), stage=name)
    left.append(trained)
  return left


def model_file(folder: Path, name: str) -> Path:
  """Where a stage leaves its model."""
  return folder / "models" / f"{name}.safetensors"


class _Ready(NamedTuple):
  """A stage before its first step.

  Attributes:
    learning: how it is trained, and its state.
    arrays: the training examples on the device.
    taught: its teacher, and how batches are made.
    steps: of the stage.
  """

  learning: Learning
  arrays: Mapping[str, jax.Array]
  taught: teaching.Teaching
  steps: int


def _prepare(name: str, context: Context, done: Mapping[str, Trained]) -> _Ready:
  stage, data = context.config.stages[name], context.data
  spec = build.inputs(context.config, stage)
  examples = build.examples(context.config, stage, data.train)
  arrays = rooms.device_arrays(examples)
  batches.check(spec, arrays)
  begun = [calibrated(stage, begin(stage, context, done, peer), arrays, spec) for peer in range(stage.peers)]
  trained = begun[0]
  steps = build.steps(stage, len(examples.labels))
  objective = build.objective(name, stage.objective.to_dict(), max(steps, 1), trained.recipe.output)
  half = stage.precision == "bfloat16"
  student = forward.tapped(forward_of(stage, models.functions(trained.recipe, half)), objective.student)
  taught_by = teaching.sources(stage, done, schema.model_code(context.config))
  teaching.check(stage, [one.recipe for one in taught_by], trained.recipe, objective)
  if taught_by:
    same = {other: one for other, one in _untaught(context).items() if one.recipe[:2] == trained.recipe[:2]}
    teaching.warn_of_a_worse_teacher(name, stage, taught_by, same, data.validation)
  place, further = context.shared / "teacher_logits", bool(teaching.further(objective))
  taught = teaching.make(stage, taught_by, arrays, spec, objective.teacher, place, further)
  beside = None
  if (entry := together.described(context.config, stage)) is not None:
    own = begin(entry, context, done)
    apply = forward_of(entry, models.functions(own.recipe, entry.precision == "bfloat16"))
    beside = learning.Beside(stage.teacher, own, apply)
  batched = build.batches(stage, len(examples.labels))
  made = learning.make(name, context.config, begun, student, objective, taught, taught_by, batched, beside)
  return _Ready(made, arrays, taught, steps)


def _untaught(context: Context) -> dict[str, Trained]:
  """What the finished stages without a teacher left."""
  stages, code = context.config.stages, schema.model_code(context.config)
  files = {name: model_file(context.folder, name) for name in context.config.run if not stages[name].teacher}
  return {name: models.load(path, code)[0] for name, path in files.items() if path.is_file()}


def begin(stage: Any, context: Context, done: Mapping[str, Trained], peer: int = 0) -> Trained:
  """The model before the first step: an earlier stage's, one cut out of it, or a fresh one, perhaps pretrained.

  Peers (`engine.train.mutual`) are fresh ones, each with other random numbers.
  """
  if stage.start:
    earlier = done[stage.start]
    return Trained(earlier.recipe._replace(rules=()), earlier.variables, {}, {})
  entry, recipe = context.config.models[stage.model], begin_recipe(stage.model, context.config, context.data.train)
  init = models.functions(recipe).model.init
  variables = jax.jit(init)(keys.step_key(context.config.seed, peer, f"init {stage.model}"), models.example(recipe))
  if entry.weights:
    from leanax.engine.store import pretrained

    variables = pretrained.load(entry.weights, variables, entry.key_map)
  if stage.cut["from"]:
    teacher = done[stage.cut["from"]]
    pick = cutting.picker(stage.cut, teacher, context.data.validation)
    variables = cutting.cut(stage.cut, recipe, variables, teacher, pick)
  return Trained(recipe, variables, {}, {})


def begin_recipe(model: str, config: Any, split: rooms.Split) -> Recipe:
  """The recipe of a model of the experiment, before any stage has changed it."""
  entry = config.models[model]
  about = entry.kwargs.to_dict(), split.images.shape[1:], split.classes, config.preprocess.to_dict()
  return Recipe(entry.name, *about, output=entry.output)


def calibrated(stage: Any, trained: Trained, arrays: Mapping[str, jax.Array], spec: Input) -> Trained:
  """The model with grids from calibration batches, its batch norms folded; itself where the stage trains in float."""
  if not stage.quant.rules:
    return trained
  trained = models.fold(trained)
  recipe = trained.recipe._replace(rules=tuple(map(tuple, stage.quant.rules)), ends=stage.quant.ends)
  quantized = models.functions(recipe).quantized
  assert quantized is not None
  plain = dataclasses.replace(spec, augment=rooms.Augment())
  batch = jax.jit(lambda arrays, step: rooms.train_batch_at(arrays, step, plain)["image"])
  qparams, quant_state = quantized.init(trained.variables, batch(arrays, 0))
  observe = jax.jit(lambda state, variables, x: quantized.observe(state, variables, x)[1])
  for step in range(stage.quant.calibration_batches):
    quant_state = observe(quant_state, trained.variables, batch(arrays, step))
  qparams, quant_state = quantized.freeze(qparams, quant_state, trained.variables)
  return Trained(recipe, trained.variables, qparams, _on_pixels(quantized, qparams, quant_state, trained, spec))


def _on_pixels(quantized: quant.Quantized, qparams: Any, quant_state: Any, trained: Trained, spec: Input) -> Any:
  """The quantizers' state with the grid of the network's input set to that of its pixels (`quant.pixel_grid`)."""
  name = "input"
  if name not in quant_state:
    return quant_state
  bits = quantized.grids(qparams, quant_state, trained.variables, models.example(trained.recipe))[name].bits
  levels = (np.arange(256.0)[:, None] * spec.preprocess.scale - spec.preprocess.mean) / np.array(spec.preprocess.std)
  grid = quant.pixel_grid(levels, bits)
  return {**quant_state, name: {**quant_state[name], "used": {"scale": grid.scale, "zero_point": grid.zero_point}}}


def forward_of(stage: Any, parts: Functions) -> forward.Forward:
  """The student's forward function in training: the model itself, its edited function, or its simulated integers."""
  if parts.quantized is not None:
    simulate = parts.quantized.apply

    def named(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
      logits, quant_state = simulate(*args, **kwargs)
      return models.named(logits, parts), quant_state

    return forward.quantized(named if parts.output else simulate)
  apply = parts.net.apply
  if parts.edited and parts.output:

    def apply(variables: Any, x: jax.Array, **mode: Any) -> tuple[Any, Any]:
      logits, state = parts.net.apply(variables, x, **mode)
      return models.named(logits, parts), state

  return forward.plain(forward.bfloat16(apply) if stage.precision == "bfloat16" else apply)


def _fit(name: str, contexts: Sequence[Context], ready: Sequence[_Ready], over: str) -> list[TrainState]:
  """Trains up to the last step from the last checkpoint there is, writing metrics and checkpoints on the way."""
  context, (learns, _, taught, steps) = contexts[0], ready[0]
  step, state, terms = learns.step, learns.state, learns.objective.terms
  config, validation = context.config, context.data.validation
  offset, chosen = first_step(name, context), [each.config.seed for each in contexts]
  variables, spec = taught.variables, taught.spec
  if over:
    state = seeds.stack([one.learning.state for one in ready])
    variables = seeds.stack([one.taught.variables for one in ready])
  follows = config.stages[name].augment.seed < 0

  def get_batch(data: Any, step: Any, *, seed: Any, part: Any) -> Any:
    augment = dataclasses.replace(spec.augment, seed=seed) if follows else spec.augment
    batch = rooms.train_batch_at(data, step, dataclasses.replace(spec, seed=seed, augment=augment), part)
    return {**batch, "teacher_logits": taught.decode(batch)} if taught.decode else batch

  def of_each(state: TrainState) -> list[TrainState]:
    return [seeds.pick(state, index) for index in range(len(contexts))] if over else [state]

  with contextlib.ExitStack() as opened:
    checkpoints = opened.enter_context(_checkpoints(name, context, over))
    if checkpoints.latest() is not None:
      state = checkpoints.restore(state).state
    begun = int(state.step)
    bar = opened.enter_context(progress.Progress(steps, start=begun, label=name))
    writers = [opened.enter_context(metrics.Writer(each.folder, after=offset + begun, part=name)) for each in contexts]

    norms = engine.term_norms(learns.norm, learns.objective, get_batch, mode="jit" if over else config.parallel)

    def log(step: int, state: TrainState, history: Mapping[str, np.ndarray]) -> None:
      for index, (writer, whole, one) in enumerate(zip(writers, of_each(state), ready, strict=True)):
        logits = models.predict(one.learning.left(whole), validation.images)
        values = {key: float((series[index] if over else series).mean()) for key, series in history.items()}
        accuracy = values.pop("accuracy", None)
        # With a plan it is that of the student's own classifier, which is not what is trained.
        if learns.plan is None and accuracy is not None:
          values["train_accuracy"] = accuracy
        if not np.isnan(logits).any():  # else the next step is not finite, and is refused by its number
          values["validation_accuracy"] = engine.accuracy(logits, validation.labels)
        if len(terms) > 1 and config.gradient_norms:
          values |= norms(step - 1, whole, _examples(one), one.taught.variables, seed=chosen[index])
        writer.write(offset + step, {f"{name}/{key}": value for key, value in values.items()})

    def save(step: int, state: TrainState, _: Any) -> None:
      if step < steps:
        checkpoints.save(step, state)

    # A checkpoint falls on a log line, so that the lines after a resume average the same steps as the unbroken run's.
    every = max(steps // config.evaluations, 1)
    hooks = [engine.Hook(every, log), engine.Hook(every * max(round(config.checkpoint_every / every), 1), save)]
    shared: Any = {"steps": steps, "hooks": hooks, "tick": bar.update, "steps_per_call": config.steps_per_call or None}
    shared["teacher_name"] = teaching.called(name, config.stages[name])
    if over:
      data, own = _apart([_examples(one) for one in ready])
      state, _ = seeds.fit(
        step, state, get_batch, data, own=own, teacher_variables=variables, seeds=chosen, over=over, **shared
      )
    else:
      state, _ = engine.fit(
        step,
        state,
        get_batch,
        _examples(ready[0]),
        seed=chosen[0],
        teacher_variables=variables,
        mode=config.parallel,
        **shared,
      )
  return of_each(state)


def _checkpoint_folder(name: str, context: Context, over: str) -> Path:
  return (context.folder.parent if over else context.folder) / "checkpoints" / name


def _checkpoints(name: str, context: Context, over: str, read_only: bool = False) -> checkpoint.Checkpoints:
  """Opens a stage's checkpoints; those from when each of an update's batches was a step are refused."""
  count = context.config.stages[name].optimizer.accumulate
  about = {"stage": name} | ({"batches per step": count} if count > 1 else {})
  folder = _checkpoint_folder(name, context, over)
  return checkpoint.Checkpoints(folder, keep=context.config.keep, config=about, read_only=read_only)


def _examples(ready: _Ready) -> dict[str, jax.Array]:
  """A run's training examples, with what its teacher said of them where that is stored."""
  return {**ready.arrays, **ready.taught.own}


def _apart(runs: Sequence[Mapping[str, jax.Array]]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """(arrays that are the same in all runs, held once; the others, with the runs as leading axis)."""
  first = runs[0]
  same = {name for name in first if all(np.array_equal(first[name], one[name]) for one in runs[1:])}
  data = {name: first[name] for name in first if name in same}
  return data, seeds.stack([{name: one[name] for name in one if name not in same} for one in runs])


def first_step(name: str, context: Context) -> int:
  """The steps of the stages before this one: where it begins in the run's metrics.jsonl."""
  config, train = context.config, context.data.train
  before = [config.stages[earlier] for earlier in config.run[: config.run.index(name)]]
  return sum(build.steps(stage, len(build.examples(config, stage, train).labels)) for stage in before)


def curves(name: str, context: Context) -> dict[str, list[tuple[int, float]]]:
  """A stage's series from metrics.jsonl, by name: (step of the stage, value)."""
  offset = first_step(name, context)
  found: dict[str, list[tuple[int, float]]] = {}
  for line in metrics.read(context.folder):
    for key, value in line.items():
      if key.startswith(f"{name}/"):
        found.setdefault(key.removeprefix(f"{name}/"), []).append((line["step"] - offset, value))
  return found


def run_with_needs(name: str, context: Context, done: dict[str, Trained]) -> Trained:
  """Runs a stage after those that it starts from or learns from; `done` is filled on the way.

  Raises:
    UserError: the experiment has no such stage.
  """
  if name not in context.config.run:
    raise unknown("stage", name, context.config.run)
  stage = context.config.stages[name]
  for need in schema.needs(stage):
    if need not in done:
      run_with_needs(need, context, done)
  done[name] = run_stage(name, context, done)
  return done[name]
