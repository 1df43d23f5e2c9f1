"""The step from raw images to a network's input, which every file format stores in the file."""

import json
import math
from typing import NamedTuple

import numpy as np

from leanax.core.errors import UserError


class Preprocessing(NamedTuple):
  """The step from raw images to the input: (x * scale - mean) / std, with one mean and std for all or per channel."""

  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  scale: float = 1 / 255

  def apply(self, images: np.ndarray) -> np.ndarray:
    """Returns (N, H, W, C) raw images as float32 inputs: one float32 product and one sum per pixel."""
    factor, offset = self.affine()
    return images.astype(np.float32) * factor + offset

  def affine(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the offset of pixels, float32 (1,) or (C,)."""
    std = np.asarray(self.std, np.float64)
    factor, offset = self.scale / std, -np.asarray(self.mean, np.float64) / std
    return factor.astype(np.float32), offset.astype(np.float32)

  def to_json(self) -> bytes:
    """Returns the bytes that a file stores."""
    return json.dumps({"preprocessing": self._asdict()}, separators=(",", ":")).encode()

  @classmethod
  def from_json(cls, content: bytes) -> "Preprocessing":
    """Returns what `to_json` stored.

    Raises:
      UserError: something else.
    """
    try:
      given = json.loads(content)["preprocessing"]
      found = cls(tuple(map(float, given["mean"])), tuple(map(float, given["std"])), float(given["scale"]))
    except (ValueError, TypeError, KeyError):
      raise UserError("the preprocessing is not that of a file; expected JSON with mean, std and scale") from None
    if not all(map(math.isfinite, (*found.mean, *found.std, found.scale))) or 0 in found.std:
      raise UserError(f"the preprocessing {found} is not finite or divides by 0")
    return found
