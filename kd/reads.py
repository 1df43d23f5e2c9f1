"""The shapes of activations that a loss supports, and one check that refuses all others."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from leanax.core.errors import UserError


class Shapes(NamedTuple):
  """Shapes of activations that a loss supports.

  Attributes:
    words: the description after "expected" in error messages.
    ranks: the allowed numbers of axes, the batch included.
    channels: whether the last axis must be the channels; False for a loss that flattens its activations.
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
  """Refuses an activation, or its shape, that a loss does not support.

  Args:
    where: its description in error messages, such as "the loss 'at' reads 'a' of the student".
    x: the activation.
    expected: the supported shapes.

  Raises:
    UserError: it is not an array of floats, it is empty, or it has another shape.
  """
  shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
  if shape is None or dtype is None:
    raise UserError(f"{where}, which is a {type(x).__name__}; expected one array {expected.words}")
  if not jnp.issubdtype(dtype, jnp.floating):
    raise UserError(f"{where}, of dtype {dtype}; expected floats")
  if 0 in shape or len(shape) not in expected.ranks:
    raise UserError(f"{where}, of shape {tuple(shape)}; expected {expected.words}{', not empty' * (0 in shape)}")


def channels_first(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
  """Returns the name of a map whose channels seem to come first, or None.

  The last two axes of such a map agree and differ from the one before. So do those of a channels-last map that is not
  square and has as many channels as columns: it is accepted if another map has its aspect ratio and is unambiguous.
  """
  maps = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 4}
  odd = {name: shape for name, shape in maps.items() if 1 != shape[0] != shape[1] == shape[2]}
  sure = [shape for name, shape in maps.items() if name not in odd]
  for name, (high, wide, _) in odd.items():
    if not any(abs(high * w - h * wide) < max(high, wide, h, w) for h, w, _ in sure):
      return name
  return None


def ids_of(loss: str, batch: Mapping[str, Any], count: int) -> Array:
  """Returns the ids of a batch's examples, (batch,) integers.

  Raises:
    UserError: there are none, or they are not integers or of another shape.
  """
  if "id" not in batch:
    raise UserError(f"the loss {loss!r} needs a batch with 'id'")
  ids = jnp.asarray(batch["id"])
  if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape != (count,):
    raise UserError(f"the loss {loss!r} expects batch['id'] to be integers ({count},); got {ids.dtype} {ids.shape}")
  return ids


def require_count(loss: str, what: str, number: int, least: int = 2) -> None:
  """Refuses inputs for which a loss would be constant, with gradient 0: a unit vector of one number is its sign.

  Raises:
    UserError: names the loss and the number.
  """
  if number < least:
    raise UserError(f"the loss {loss!r} compares {what} and got {number}; expected {least} or more")
