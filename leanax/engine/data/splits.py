"""Data sets: three checked splits of uint8 images with labels and ids, as numpy arrays on the host."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int32, UInt8

from leanax.core import ranges
from leanax.core.errors import UserError


class Split(NamedTuple):
  """One split on the host.

  Attributes:
    images: (N, height, width, channels) uint8, 0 to 255.
    labels: (N,) class numbers.
    ids: (N,) numbers that are unique over all splits of the set; augmentation is a function of them.
    classes: the classes' names, in the order of the labels.
    name: such as "digits/train".
  """

  images: UInt8[np.ndarray, "n h w c"]
  labels: Int32[np.ndarray, "n"]
  ids: Int32[np.ndarray, "n"]
  classes: tuple[str, ...]
  name: str

  def take(self, rows: np.ndarray | slice, name: str) -> "Split":
    """Returns the split of these rows, which keep their ids."""
    return self._replace(images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows], name=name)


class Dataset(NamedTuple):
  """The three splits of a set: fit on `train`, choose on `validation`, report on `test`."""

  train: Split
  validation: Split
  test: Split


def make_split(images: np.ndarray, labels: np.ndarray, ids: np.ndarray, classes: tuple[str, ...], name: str) -> Split:
  """Returns a split after checking its arrays.

  Raises:
    UserError: the images are not a uint8 (N, H, W, C) array, the counts differ, or a label is not a class number.
  """
  if images.dtype != np.uint8 or images.ndim != 4:
    raise UserError(f"{name}: images must be uint8 (N, H, W, C), not {images.dtype} of shape {images.shape}")
  if not len(images) == len(labels) == len(ids):
    raise UserError(f"{name}: {len(images)} images, {len(labels)} labels and {len(ids)} ids; the counts must be equal")
  labels = np.asarray(labels)
  wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
  if wrong.size:
    row = int(wrong[0])
    raise UserError(f"{name}: example {row} has label {labels[row]}; expected 0 to {len(classes) - 1}")
  return Split(images, labels.astype(np.int32), np.asarray(ids, np.int32), classes, name)


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
  count = round(validation * len(split.labels)) if isinstance(validation, float) else validation
  if not 0 <= count < len(split.labels):
    raise UserError(
      f"data.validation: {validation!r} of the {len(split.labels)} training examples of {name} cannot be held out;"
      " expected a number of examples below that, or a fraction from 0.0 to below 1.0"
    )
  cut = len(split.labels) - count
  return split.take(slice(0, cut), f"{name}/train"), split.take(slice(cut, None), f"{name}/validation")


def label_some(split: Split, count: int, seed: int, unlabelled: bool = True) -> Split:
  """Returns the split with only `count` labels, equally many per class, drawn by `seed`.

  Args:
    split: a split with all labels.
    count: labels to keep; the first classes get the remainder of the division.
    seed: of the draw.
    unlabelled: keep the other examples with label -1; else drop them.

  Raises:
    UserError: a class has fewer examples.
  """
  present = np.unique(split.labels)
  counts = np.full(len(present), count // len(present)) + (np.arange(len(present)) < count % len(present))
  rng = np.random.default_rng(seed)
  chosen = []
  for number, kept in zip(present, counts, strict=True):
    rows = np.flatnonzero(split.labels == number)
    if kept > len(rows):
      raise UserError(f"{split.name}: {kept} labels of class {number} are asked for, and it has {len(rows)} examples")
    chosen.append(rng.permutation(rows)[:kept])
  labelled = np.sort(np.concatenate(chosen))
  if not unlabelled:
    return split.take(labelled, split.name)
  known = np.isin(np.arange(len(split.labels)), labelled)
  return split._replace(labels=np.where(known, split.labels, -1).astype(np.int32))


def device_arrays(split: Split, device: jax.Device | jax.sharding.Sharding | None = None) -> Mapping[str, jax.Array]:
  """Puts a split on a device (or shards or replicates it): the `arrays` that the functions of `order` take.

  Returns:
    {"image": (N, H, W, C) uint8, "label": (N,) int32, "id": (N,) int32}. More arrays of N rows, such as a teacher's
    cached logits, may be added; batches then contain them too.
  """
  return jax.device_put({"image": split.images, "label": split.labels, "id": split.ids}, device)
