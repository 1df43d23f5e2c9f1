"""Who teaches a stage, and how: trained models as one function, or their logits stored beside the examples."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
from leanax import engine, graph
from leanax.core.errors import UserError
from leanax.engine import data as rooms
from leanax.engine.data import Input, Preprocess
from leanax.engine.store import teacher_cache, teacher_key
from leanax.engine.train.outputs import only
from leanax.pipeline import schema
from leanax.pipeline import trained as models
from leanax.pipeline.trained import Functions, Recipe, Trained

Teacher = Callable[[Any, jax.Array], jax.Array | kd.Outputs]


class Teaching(NamedTuple):
  """A stage's teacher.

  Attributes:
    teacher: `teacher(variables, x) -> logits or kd.Outputs`, to be run in the step; None where its logits are stored.
    variables: its first argument.
    own: what is stored, by the name that it has in a batch.
    spec: how batches are made, what is stored included.
    decode: from a batch's part of what is stored to its "teacher_logits", inside jit; None where nothing is stored.
  """

  teacher: Teacher | None
  variables: Any
  own: Mapping[str, jax.Array]
  spec: Input
  decode: Callable[[Mapping[str, jax.Array]], jax.Array | kd.Outputs] | None = None


def names(stage: Any) -> list[str]:
  """The trained stages and files that a stage learns from; none where its teacher is trained in the stage itself."""
  if stage.teacher_mode == schema.TOGETHER:
    return []
  return [name for name in schema.teachers(stage) if name != schema.ITSELF]


def sources(stage: Any, done: Mapping[str, Trained], code: Collection[str] = ()) -> list[Trained]:
  """The models that a stage learns from; none where it has no teacher, or is its own.

  Args:
    stage: the stage's config.
    done: what earlier stages left.
    code: the import paths that files may name (`schema.model_code`).
  """
  return [models.load(name, code)[0] if name.endswith(schema.FILE) else done[name] for name in names(stage)]


def called(name: str, stage: Any) -> str:
  """How errors call the teacher of a stage."""
  if stage.peers > 1:
    return f"the peers of stage {name!r}"
  return f"the teacher of stage {name!r}, {stage.teacher!r},"


def reads_logits(objective: kd.Weighted) -> bool:
  """Whether some loss compares the teacher's logits, and not only its activations."""
  return any(term.loss.needs_teacher and not term.loss.taps.teacher for term in objective.terms)


def further(objective: kd.Weighted) -> list[str]:
  """The outputs that losses read of the teacher beside its logits."""
  read = {term.output for term in objective.terms if term.loss.needs_teacher}
  return sorted(read - {objective.output, ""})


def check(stage: Any, recipes: Sequence[Recipe], student: Recipe, objective: kd.Weighted) -> None:
  """Refuses teachers that see other pixels than their student, or know other classes.

  Args:
    stage: the stage's config.
    recipes: of its teachers.
    student: the student's.
    objective: what the student minimises.

  Raises:
    UserError: says how they differ.
  """
  if read := further(objective):
    if len(recipes) > 1 or stage.peers > 1 or stage.teacher_classes:
      raise UserError(
        f"the objective reads the output {read[0]!r} of a teacher; expected one teacher, and no 'teacher_classes'"
      )
    if recipes and not recipes[0].output:
      raise UserError(
        f"the objective reads the output {read[0]!r} of a teacher, and {names(stage)[0]!r} has one output"
      )
  for name, recipe in zip(names(stage), recipes, strict=True):
    if Preprocess(**recipe.preprocess) != Preprocess(**student.preprocess):
      raise UserError(f"teacher {name!r} was trained with another preprocessing than its student's; expected the same")
    if recipe.image != student.image:
      raise UserError(f"teacher {name!r} reads images of {recipe.image}, and its student of {student.image}")
    if stage.teacher_mode == "train" and (recipe.rules or models.is_folded(recipe)):
      raise UserError(
        f"'teacher_mode' is 'train', and teacher {name!r} is quantized or has folded batch norms, which have no "
        "training mode; expected 'eval'"
      )
    known, wanted = len(recipe.classes), len(student.classes)
    chosen = tuple(stage.teacher_classes)
    if chosen and (len(chosen) != wanted or not all(0 <= number < known for number in chosen)):
      raise UserError(
        f"'teacher_classes' is {chosen}; expected {wanted} numbers from 0 to {known - 1}: teacher {name!r}'s class for "
        "each of the student's"
      )
    if not chosen and known != wanted and reads_logits(objective):
      raise UserError(
        f"teacher {name!r} tells {known} classes apart and its student {wanted}; expected 'teacher_classes', the "
        "teacher's class for each of the student's, or losses that read activations only"
      )
    if not chosen and recipe.classes != student.classes and reads_logits(objective):
      first = next(pair for pair in zip(recipe.classes, student.classes, strict=True) if pair[0] != pair[1])
      raise UserError(
        f"teacher {name!r} has another class in the place of one of its student's, {first[0]!r} for {first[1]!r}; "
        "expected 'teacher_classes', the teacher's class for each of the student's"
      )


