"""The step from raw images to a network's input, which every file format stores in the file."""

import json
import math
from typing import NamedTuple

import numpy as np

from leanax.core.errors import UserError

RESIZES = ("stretch", "crop", "pad")


class Preprocessing(NamedTuple):
  """The step from raw images to the input: (x * scale - mean) / std, with one mean and std for all or per channel.

  Attributes:
    mean: one number, or one per channel.
    std: likewise.
    scale: the factor of pixels.
    resize: how images were brought to the input's size before, "stretch", "crop" or "pad", by pillow's bilinear filter,
      `Image.resize`, `ImageOps.fit` and `ImageOps.pad` with black; "" where nothing says it. `apply` does not do it.
  """

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  scale: float = 1 / 255
  resize: str = ""

  def apply(self, images: np.ndarray) -> np.ndarray:
    """Returns (N, H, W, C) raw images as float32 inputs: one float32 product and one sum per pixel."""
    factor, offset = self.affine()
    return images.astype(np.float32) * factor + offset

  def affine(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the offset of pixels, float32 (1,) or (C,).

    Raises:
      UserError: a number is not finite, or std is 0 or negative.
    """
    numbers = [np.atleast_1d(np.asarray(value, np.float64)) for value in (self.mean, self.std, self.scale)]
    mean, std, scale = numbers
    if not all(np.isfinite(one).all() for one in numbers) or (std <= 0).any() or (scale == 0).any():
      raise UserError(
        f"{self} makes no inputs of pixels; expected finite numbers, std above 0 and a scale that is not 0"
      )
    factor, offset = scale / std, -mean / std
    return factor.astype(np.float32), offset.astype(np.float32)

  def to_json(self) -> bytes:
    """Returns the bytes that a file stores."""
    given = {key: value for key, value in self._asdict().items() if key != "resize" or value}
    return json.dumps({"preprocessing": given}, separators=(",", ":")).encode()

  @classmethod
  def from_json(cls, content: bytes) -> "Preprocessing":
    """Returns what `to_json` stored.

    Raises:
      UserError: something else.
    """
    try:
      given = json.loads(content)["preprocessing"]
      found = cls(tuple(map(float, given["mean"])), tuple(map(float, given["std"])), float(given["scale"]))
      found = found._replace(resize=given.get("resize", ""))
    except (ValueError, TypeError, KeyError, AttributeError):
      raise UserError("the preprocessing is not that of a file; expected JSON with mean, std and scale") from None
    if found.resize not in ("", *RESIZES):
      raise UserError(f"the preprocessing resizes by {found.resize!r}; expected one of {', '.join(RESIZES)}")
    if not all(map(math.isfinite, (*found.mean, *found.std, found.scale))) or 0 in found.std:
      raise UserError(f"the preprocessing {found} is not finite or divides by 0")
    return found
