"""Which examples and positions count, and means over those: of all devices, and all micro-batches of an update.

Labels are (batch,) or (batch, *positions), and so are masks. A mean is a sum over the number that counts in the whole
batch, so neither a split over devices nor one into micro-batches changes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kd
from leanax.core import axis
from leanax.core.errors import UserError

MASKS = ("all", "labelled", "unlabelled")
UPDATE = "update"  # the key of a batch under which the labels and masks of all micro-batches of its update lie
_KEPT = ("label", "mix_label", "valid", "class_mask")

_STACKED = "expected what engine.masks_of gives of each of the update's micro-batches, stacked along the axis 1"
EMPTY = (
  "the batch is masked as a whole: expected 'valid' to leave an example, and 'class_mask' a class of it, that counts"
)


def counted(batch: Mapping[str, Any], mask: str, ignored: int | None = None) -> Array | None:
  """(batch,) or (batch, *positions) bools: what counts under a mask; None where everything does.

  Args:
    batch: with "valid", "label" and "mix_label" as far as there are any.
    mask: one of `MASKS`. A label is known where it is 0 or more and not the ignored one.
    ignored: a label that leaves its example or position out of every mean.
  """
  valid = _valid(batch)
  if "label" not in batch or (mask == "all" and ignored is None):
    return valid
  labels = [batch[key] for key in ("label", "mix_label") if key in batch]
  # An example that is mixed with an unlabelled one has no label for a part of its image.
  known = _all([kd.checks.countable(label) >= 0 for label in labels])
  chosen = {"all": [], "labelled": [known], "unlabelled": [~known]}[mask]
  if ignored is not None:
    chosen = [*chosen, kd.labelled(batch, ignored)]
  return _all(chosen if valid is None else [*chosen, valid])


def _valid(batch: Mapping[str, Any]) -> Array | None:
  valid = batch.get("valid")
  if valid is None:
    return None
  if not hasattr(valid, "dtype") or valid.dtype != bool or not valid.ndim:
    given = f"{valid.dtype} of shape {tuple(valid.shape)}" if hasattr(valid, "dtype") else f"a {type(valid).__name__}"
    raise UserError(f"the batch's 'valid' is {given}; expected bools, (batch,) or (batch, *positions)")
  return valid


def _all(masks: list[Array]) -> Array:
  """The conjunction of masks over examples and over their positions."""
  rank = max(mask.ndim for mask in masks)
  wide = [mask.reshape(mask.shape + (1,) * (rank - mask.ndim)) for mask in masks]
  out = wide[0]
  for mask in wide[1:]:
    if any(1 not in (a, b) and a != b for a, b in zip(out.shape, mask.shape, strict=True)):
      shapes = " and ".join(str(tuple(mask.shape)) for mask in masks)
      raise UserError(f"the batch's labels and masks have the shapes {shapes}; expected the same leading axes")
    out = out & mask
  return out


def fitted(valid: Array, shape: tuple[int, ...]) -> Array:
  """A mask for numbers of a shape: one over examples spreads over positions, of one over positions any is enough.

  Raises:
    UserError: the two have different positions.
  """
  if valid.ndim > len(shape):
    valid = jnp.any(valid, axis=tuple(range(len(shape), valid.ndim)))
  if valid.shape != shape[: valid.ndim]:
    raise UserError(f"a mask of shape {valid.shape} and numbers of shape {shape}: expected the same leading axes")
  return jnp.broadcast_to(valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim)), shape)


def batch_mean(
  numbers: Array, valid: Array | None, axis_name: str | None, update: Array | None = None, micro_batches: int = 1
) -> Array:
  """This device's part of the mean over what counts on all: that mean is the mean over devices of the parts.

  Args:
    numbers: (batch,) or (batch, *positions).
    valid: which of them count, or None for all; see `fitted`. What does not may be NaN, and gets no gradient.
    axis_name: the device axis, or None.
    update: with several micro-batches an update, the same mask for all their examples: the mean is then this
      micro-batch's part, too, and the mean over the micro-batches that of the update.
    micro_batches: so many.
  """
  if valid is None:
    return jnp.mean(numbers)
  valid = fitted(valid, numbers.shape)
  among = valid if micro_batches == 1 or update is None else fitted(update, (update.shape[0], *numbers.shape[1:]))
  wide = numbers.dtype if jnp.finfo(numbers.dtype).bits >= 32 else jnp.float32  # bfloat16 counts no further than 256
  count = axis.pmean(jnp.sum(among.astype(wide)) / micro_batches, axis_name)
  total = jnp.sum(jnp.where(valid, numbers, jnp.zeros_like(numbers)).astype(wide))
  return (total / jnp.where(count > 0, count, 1.0)).astype(numbers.dtype)


class Whole(NamedTuple):
  """The labels and masks of a whole update, with its micro-batches along the axis of the examples, and their number."""

  batch: Mapping[str, Any]
  micro_batches: int


def whole(batch: Mapping[str, Any]) -> Whole:
  """What an update counts over: all its micro-batches, or the batch itself where it is alone.

  Raises:
    UserError: the batch's "update" is not what `masks_of` gives of several.
  """
  given = batch.get(UPDATE)
  if given is None:
    return Whole(batch, 1)
  if not isinstance(given, Mapping) or not given or any(getattr(a, "ndim", 0) < 2 for a in given.values()):
    shown = (
      {key: getattr(a, "shape", None) for key, a in given.items()}
      if isinstance(given, Mapping)
      else f"a {type(given).__name__}"
    )
    raise UserError(f"the batch's 'update' is {shown}; {_STACKED}")
  count = next(iter(given.values())).shape[1]
  return Whole({key: a.reshape(a.shape[0] * count, *a.shape[2:]) for key, a in given.items()}, count)


def refuse_unknown_counts(batch: Mapping[str, Any], masks: Sequence[Array | None], accumulate: int) -> None:
  """Raises a UserError where micro-batches are masked, and how much counts in all of them is not known, or of others.

  A mean over the examples that count of other micro-batches would be another number.

  Args:
    batch: of a step.
    masks: what counts for each of its terms.
    accumulate: micro-batches an update.
  """
  update, given = whole(batch)
  if UPDATE in batch and update.keys() != _masks(batch).keys():
    found, own = (", ".join(map(repr, sorted(keys))) for keys in (update, _masks(batch)))
    raise UserError(f"the batch's 'update' has {found}, and the batch {own}; {_STACKED}")
  if accumulate == 1 < given:
    raise UserError(f"accumulate is 1, and the batch's 'update' is of {given} micro-batches; expected as many")
  if given != accumulate and (given > 1 or any(mask is not None for mask in masks)):
    raise UserError(
      f"accumulate is {accumulate}, and some examples may not count: a mean over those that do needs the labels and "
      f"masks of {accumulate} micro-batches in the batch's 'update'; expected a get_batch that engine.of_update gives"
    )


def of_update(get_batch: Callable[..., dict[str, Any]], accumulate: int) -> Callable[..., dict[str, Any]]:
  """Gives each micro-batch the labels and masks of all of its update, by which the terms of an objective are weighed.

  Args:
    get_batch: as of `engine.fit`. It is called for the other micro-batches, too; the compiler drops all but the labels.
    accumulate: micro-batches an update, as of `make_train_step`.
  """
  if accumulate == 1:
    return get_batch

  def get(data: Any, step: Any, *, seed: Any, part: Any) -> dict[str, Any]:
    batch = get_batch(data, step, seed=seed, part=part)
    if not _masks(batch):
      return batch
    first = step - step % accumulate
    others = jax.lax.map(
      lambda k: masks_of(get_batch(data, first + k, seed=seed, part=part)), jnp.arange(accumulate, dtype=jnp.int32)
    )
    return {**batch, UPDATE: jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), others)}

  return get


def masks_of(batch: Mapping[str, Any]) -> dict[str, Any]:
  """What of a batch says which of its examples count.

  In a loop of one's own: `batch["update"] = jax.tree.map(lambda *a: jnp.stack(a, 1), *map(masks_of, micro_batches))`.
  """
  found = _masks(batch)
  if not found:
    raise UserError("a batch without 'label' and 'valid' says nothing of which examples count; expected one of them")
  return found


def _masks(batch: Mapping[str, Any]) -> dict[str, Any]:
  found = {key: batch[key] for key in _KEPT if key in batch}
  if "class_mask" in found:
    mask = found.pop("class_mask")
    rows = next((a.shape[0] for a in found.values()), mask.shape[0])
    if mask.ndim > 1:  # one row may stand for all examples
      found["class_mask"] = jnp.broadcast_to(mask, (rows, *mask.shape[1:])) if mask.shape[0] == 1 else mask
  return found


def examples_left(batch: Mapping[str, Any], axis_name: str | None) -> Array | None:
  """How many examples count, with some class that counts; None where nothing is masked.

  Returns:
    A float32 scalar, this device's number times the devices: its mean over these is the number of the whole batch. Of
    an update in micro-batches it is their mean.

  Raises:
    UserError: none does, and the masks are known: inside jit the number is all that can be had.
  """
  every = whole(batch)
  examples, classes = _valid(every.batch), every.batch.get("class_mask", batch.get("class_mask"))
  if examples is None and classes is None:
    return None
  some = jnp.ones((), bool) if classes is None else jnp.any(classes, axis=-1)
  counted = some if examples is None else _all([examples, some])
  number = jnp.sum(counted.astype(jnp.float32)) * axis.size(axis_name) / every.micro_batches
  if not isinstance(number, jax.core.Tracer) and not number:
    raise UserError(EMPTY)
  return number


def shielded(x: Array, valid: Array | None) -> Array:
  """The same numbers, of whose examples and positions only those that count get a gradient.

  A number that is left out of a mean has the gradient 0, and 0 times a NaN on its way back is NaN.

  Args:
    x: (batch, ...) or (batch, *positions, ...).
    valid: (batch,) or (batch, *positions), or None for all.
  """
  if valid is None or not jnp.issubdtype(x.dtype, jnp.inexact) or x.shape[: valid.ndim] != valid.shape:
    return x
  return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, jax.lax.stop_gradient(x))


def filled(batch: Mapping[str, Any]) -> Mapping[str, Any]:
  """The batch with zeros in place of what is not finite in the images of padding: NaN would reach every gradient."""
  if not isinstance(batch, Mapping):
    raise UserError(f"the batch is a {type(batch).__name__}; expected {{'image': images, 'label': labels}}, or more")
  if "image" not in batch:
    raise UserError(
      f"a batch holds {', '.join(map(repr, batch)) or 'nothing'}; expected 'image', the input of the model"
    )
  valid = _valid(batch)
  if valid is None:
    return batch
  rows = fitted(valid, valid.shape[:1])

  def fill(x: Array) -> Array:
    if x.shape[:1] != rows.shape:
      raise UserError(
        f"the batch's 'valid' has {len(rows)} examples, and its 'image' {x.shape[0] if x.ndim else 'none'}"
      )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - 1)) | jnp.isfinite(x), x, jnp.zeros_like(x))

  return {**batch, "image": jax.tree.map(fill, batch["image"])}
