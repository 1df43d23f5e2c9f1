"""The batch as a pure function of the step: order, augmentation and preprocessing in one call inside jit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from leanax.core.errors import UserError
from leanax.engine.data import augment as changes
from leanax.engine.data import order
from leanax.engine.data.augment import NOTHING, Augment
from leanax.engine.data.preprocess import UNIT, Preprocess, normalise


@dataclass(frozen=True)
class Input:
  """The settings of the input; plain data.

  Attributes:
    batch_size: of all devices.
    seed: of the order.
    preprocess: from pixels to the network's inputs.
    augment: random changes in training.
    dtype: of the network's inputs.
    classes: the number of examples of each class, where epochs draw them equally often (`order.of_classes`); () else.
    per_view: names of arrays (N, views, ...), such as cached teacher logits, of which a batch gets one view.
    ignore_label: the label of positions beyond the border of a moved image; None where nothing says it.
  """

  batch_size: int
  seed: int = 0
  preprocess: Preprocess = UNIT
  augment: Augment = NOTHING
  dtype: jax.typing.DTypeLike = jnp.float32
  per_view: tuple[str, ...] = ()
  classes: tuple[int, ...] = ()
  ignore_label: int | None = None


def view_of(spec: Input, step: int | Int[Array, ""], examples: int) -> Int[Array, ""]:
  """Returns the view of a step: its epoch, modulo the number of views if that is fixed."""
  epoch = order.epoch_of(step, examples, spec.batch_size)
  return epoch if spec.augment.views is None else epoch % spec.augment.views


def examples_at(
  arrays: Mapping[str, Array], rows: Int[Array, "b"], view: int | Int[Array, ""], spec: Input
) -> dict[str, Array]:
  """Returns rows of a split in one view; a cache of teacher logits is built from these.

  Args:
    arrays: the whole split on a device (`splits.device_arrays`); mixup and CutMix draw partners from it.
    rows: (B,) row numbers.
    view: the number of the view.
    spec: the settings of the input.

  Returns:
    "image" (B, ...), of `spec.dtype` where it is of floats, "label", "id" and every other array's rows; "target" is
    "label" where that is of floats; mixed ones also "mix" (B,) float32, the weight of "label", and "mix_label", the
    other label, whose weight is 1 - mix.
  """
  batch = order.gather(arrays, rows)
  batch |= {key: jnp.take(batch[key], view, axis=1, mode="clip") for key in spec.per_view}
  images, labels = _moved(batch, view, spec)
  if spec.augment.mixes:
    drawn = changes.mix_draw(batch["id"], view, spec.augment, arrays["id"].shape[0], arrays["image"].shape[1:3])
    other = order.gather({key: arrays[key] for key in ("image", "label", "id")}, drawn.rows)
    other_images, other_labels = _moved(other, view, spec)
    images = changes.mixed(images, other_images, drawn, spec.augment)
    batch |= {"mix": drawn.weights, "mix_label": other_labels}
  images = images.astype(spec.dtype) if jnp.issubdtype(images.dtype, jnp.floating) else images
  return {**batch, **targets(labels), "image": images}


def targets(labels: Any) -> dict[str, Any]:
  """Returns labels as a batch holds them: "label", and those that are floats, which losses of regression read, as
  "target" too.
  """
  if not isinstance(labels, Mapping):
    return {"label": labels} | ({"target": labels} if jnp.issubdtype(labels.dtype, jnp.floating) else {})
  numbers = {name: x for name, x in labels.items() if jnp.issubdtype(x.dtype, jnp.floating)}
  return {"label": labels} | ({"target": numbers} if numbers else {})


def _moved(batch: Mapping[str, Any], view: int | Int[Array, ""], spec: Input) -> tuple[Array, Any]:
  """Returns the preprocessed images of a view, and their labels; those of positions move with the pixels."""
  ids, pixels = batch["id"], batch["image"]
  images = normalise(changes.move(pixels, ids, view, spec.augment), spec.preprocess)

  def follow(label: Array) -> Array:
    if not _has_places(label, pixels):
      return label
    maps = label if label.ndim == 4 else label[..., None]
    return changes.follow(maps, ids, view, spec.augment, spec.ignore_label or 0).reshape(label.shape)

  return images, jax.tree.map(follow, batch["label"])


def _has_places(label: Any, images: Any) -> bool:
  """Returns whether labels (N, height, width) or (N, height, width, outputs) are of the places of images."""
  return images.ndim == 4 and label.ndim in (3, 4) and label.shape[1:3] == images.shape[1:3]


def train_batch_at(
  arrays: Mapping[str, Array],
  step: int | Int[Array, ""],
  spec: Input,
  part: tuple[int | Int[Array, ""], int] = (0, 1),
) -> dict[str, Array]:
  """Returns the batch of a training step: `examples_at` for the step's rows and view.

  Args:
    arrays: the training split on a device; pass it as an argument of the jitted function, do not close over it.
    step: counts batches from 0.
    spec: the settings of the input.
    part: (k, n) selects the k-th of n equal parts of the batch, such as a device's.
  """
  examples = arrays["id"].shape[0]
  rows = order.batch_rows(spec.seed, step, examples, spec.batch_size, part, spec.classes)
  return examples_at(arrays, rows, view_of(spec, step, examples), spec)


def eval_batch_at(arrays: Mapping[str, Array], step: int | Int[Array, ""], spec: Input) -> dict[str, Array]:
  """Returns batch `step` of an evaluation, in stored order, not augmented; "valid" (B,) bools are False for padding."""
  raw, valid = order.padded_batch_at({key: arrays[key] for key in ("image", "label", "id")}, step, spec.batch_size)
  return {**raw, "image": normalise(raw["image"], spec.preprocess, spec.dtype), "valid": valid}


def check_augment(spec: Input, arrays: Mapping[str, Array]) -> None:
  """Refuses random changes that do not fit the inputs of a split, or that its labels cannot follow; errors name the
  entry.
  """
  images, labels = arrays["image"], jax.tree.leaves(arrays["label"])
  if images.dtype != jnp.uint8:
    if found := changes.changed(spec.augment):
      raise UserError(
        f"augment.{found[0]} is {getattr(spec.augment, found[0])!r}, a change of pictures, and the inputs are "
        f"{images.dtype} of shape {tuple(images.shape[1:])}; expected no augmentation"
      )
    return
  changes.check(spec.augment, images.shape[1:])
  whole = all(not jnp.issubdtype(label.dtype, jnp.floating) for label in labels)
  placed = [label for label in labels if _has_places(label, images)]
  padding = spec.ignore_label
  if any(jnp.issubdtype(label.dtype, jnp.floating) for label in placed):
    padding = None  # no number says that a place has none
  changes.check_labels(spec.augment, bool(placed), padding, whole and not isinstance(arrays["label"], Mapping))
  for label in placed:
    if padding is not None and not (jnp.iinfo(label.dtype).min <= padding <= jnp.iinfo(label.dtype).max):
      raise UserError(f"ignore_label is {padding}, which labels of {label.dtype} do not hold; expected int32 labels")


def check(spec: Input, arrays: Mapping[str, Array]) -> None:
  """Refuses a spec that does not fit a training split, before anything is compiled.

  Raises:
    UserError: names the entry.
  """
  image_shape = arrays["image"].shape[1:]
  order.steps_per_epoch(arrays["id"].shape[0], spec.batch_size)
  if spec.classes and sum(spec.classes) != arrays["id"].shape[0]:
    raise UserError(
      f"classes has {sum(spec.classes)} examples and the split {arrays['id'].shape[0]}; expected the same"
    )
  check_augment(spec, arrays)
  for key in ("mean", "std"):
    count = len(getattr(spec.preprocess, key))
    if count not in (1, image_shape[-1]):
      raise UserError(f"preprocess.{key} has {count} numbers; expected 1, or {image_shape[-1]}, one per channel")
  for key in spec.per_view:
    views = spec.augment.views
    shape = arrays[key].shape if key in arrays else None
    if views is None or shape is None or shape[1:2] != (views,):
      raise UserError(f"array {key!r} of shape {shape} is stored per view; expected (N, augment.views={views}, ...)")
