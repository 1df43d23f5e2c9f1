"""What a data set is here: three splits of uint8 images with labels and ids, checked, as numpy arrays on the host."""

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
    """The split of these rows, which keep their ids."""
    return self._replace(images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows], name=name)


class Dataset(NamedTuple):
  """The three splits of a set: fit on `train`, choose on `validation`, report on `test`."""

  train: Split
  validation: Split
  test: Split


def make_split(images: np.ndarray, labels: np.ndarray, ids: np.ndarray, classes: tuple[str, ...], name: str) -> Split:
  """A checked split.

  Raises:
    UserError: the images are no uint8 (N, H, W, C) array, the counts differ, or a label is not a class number.
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
  """Divides a training split: its last examples become the validation split.

  The order of a prepared set is already a fixed shuffle, so that its end is a fair sample.

  Args:
    split: the whole training split.
    validation: how many examples (int), or which share of them (float below 1).
    name: the set's name.

  Raises:
    UserError: fewer than one example would be left to train on.
  """
  ranges.check("data.validation", validation, ranges.FINITE)
  count = round(validation * len(split.labels)) if isinstance(validation, float) else validation
  if not 0 <= count < len(split.labels):
    raise UserError(
      f"data.validation: {validation!r} of the {len(split.labels)} training examples of {name} cannot be held out;"
      " expected a number of examples below that, or a share from 0.0 to below 1.0"
    )
  cut = len(split.labels) - count
  return split.take(slice(0, cut), f"{name}/train"), split.take(slice(cut, None), f"{name}/validation")


def label_some(split: Split, count: int, seed: int, unlabelled: bool = True) -> Split:
  """The split with `count` labels, equally many of each class that it has, drawn by `seed`.

  Args:
    split: all of whose labels are known.
    count: labels to keep; what does not divide goes to the first classes.
    seed: of the draw.
    unlabelled: keep the other examples, with label -1; else they are left out.

  Raises:
    UserError: a class has fewer examples.
  """
  present = np.unique(split.labels)
  shares = np.full(len(present), count // len(present)) + (np.arange(len(present)) < count % len(present))
  rng = np.random.default_rng(seed)
  chosen = []
  for number, share in zip(present, shares, strict=True):
    rows = np.flatnonzero(split.labels == number)
    if share > len(rows):
      raise UserError(f"{split.name}: {share} labels of class {number} are asked for, and it has {len(rows)} examples")
    chosen.append(rng.permutation(rows)[:share])
  kept = np.sort(np.concatenate(chosen))
  if not unlabelled:
    return split.take(kept, split.name)
  return split._replace(labels=np.where(np.isin(np.arange(len(split.labels)), kept), split.labels, -1).astype(np.int32))


def device_arrays(split: Split, device: jax.Device | jax.sharding.Sharding | None = None) -> Mapping[str, jax.Array]:
  """Puts a split on a device (or shards or replicates it): the `arrays` that the functions of `order` take.

  Returns:
    {"image": (N, H, W, C) uint8, "label": (N,) int32, "id": (N,) int32}. More arrays of N rows, such as a teacher's
    cached logits, may be added under names of their own; they are gathered along.
  """
  return jax.device_put({"image": split.images, "label": split.labels, "id": split.ids}, device)
