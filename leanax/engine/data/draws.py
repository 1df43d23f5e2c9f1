"""Random numbers of examples: one key per example and kind of change, whole numbers, and boxes of an image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from leanax.core.keys import example_keys, step_key

TRIES = 10  # of a box, as in torchvision


class Boxes(NamedTuple):
  """A box of each image, in whole pixels.

  Attributes:
    top: (B,) first row.
    left: (B,) first column.
    height: (B,) rows; 0 for an empty box.
    width: (B,) columns.
  """

  top: Int32[Array, "b"]
  left: Int32[Array, "b"]
  height: Int32[Array, "b"]
  width: Int32[Array, "b"]

  def inside(self, height: int, width: int) -> Bool[Array, "b h w 1"]:
    """Returns the bools of the pixels in the boxes."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    down = (rows >= self.top[:, None]) & (rows < (self.top + self.height)[:, None])
    across = (columns >= self.left[:, None]) & (columns < (self.left + self.width)[:, None])
    return (down[:, :, None] & across[:, None, :])[..., None]


def keys_of(
  seed: int | Int[Array, ""], view: int | Int[Array, ""], ids: Int[Array, "b"], stream: str
) -> Key[Array, "b"]:
  """Returns one key per example for one kind of change."""
  return example_keys(step_key(seed, view, f"augment/{stream}"), ids)


def below(keys: Key[Array, "b"], bounds: tuple[int, ...]) -> Int32[Array, "b n"]:
  """Returns random integers from 0 to below each bound (at most 2^16): the upper 16 bits, multiplied and shifted.

  A value's probability is off by at most 2^-16; this takes half the time of `jax.random.randint`.
  """
  words = jax.vmap(lambda key: jax.random.bits(key, (len(bounds),), jnp.uint32))(keys) >> 16
  return ((words * jnp.asarray(bounds, jnp.uint32)) >> 16).astype(jnp.int32)


def boxes(
  keys: Key[Array, "b"], shape: tuple[int, ...], area: tuple[float, ...], ratio: tuple[float, ...]
) -> tuple[Boxes, Bool[Array, "b"]]:
  """Returns random boxes as torchvision's RandomResizedCrop draws them, and whether one was found.

  The area is uniform, as a share of the image's, and so is the logarithm of width over height; both sides are rounded.
  The first of ten tries that fits is at a uniformly random place.

  Args:
    keys: one per example.
    shape: (height, width) of the images.
    area: its (least, largest) share.
    ratio: the (least, largest) width over height.
  """
  height, width = shape
  drawn = jax.vmap(lambda key: jax.random.uniform(key, (2 * TRIES + 2,)))(keys)
  areas = height * width * (area[0] + (area[1] - area[0]) * drawn[:, :TRIES])
  low, high = (jnp.log(jnp.float32(number)) for number in ratio)
  ratios = jnp.exp(low + (high - low) * drawn[:, TRIES : 2 * TRIES])
  rows, columns = _whole(jnp.sqrt(areas / ratios)), _whole(jnp.sqrt(areas * ratios))
  fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
  first = jnp.argmax(fits, axis=1)[:, None]
  rows, columns = (jnp.take_along_axis(sides, first, axis=1)[:, 0] for sides in (rows, columns))
  top, left = _place(drawn[:, -2], height - rows), _place(drawn[:, -1], width - columns)
  return Boxes(top, left, rows, columns), fits.any(1)


def _whole(numbers: Float[Array, "..."]) -> Int32[Array, "..."]:
  return jnp.round(numbers).astype(jnp.int32)


def _place(drawn: Float[Array, "b"], most: Int32[Array, "b"]) -> Int32[Array, "b"]:
  """Returns whole numbers from 0 to `most` of uniform ones in [0, 1)."""
  return jnp.minimum((drawn * (most + 1).astype(jnp.float32)).astype(jnp.int32), most)
