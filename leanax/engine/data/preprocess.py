"""Preprocessing from pixels to the network's inputs, as plain data that is saved with the model."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from leanax.core.errors import UserError, unknown
from leanax.engine.data.pictures import RESIZES
from leanax.engine.data.splits import Split


@dataclass(frozen=True)
class Preprocess:
  """`(pixel * scale - mean) / std`, per channel; constants of the compiled program.

  Attributes:
    mean: one number, or one per channel, in units of scaled pixels (0 to 1 with the default scale).
    std: one number, or one per channel, in the same unit.
    scale: the factor of pixels, which are 0 to 255.
    resize: how images are brought to the input's size before (`pictures.RESIZES`); "" where nothing says it.
  """

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  scale: float = 1 / 255
  resize: str = ""


NAMES = tuple(field.name for field in fields(Preprocess))
UNIT = Preprocess()  # pixels from 0 to 1
AS_IT_IS = Preprocess(scale=1.0)  # inputs that are no pixels


def normalise(
  images: Num[Array, "..."], spec: Preprocess, dtype: jax.typing.DTypeLike = jnp.float32
) -> Num[Array, "..."]:
  """Applies the preprocessing inside jit: one multiplication and one addition in float32, then a cast to `dtype`.

  Inputs that are int32, such as tokens, stay as they are.
  """
  if images.dtype == jnp.int32:
    return images
  std = np.asarray(spec.std, np.float64)
  factor = jnp.asarray(spec.scale / std, jnp.float32)
  offset = jnp.asarray(-np.asarray(spec.mean, np.float64) / std, jnp.float32)
  return (images.astype(jnp.float32) * factor + offset).astype(dtype)


def measure(split: Split, scale: float = 1 / 255) -> Preprocess:
  """Returns the preprocessing that gives a split mean 0 and deviation 1 per channel, computed in integers.

  Measure the training split and save the result with the model; the other splits use the same numbers.

  Raises:
    UserError: a channel is constant, with deviation 0.
  """
  if not split.has_pictures:
    raise UserError(f"{split.name}: its inputs are {split.images.dtype}; expected uint8 pixels to measure")
  channels = split.images.shape[-1]
  means, deviations = [], []
  for channel in range(channels):
    counts = np.bincount(split.images[..., channel].ravel(), minlength=256)
    total = int(counts.sum())
    first = int((counts * np.arange(256)).sum())
    second = int((counts * np.arange(256) ** 2).sum())
    variance = (total * second - first * first) / (total * total)
    if variance == 0:
      raise UserError(
        f"{split.name}: channel {channel} is the same in every pixel, so it cannot be scaled to deviation 1"
      )
    means.append(first / total * scale)
    deviations.append(variance**0.5 * scale)
  return Preprocess(tuple(means), tuple(deviations), scale)


def to_json(spec: Preprocess) -> dict[str, Any]:
  """Returns plain data for a model's file."""
  found = {"mean": list(spec.mean), "std": list(spec.std), "scale": spec.scale}
  return {**found, "resize": spec.resize} if spec.resize else found


def from_json(data: dict[str, Any]) -> Preprocess:
  """Reads the preprocessing from a model's file or a config.

  Raises:
    UserError: an unknown key, a list that is not one of numbers, a deviation that is not positive, or no way to resize.
  """
  for key in data:
    if key not in NAMES:
      raise unknown("preprocessing key", key, NAMES)
  resize = data.get("resize", "")
  if resize and resize not in RESIZES:
    raise unknown("way of 'resize'", resize, RESIZES)
  numbers = {key: value for key, value in data.items() if key != "resize"}
  try:
    values = {key: tuple(map(float, np.atleast_1d(value))) for key, value in numbers.items()}
  except (TypeError, ValueError, OverflowError) as error:
    raise UserError(f"preprocessing {data!r} must hold numbers: mean and std lists, scale one number") from error
  scale = values.pop("scale", (UNIT.scale,))
  spec = Preprocess(**values, scale=(*scale, 0.0)[0], resize=resize)
  if len(scale) != 1 or not (spec.mean and spec.std) or not all(value > 0 for value in (*scale, *spec.std)):
    raise UserError(f"preprocessing {data!r}: scale and every std must be positive, scale one number")
  return spec
