"""The teachers of a stage: trained models as one function, or their logits stored beside the examples."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
from leanax import graph
from leanax.engine import data as datasets
from leanax.engine.data import Input
from leanax.engine.store import teacher_cache, teacher_key
from leanax.engine.train.outputs import only
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import FILE, Stage, teacher_names
from leanax.pipeline.recipe import ALL
from leanax.pipeline.trained import Functions, Trained

Teacher = Callable[[Any, jax.Array], jax.Array | kd.Outputs]


class TeacherOutputs(NamedTuple):
  """The teacher outputs that a step reads.

  Attributes:
    teacher: `teacher(variables, x) -> logits or kd.Outputs`, to be run in the step; None where its logits are stored.
    variables: its first argument.
    stored: arrays per example, by the name that they have in a batch.
    spec: how batches are made, what is stored included.
    decode: from a batch's stored arrays to its "teacher_logits", inside jit; None where nothing is stored.
  """

  teacher: Teacher | None
  variables: Any
  stored: Mapping[str, jax.Array]
  spec: Input
  decode: Callable[[Mapping[str, jax.Array]], jax.Array | kd.Outputs] | None = None


def sources(stage: Stage, done: Mapping[str, Trained], code: Collection[str] = ()) -> list[Trained]:
  """Returns the trained models that a stage learns from; none without a teacher, or where it is its own or trains it.

  Args:
    stage: the stage's config.
    done: the models of earlier stages.
    code: the import paths that files may name (`experiment.model_code`).
  """
  return [models.load(name, code)[0] if name.endswith(FILE) else done[name] for name in teacher_names(stage)]


def function(stage: Stage, teachers: Sequence[Trained], objective: kd.Weighted) -> Teacher | None:
  """Returns a stage's teachers as one function of their trees; None where it has none, or is its own teacher.

  Args:
    stage: the stage's config.
    teachers: `sources` of it.
    objective: what the student minimises; its taps and outputs of the teacher are given too.
  """
  if not teachers:
    return None
  parts = [models.functions(one.recipe) for one in teachers]
  return together([member(part, stage, objective.teacher, bool(further(objective))) for part in parts], stage)


def is_stored(stage: Stage, spec: Input, objective: kd.Weighted, teachers: Sequence[Trained]) -> bool:
  """Returns whether teachers' logits are stored beside the examples: they can be, and the config asks for it.

  Logits of positions, such as those of an image's pixels, would take more space than the images.
  """
  endless = spec.augment.views is None and not spec.augment.is_still
  more = objective.teacher or further(objective)
  if more or endless or not stage.cache_teacher or stage.teacher_mode != "eval":
    return False
  return all(has_rows(one) for one in teachers)


def has_rows(teacher: Trained) -> bool:
  """Returns whether a model has one output, a row of logits for each example."""
  return len(getattr(models.outputs_of(teacher), "shape", ())) == 2


def called(name: str, stage: Stage) -> str:
  """Returns the name of a stage's teacher in error messages."""
  if stage.peers > 1:
    return f"the peers of stage {name!r}"
  return f"the teacher of stage {name!r}, {stage.teacher!r},"


def further(objective: kd.Weighted) -> list[str]:
  """Returns the teacher's outputs that losses read besides its logits."""
  read = {term.output for term in objective.terms if term.loss.needs_teacher}
  return sorted(read - {objective.output, ""})


def make(
  stage: Stage,
  teachers: Sequence[Trained],
  arrays: Mapping[str, jax.Array],
  spec: Input,
  objective: kd.Weighted,
  folder: Path,
) -> TeacherOutputs:
  """Stores the logits of a stage's teachers where that is possible and wanted, else gives them as one function.

  Args:
    stage: its config.
    teachers: `sources` of it; none for no teacher.
    arrays: its training examples on the device.
    spec: how batches are made.
    objective: what it minimises; activations and further outputs of the teacher are computed in the step.
    folder: where logits are stored, each set in its own folder; an existing one is used.
  """
  if not teachers:
    return TeacherOutputs(None, None, {}, spec)
  if not is_stored(stage, spec, objective, teachers):
    trees = [one.variables for one in teachers]
    return TeacherOutputs(function(stage, teachers, objective), trees, {}, spec)
  each = [member(models.functions(one.recipe), stage, ()) for one in teachers]
  stored = [
    _store(stage, [each[k] for k in group], [teachers[k] for k in group], arrays, spec, folder)
    for group in _groups(stage, len(each))
  ]
  if len(stored) == 1:
    logit_arrays, decode = dict(stored[0].arrays), stored[0].decode
  else:
    logit_arrays = {f"{k}/{name}": array for k, one in enumerate(stored) for name, array in one.arrays.items()}

    def decode(batch: Mapping[str, jax.Array]) -> jax.Array | kd.Outputs:
      of = [{name: batch[f"{k}/{name}"] for name in one.arrays} for k, one in enumerate(stored)]
      return combined([one.decode(entry) for one, entry in zip(stored, of, strict=True)], stage)

  per_view = tuple(logit_arrays) if stored[0].per_view else ()
  spec = dataclasses.replace(spec, per_view=(*spec.per_view, *per_view))
  return TeacherOutputs(None, None, jax.device_put(logit_arrays), spec, decode)


