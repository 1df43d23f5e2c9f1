"""Which activations a loss reads: the shapes that it is written for, and one check that refuses all others."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from leanax.core.errors import UserError


class Shapes(NamedTuple):
  """Shapes of activations that a loss is written for.

  Attributes:
    words: as a sentence says it after "expected".
    ranks: how many axes they may have, the batch included.
    channels: whether the last axis has the channels; a loss that flattens an activation need not know.
  """

  words: str
  ranks: Container[int]
  channels: bool = True


ANYTHING = Shapes("(batch, ...)", range(1, 99), channels=False)
CHANNELS = Shapes("(batch, ..., channels)", range(2, 99))
PLACES = Shapes("(batch, height, width, channels) or (batch, tokens, channels)", range(3, 99))
MAPS = Shapes("(batch, height, width, channels)", (4,))
MAPS_OR_VECTORS = Shapes("(batch, height, width, channels) or (batch, channels)", (2, 4))


def check(where: str, x: Any, expected: Shapes) -> None:
  """Refuses an activation, or its shape, that a loss is not written for.

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


def channels_first(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
  """Which of the maps that a loss reads seems to have its channels first, if any.

  Such a map's last two axes agree and differ from the one before. So do those of a map that is no square and happens to
  have as many channels as it is wide: another map of its proportions that does not look so vouches for it.
  """
  maps = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 4}
  odd = {name: shape for name, shape in maps.items() if 1 != shape[0] != shape[1] == shape[2]}
  sure = [shape for name, shape in maps.items() if name not in odd]
  for name, (high, wide, _) in odd.items():
    if not any(abs(high * w - h * wide) < max(high, wide, h, w) for h, w, _ in sure):
      return name
  return None


def ids_of(loss: str, batch: Mapping[str, Any], count: int) -> Array:
  """The ids of a batch's examples, (batch,) integers.

  Raises:
    UserError: there are none, or they are no integers or of another shape.
  """
  if "id" not in batch:
    raise UserError(f"the loss {loss!r} needs a batch with 'id'")
  ids = jnp.asarray(batch["id"])
  if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape != (count,):
    raise UserError(f"the loss {loss!r} expects batch['id'] to be integers ({count},); got {ids.dtype} {ids.shape}")
  return ids


def several(loss: str, what: str, number: int, least: int = 2) -> None:
  """Refuses what a loss would be constant of, with a gradient of 0: a unit vector of one number is its sign.

  Raises:
    UserError: names the loss, and how many there are.
  """
  if number < least:
    raise UserError(f"the loss {loss!r} compares {what} and got {number}; expected {least} or more")