def make(
  stage: Any,
  taught_by: Sequence[Trained],
  arrays: Mapping[str, jax.Array],
  spec: Input,
  taps: Sequence[str],
  folder: Path,
  all_outputs: bool = False,
) -> Teaching:
  """Stores the logits of a stage's teachers where that is possible and wanted, else gives them as one function.

  Args:
    stage: its config.
    taught_by: `sources` of it; none for no teacher.
    arrays: its training examples on the device.
    spec: how batches are made.
    taps: activations of the teacher that its losses read; these are computed in the step.
    folder: where stores lie, each in a folder of its own; one that is there already is used.
    all_outputs: whether its losses read more than the teacher's logits (`further`); likewise.
  """
  if not taught_by:
    return Teaching(None, None, {}, spec)
  parts = [models.functions(one.recipe) for one in taught_by]
  trees = [(one.variables, one.qparams, one.quant_state) for one in taught_by]
  each = [member(part, stage, taps, all_outputs) for part in parts]
  endless = spec.augment.views is None and not teacher_key.is_still(spec.augment)
  if taps or all_outputs or endless or not stage.cache_teacher or stage.teacher_mode == "train":
    return Teaching(together(each, stage), trees, {}, spec)
  stored = [
    _stored(stage, [each[k] for k in group], [taught_by[k] for k in group], arrays, spec, folder)
    for group in _groups(stage, len(each))
  ]
  if len(stored) == 1:
    own, decode = dict(stored[0].arrays), stored[0].decode
  else:
    own = {f"{k}/{name}": array for k, one in enumerate(stored) for name, array in one.arrays.items()}

    def decode(batch: Mapping[str, jax.Array]) -> jax.Array | kd.Outputs:
      of = [{name: batch[f"{k}/{name}"] for name in one.arrays} for k, one in enumerate(stored)]
      return combined([one.decode(entry) for one, entry in zip(stored, of, strict=True)], stage)

  per_view = tuple(own) if stored[0].per_view else ()
  spec = dataclasses.replace(spec, per_view=(*spec.per_view, *per_view))
  return Teaching(None, None, jax.device_put(own), spec, decode)


def _groups(stage: Any, teachers: int) -> list[list[int]]:
  """Which teachers' logits are stored as one. A mean of probabilities depends on the temperature that it is read at."""
  every = list(range(teachers))
  return [every] if stage.ensemble == "logits" else [[index] for index in every]


def _stored(
  stage: Any,
  each: Sequence[Teacher],
  taught_by: Sequence[Trained],
  arrays: Mapping[str, jax.Array],
  spec: Input,
  folder: Path,
) -> teacher_cache.Cache:
  """The stored logits of one teacher, or the mean of several's; arguments as of `make`."""
  trees, teacher = [(one.variables, one.qparams, one.quant_state) for one in taught_by], together(each, stage)
  who = [[one.recipe._asdict() for one in taught_by], stage.ensemble, list(stage.teacher_classes)]
  classes = jax.eval_shape(teacher, trees, models.example(taught_by[0].recipe)).shape[-1]
  named = teacher_key.teacher_hash(trees, who), arrays, spec, classes, stage.cache_form, stage.cache_top_k or None
  key = teacher_key.key_of(*named)

  @jax.jit
  def run(trees: Any, arrays: Mapping[str, jax.Array], rows: jax.Array, view: jax.Array) -> Any:
    return teacher(trees, rooms.examples_at(arrays, rows, view, spec)["image"])

  def logits_of(rows: np.ndarray, view: int) -> Any:
    return run(trees, arrays, rows, np.int32(view))

  mix_of = teacher_cache.mixing(arrays, spec)
  # In batches as large as the student's, for a matrix product may round otherwise at another size.
  about = {"mix_of": mix_of, "batch": spec.batch_size, "teacher": f"the teacher {stage.teacher!r}"}
  return teacher_cache.build(folder / key.name, key, logits_of, **about)