def _groups(stage: Stage, teachers: int) -> list[list[int]]:
  """Returns the teachers whose logits are stored as one.

  A mean of probabilities depends on the temperature that it is read at, so that each teacher's logits are kept.
  """
  every = list(range(teachers))
  return [every] if stage.ensemble == "logits" else [[index] for index in every]


def _store(
  stage: Stage,
  each: Sequence[Teacher],
  teachers: Sequence[Trained],
  arrays: Mapping[str, jax.Array],
  spec: Input,
  folder: Path,
) -> teacher_cache.Cache:
  """Returns the stored logits of one teacher, or the mean of several's; arguments as of `make`."""
  trees, teacher = [one.variables for one in teachers], together(each, stage)
  identity = [[one.recipe._asdict() for one in teachers], stage.ensemble, list(stage.teacher_classes)]
  classes = jax.eval_shape(teacher, trees, models.example(teachers[0].recipe)).shape[-1]
  named = teacher_key.teacher_hash(trees, identity), arrays, spec, classes, stage.cache_form, stage.cache_top_k or None
  key = teacher_key.key_of(*named)

  @jax.jit
  def run(trees: Any, arrays: Mapping[str, jax.Array], rows: jax.Array, view: jax.Array) -> Any:
    return teacher(trees, datasets.examples_at(arrays, rows, view, spec)["image"])

  def logits_of(rows: np.ndarray, view: int) -> Any:
    return run(trees, arrays, rows, np.int32(view))

  mix_of = teacher_cache.mixing(arrays, spec)
  # In batches of the student's size: a matrix product may round differently at another size.
  options = {"mix_of": mix_of, "batch": spec.batch_size, "teacher": f"the teacher {stage.teacher!r}"}
  return teacher_cache.build(folder / key.name, key, logits_of, **options)


def member(parts: Functions, stage: Stage, taps: Sequence[str], all_outputs: bool = False) -> Teacher:
  """Returns one teacher's function of its variables and preprocessed images.

  It gives the logits, or all outputs of a teacher that has several; with activations where some are named.
  """

  def teacher(variables: Any, x: jax.Array) -> jax.Array | kd.Outputs:
    plain, *grids = models.trees(variables)  # closed over: an activation is named by the parameters that made it

    def fn(variables: Any, x: jax.Array) -> jax.Array:
      if stage.teacher_mode == "train":
        found = parts.net.apply(variables, x, train=True)[0]
        whole = all_outputs or parts.output == ALL
        return found if whole else only(found, parts.output, "the teacher")
      whole = models.joined(variables, *grids)
      return models.outputs(parts, whole, x) if all_outputs else parts.logits(whole, x)

    if not taps:
      return fn(plain, x)
    return kd.Outputs(*graph.taps(fn, taps)(plain, x))

  return teacher


def of_the_student(logits: Any, stage: Stage) -> Any:
  """Returns a teacher's logits of the student's classes."""
  return logits[..., np.asarray(stage.teacher_classes)] if stage.teacher_classes else logits


def together(members: Sequence[Teacher], stage: Stage) -> Teacher:
  """Returns several teachers as one: `combined` of their logits; of the activations, the first teacher's count."""

  def teacher(trees: Any, x: jax.Array) -> jax.Array | kd.Outputs:
    outputs = [one(tree, x) for one, tree in zip(members, trees, strict=True)]
    each = [one.logits if isinstance(one, kd.Outputs) else one for one in outputs]
    found = combined([of_the_student(logits, stage) for logits in each], stage)
    if not isinstance(outputs[0], kd.Outputs):
      return found
    return found._replace(taps=outputs[0].taps) if isinstance(found, kd.Outputs) else outputs[0]._replace(logits=found)

  return teacher


def combined(found: Sequence[Any], stage: Stage) -> jax.Array | kd.Outputs:
  """Returns what a stage learns from: its only teacher's logits, their mean, or all of them for mean probabilities.

  The probabilities are averaged at the temperature of the loss that reads them (`kd.teacher_at`).

  Args:
    found: (batch, classes) logits of the student's classes, one per teacher.
    stage: its config.
  """
  if len(found) == 1:
    return found[0]
  if stage.ensemble == "logits":
    return sum(found[1:], found[0]) / len(found)
  outputs = kd.Outputs(found[0], members=jnp.stack([jnp.asarray(one) for one in found], 1))
  return outputs._replace(logits=kd.teacher_at(outputs, 1.0))


def logits_as_one(each: Sequence[Any], stage: Stage) -> np.ndarray:
  """Returns the logits of a stage's teachers as one, (batch, classes of the student), at temperature 1.

  Args:
    each: the logits of each teacher, of its own classes.
    stage: its config.
  """
  found = combined([of_the_student(logits, stage) for logits in each], stage)
  return np.asarray(found.logits if isinstance(found, kd.Outputs) else found)
