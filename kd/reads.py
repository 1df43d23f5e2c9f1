"""Which activations a loss reads: the shapes that it is written for, and one check that refuses all others."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from core.errors import UserError


class Reads(NamedTuple):
  """Shapes of activations.

  Attributes:
    words: as a sentence says it after "expected".
    ranks: how many axes they may have, the batch included.
    channels: whether the last axis has the channels; a loss that flattens an activation need not know.
  """

  words: str
  ranks: Container[int]
  channels: bool = True


ANYTHING = Reads("(batch, ...)", range(1, 99), channels=False)
CHANNELS = Reads("(batch, ..., channels)", range(2, 99))
PLACES = Reads("(batch, height, width, channels) or (batch, tokens, channels)", range(3, 99))
MAPS = Reads("(batch, height, width, channels)", (4,))
LOGITS = Reads("(batch, ..., classes)", range(2, 99), channels=False)
MAPS_OR_VECTORS = Reads("(batch, height, width, channels) or (batch, channels)", (2, 4))


def check(where: str, x: Any, expected: Reads) -> None:
  """Refuses an activation, or its shape, that a loss is not written for.

  A map whose last two axes agree and differ from the one before is taken for one with its channels first.

  Args:
    where: names it, such as "the loss 'at' reads 'a' of the student".
    x: anything.
    expected: the shapes that are meant.

  Raises:
    UserError: it is no array of floats, it is empty, or its shape is another.
  """
  shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
  if shape is None or dtype is None:
    raise UserError(f"{where}, which is a {type(x).__name__}; expected one array {expected.words}")
  if not jnp.issubdtype(dtype, jnp.floating):
    raise UserError(f"{where}, of dtype {dtype}; expected floats")
  if 0 in shape or len(shape) not in expected.ranks:
    raise UserError(f"{where}, of shape {tuple(shape)}; expected {expected.words}{', not empty' * (0 in shape)}")
  if expected.channels and len(shape) == 4 and shape[1] != shape[2] == shape[3]:
    raise UserError(f"{where}, of shape {tuple(shape)}, where the channels seem to be first; expected {expected.words}")


def check_masks(loss: str, batch: Mapping[str, Any], class_mask: Any, count: int) -> None:
  """Refuses "valid", "id" and masked classes that are not those of a batch of `count` examples.

  Raises:
    UserError: names the loss, the key and what it is.
  """
  found = {"valid": batch.get("valid"), "id": batch.get("id"), "class_mask": class_mask}
  for key, x in found.items():
    kind, words = (jnp.integer, "integers") if key == "id" else (jnp.bool_, "bools")
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    of_classes = key == "class_mask" and shape is not None and len(shape) in (1, 2)
    fits = (len(shape) == 1 or shape[0] in (1, count)) if of_classes else shape == (count,)
    if x is not None and not (dtype is not None and jnp.issubdtype(dtype, kind) and fits):
      got = f"a {type(x).__name__}" if dtype is None else f"{dtype} of shape {shape}"
      wanted = f"(classes,) or ({count}, classes)" if key == "class_mask" else f"({count},), one for each example"
      raise UserError(f"the loss {loss!r} reads activations, and {key!r} is {got}; expected {words} of shape {wanted}")


def several(loss: str, what: str, number: int, least: int = 2) -> None:
  """Refuses what a loss would be constant of, with a gradient of 0: a unit vector of one number is its sign.

  Raises:
    UserError: names the loss, and how many there are.
  """
  if number < least:
    raise UserError(f"the loss {loss!r} compares {what} and got {number}; expected {least} or more")