def member(parts: Functions, stage: Any, taps: Sequence[str], all_outputs: bool = False) -> Teacher:
  """One teacher's function of its trees, (variables, qparams, quant_state), and preprocessed images.

  It gives the logits, or all outputs of a teacher that has several; with activations where some are named.
  """

  def teacher(trees: Any, x: jax.Array) -> jax.Array | kd.Outputs:
    variables, qparams, quant_state = trees

    def fn(variables: Any, x: jax.Array) -> jax.Array:
      if stage.teacher_mode == "train":
        found = parts.net.apply(variables, x, train=True)[0]
        return found if all_outputs else only(found, parts.output, "the teacher")
      run = models.outputs if all_outputs else models.logits
      return run(parts, (variables, qparams, quant_state), x)

    if not taps:
      return fn(variables, x)
    return kd.Outputs(*graph.taps(fn, taps)(variables, x))

  return teacher


def of_the_student(logits: Any, stage: Any) -> Any:
  """A teacher's logits of the student's classes."""
  return logits[..., np.asarray(stage.teacher_classes)] if stage.teacher_classes else logits


def together(members: Sequence[Teacher], stage: Any) -> Teacher:
  """Several teachers as one: `combined` of their logits; of the activations, the first teacher's count."""

  def teacher(trees: Any, x: jax.Array) -> jax.Array | kd.Outputs:
    said = [one(tree, x) for one, tree in zip(members, trees, strict=True)]
    each = [one.logits if isinstance(one, kd.Outputs) else one for one in said]
    found = combined([of_the_student(logits, stage) for logits in each], stage)
    if not isinstance(said[0], kd.Outputs):
      return found
    return found._replace(taps=said[0].taps) if isinstance(found, kd.Outputs) else said[0]._replace(logits=found)

  return teacher


def combined(found: Sequence[Any], stage: Any) -> jax.Array | kd.Outputs:
  """What a stage learns from: the logits of its only teacher, their mean, or all of them for the mean probabilities.

  The probabilities are averaged at the temperature of the loss that reads them (`kd.teacher_at`).

  Args:
    found: (batch, classes) logits of the student's classes, a teacher.
    stage: its config.
  """
  if len(found) == 1:
    return found[0]
  if stage.ensemble == "logits":
    return sum(found[1:], found[0]) / len(found)
  said = kd.Outputs(found[0], members=jnp.stack([jnp.asarray(one) for one in found], 1))
  return said._replace(logits=kd.teacher_at(said, 1.0))


def logits_as_one(each: Sequence[Any], stage: Any) -> np.ndarray:
  """The logits of a stage's teachers as one, (batch, classes of the student), at temperature 1.

  Args:
    each: the logits of each teacher, of its own classes.
    stage: its config.
  """
  found = combined([of_the_student(logits, stage) for logits in each], stage)
  return np.asarray(found.logits if isinstance(found, kd.Outputs) else found)


def warn_of_a_worse_teacher(
  name: str, stage: Any, taught_by: Sequence[Trained], others: Mapping[str, Trained], validation: rooms.Split
) -> str:
  """Says so on stderr, and returns it, where an earlier stage of the same model is better than the teachers together.

  A teacher of other classes, whose activations alone are learnt from, cannot be worse in this sense.
  """
  if not taught_by or not others:
    return ""
  said = logits_as_one([models.predict(one, validation.images) for one in taught_by], stage)
  if said.shape[-1] != len(validation.classes):
    return ""
  own = {other: models.predict(one, validation.images) for other, one in others.items()}
  best = max((engine.accuracy(logits, validation.labels), other) for other, logits in own.items())
  its = engine.accuracy(said, validation.labels)
  if its >= best[0]:
    return ""
  text = (
    f"WARNING: stage {name!r}: its teacher {stage.teacher!r} has a validation accuracy of {100 * its:.2f} %, and the "
    f"student itself reached {100 * best[0]:.2f} % in stage {best[1]!r}: it learns from a worse one"
  )
  print(text, file=sys.stderr, flush=True)
  return text
