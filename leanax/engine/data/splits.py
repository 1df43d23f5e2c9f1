"""Data sets: three checked splits of inputs with labels and ids, as numpy arrays on the host."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32, Num

from leanax.core import ranges
from leanax.core.errors import UserError


class Split(NamedTuple):
  """One split on the host.

  Attributes:
    images: (N, height, width, channels) uint8, 0 to 255; or other inputs of a network, float32 (N, ...) such as series
      and vectors, or int32 (N, ...) such as tokens.
    labels: (N,) int32 class numbers; or (N, *positions) class numbers, uint8 or int32, such as masks; (N, ..., outputs)
      0 and 1, whole numbers; (N, ..., outputs) float32; or a mapping of such arrays by the names of a network's
      outputs.
    ids: (N,) numbers that are unique over all splits of the set; augmentation is a function of them.
    classes: the classes' names, in the order of the labels; () for labels that are no classes.
    name: such as "digits/train".
  """

  images: Num[np.ndarray, "n ..."]
  labels: Any
  ids: Int32[np.ndarray, "n"]
  classes: tuple[str, ...]
  name: str

  def take(self, rows: np.ndarray | slice, name: str) -> "Split":
    """Returns the split of these rows, which keep their ids."""
    labels = jax.tree.map(lambda array: array[rows], self.labels)
    return self._replace(images=self.images[rows], labels=labels, ids=self.ids[rows], name=name)

  @property
  def has_pictures(self) -> bool:
    """Returns whether the inputs are pixels, which preprocessing and augmentation are for."""
    return self.images.dtype == np.uint8


class Dataset(NamedTuple):
  """The three splits of a set: fit on `train`, choose on `validation`, report on `test`."""

  train: Split
  validation: Split
  test: Split


def make_split(images: Any, labels: Any, ids: Any, classes: Sequence[str], name: str) -> Split:
  """Returns a split after checking its arrays; see `Split`. Wider floats and whole numbers are narrowed.

  Raises:
    UserError: arrays of other shapes or types, different counts, a float that is not finite, or a label that is not a
      class number; of labels of positions one number beside the classes says that there is no label.
  """
  images, classes = _inputs(np.asarray(images), name), tuple(map(str, classes))
  if isinstance(labels, Mapping):
    if not labels:
      raise UserError(f"{name}: the labels are an empty mapping; expected an array for each output")
    checked: Any = {str(key): _labels(np.asarray(x), (), f"{name}: {key!r}") for key, x in labels.items()}
  else:
    checked = _labels(np.asarray(labels), classes, name)
    if checked.ndim == 1 and not classes:
      raise UserError(f"{name}: labels are class numbers, and there are no classes; expected their names")
  for array in jax.tree.leaves(checked):
    if not len(images) == len(array) == len(ids):
      raise UserError(f"{name}: {len(images)} images, {len(array)} labels and {len(ids)} ids; the counts must be equal")
  return Split(images, checked, np.asarray(ids, np.int32), classes, name)


def _inputs(images: np.ndarray, name: str) -> np.ndarray:
  """Returns inputs in one of the three types that they may have."""
  if images.dtype == np.uint8 and images.ndim == 4:
    return images
  if images.dtype != np.uint8 and images.ndim >= 2 and images.dtype.kind in "fiu":
    return _narrowed(images, name, "inputs")
  raise UserError(
    f"{name}: images must be uint8 (N, H, W, C), and other inputs floats or int32 (N, ...), not {images.dtype} of "
    f"shape {images.shape}"
  )


def _narrowed(array: np.ndarray, name: str, what: str) -> np.ndarray:
  """Returns floats as float32, and whole numbers as int32; refuses those that do not fit."""
  if array.dtype.kind == "f":
    if not np.isfinite(array).all():
      raise UserError(f"{name}: {what} hold NaN or infinity; expected finite numbers")
    return array.astype(np.float32)
  span = np.iinfo(np.int32)
  if array.size and not (span.min <= array.min() and array.max() <= span.max):
    raise UserError(f"{name}: {what} hold {array.max()}; expected whole numbers that int32 holds")
  return array.astype(np.int32)


def _labels(labels: np.ndarray, classes: tuple[str, ...], name: str) -> np.ndarray:
  """Returns checked labels of one output."""
  if labels.dtype == bool:
    labels = labels.astype(np.uint8)
  if labels.dtype.kind not in "iuf" or not labels.ndim or (labels.dtype.kind == "f" and labels.ndim < 2):
    raise UserError(
      f"{name}: labels are {labels.dtype} of shape {labels.shape}; expected class numbers (N,) or (N, *positions), 0 "
      "and 1 (N, outputs), or floats (N, outputs)"
    )
  if labels.dtype.kind == "f":
    return _narrowed(labels, name, "labels")
  wrong = (labels < 0) | (labels >= len(classes)) if classes else np.zeros(labels.shape, bool)
  if labels.ndim == 1 and wrong.any():
    row = int(np.flatnonzero(wrong)[0])
    raise UserError(f"{name}: example {row} has label {labels[row]}; expected 0 to {len(classes) - 1}")
  others = np.unique(labels[wrong])
  if len(others) > 1:
    raise UserError(
      f"{name}: labels of positions are {', '.join(map(str, others[:3]))} beside 0 to {len(classes) - 1}; expected at "
      "most one such number, which says that there is no label"
    )
  return labels if labels.dtype == np.uint8 and labels.ndim > 1 else _narrowed(labels, name, "labels")


def hold_out(split: Split, validation: int | float, name: str) -> tuple[Split, Split]:
  """Splits off the last examples of a training split for validation.

  The order of a prepared set is already a fixed shuffle, so its end is a random sample.

  Args:
    split: the whole training split.
    validation: a number of examples (int), or a fraction of them (float below 1).
    name: the set's name.

  Raises:
    UserError: no example would remain for training.
  """
  ranges.check("data.validation", validation, ranges.FINITE)
  count = round(validation * len(split.ids)) if isinstance(validation, float) else validation
  if not 0 <= count < len(split.ids):
    raise UserError(
      f"data.validation: {validation!r} of the {len(split.ids)} training examples of {name} cannot be held out;"
      " expected a number of examples below that, or a fraction from 0.0 to below 1.0"
    )
  cut = len(split.ids) - count
  return split.take(slice(0, cut), f"{name}/train"), split.take(slice(cut, None), f"{name}/validation")


def label_some(split: Split, count: int, seed: int, unlabelled: bool = True) -> Split:
  """Returns the split with only `count` labels, drawn by `seed`; of examples of one class equally many per class.

  Args:
    split: a split with all labels.
    count: labels to keep; the first classes get the remainder of the division.
    seed: of the draw.
    unlabelled: keep the other examples, whose labels are then -1; else drop them.

  Raises:
    UserError: a class, or the split, has fewer examples; or labels that -1 cannot stand for.
  """
  rng = np.random.default_rng(seed)
  if isinstance(split.labels, Mapping) or split.labels.dtype.kind == "f":
    if unlabelled:
      raise UserError(
        f"{split.name}: no number says that floats, or labels of several outputs, are unknown; expected "
        "'examples.unlabelled' to be False"
      )
    labelled = _some(split, count, rng)
  elif split.labels.ndim > 1:
    labelled = _some(split, count, rng)
  else:
    labelled = _some_of_each_class(split, count, rng)
  if not unlabelled:
    return split.take(labelled, split.name)
  known = np.isin(np.arange(len(split.ids)), labelled).reshape(-1, *(1,) * (split.labels.ndim - 1))
  return split._replace(labels=np.where(known, split.labels.astype(np.int32), -1))


def _some(split: Split, count: int, rng: np.random.Generator) -> np.ndarray:
  if count > len(split.ids):
    raise UserError(f"{split.name}: {count} labels are asked for, and it has {len(split.ids)} examples")
  return np.sort(rng.permutation(len(split.ids))[:count])


def _some_of_each_class(split: Split, count: int, rng: np.random.Generator) -> np.ndarray:
  present = np.unique(split.labels)
  counts = np.full(len(present), count // len(present)) + (np.arange(len(present)) < count % len(present))
  chosen = []
  for number, kept in zip(present, counts, strict=True):
    rows = np.flatnonzero(split.labels == number)
    if kept > len(rows):
      raise UserError(f"{split.name}: {kept} labels of class {number} are asked for, and it has {len(rows)} examples")
    chosen.append(rng.permutation(rows)[:kept])
  return np.sort(np.concatenate(chosen))


def device_arrays(split: Split, device: jax.Device | jax.sharding.Sharding | None = None) -> Mapping[str, jax.Array]:
  """Puts a split on a device (or shards or replicates it): the `arrays` that the functions of `order` take.

  Returns:
    {"image", "label", "id"}, each of N rows, with the types of `Split`; labels of several outputs are a mapping. More
    arrays of N rows, such as a teacher's cached logits, may be added; batches then contain them too.
  """
  return jax.device_put({"image": split.images, "label": split.labels, "id": split.ids}, device)


def class_counts(split: Split) -> tuple[int, ...] | None:
  """Returns the number of labelled examples of each class of a split; None where an example has other than one."""
  if isinstance(split.labels, Mapping) or split.labels.ndim > 1:
    return None
  return tuple(np.bincount(split.labels[split.labels >= 0], minlength=len(split.classes)).tolist())
