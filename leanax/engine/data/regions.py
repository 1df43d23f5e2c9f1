"""Random changes of regions of images inside jit: resized crops, erased boxes, and boxes from another image.

- A resized crop (C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6, as in torchvision) is cut
  out and stretched to the image's own size, bilinearly, in integers. It only becomes larger, so that there is nothing
  to antialias; pixels beyond the crop are not read.
- Random erasing (Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020) fills a box.
- CutMix (S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
  2019, equations 1 and 2) pastes a box of another image. The label's weight is the share of pixels that are left, after
  the box is cut off at the border.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key, UInt8

from leanax.engine.data.draws import Boxes, below, boxes

UNIT = 2048  # of the weights of a pixel's neighbours


def resized_crop(
  keys: Key[Array, "b"], images: UInt8[Array, "b h w c"], area: tuple[float, ...], ratio: tuple[float, ...]
) -> UInt8[Array, "b h w c"]:
  """Cuts a random box out of each image and stretches it to the image's size.

  Where no box fits, it is the largest centred one of the nearest ratio.

  Args:
    keys: one per image.
    images: (B, H, W, C).
    area: (least, largest) share of the image's area.
    ratio: (least, largest) width over height.
  """
  height, width = images.shape[1:3]
  drawn, found = boxes(keys, (height, width), area, ratio)
  wanted = min(max(width / height, ratio[0]), ratio[1])
  rows, columns = min(height, round(width / wanted)), min(width, round(height * wanted))
  centred = ((height - rows) // 2, (width - columns) // 2, rows, columns)
  return stretched(images, Boxes(*(jnp.where(found, one, other) for one, other in zip(drawn, centred, strict=True))))


def stretched(images: UInt8[Array, "b h w c"], box: Boxes) -> UInt8[Array, "b h w c"]:
  """Returns each image's box stretched to the image's size, bilinearly, rounded to the nearest level."""
  height, width = images.shape[1:3]

  def one(image: UInt8[Array, "h w c"], box: Boxes) -> UInt8[Array, "h w c"]:
    (low, high, share), (left, right, part) = (
      _between(box.top, box.height, height),
      _between(box.left, box.width, width),
    )
    x = image.astype(jnp.int32)
    x = (UNIT - share)[:, None, None] * x[low] + share[:, None, None] * x[high]
    x = (UNIT - part)[:, None] * x[:, left] + part[:, None] * x[:, right]
    return ((x + UNIT * UNIT // 2) // (UNIT * UNIT)).astype(jnp.uint8)

  return jax.vmap(one)(images, box)


def _between(
  start: Int32[Array, ""], size: Int32[Array, ""], length: int
) -> tuple[Int32[Array, "n"], Int32[Array, "n"], Int32[Array, "n"]]:
  """Returns the two source pixels of each of `length` results along one axis, and the weight of the second one.

  The centre of result i is that of the source at (i + 1/2) size / length - 1/2.
  """
  place = (2 * jnp.arange(length, dtype=jnp.int32) + 1) * size - length  # in units of 1 / (2 length)
  first = place // (2 * length)
  share = (place - first * 2 * length) * UNIT // (2 * length)
  return start + jnp.maximum(first, 0), start + jnp.minimum(first + 1, size - 1), share


def _mean(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b 1 1 c"]:
  pixels = images.shape[1] * images.shape[2]
  return ((2 * images.astype(jnp.int32).sum((1, 2), keepdims=True) + pixels) // (2 * pixels)).astype(jnp.uint8)


def _noise(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  return jax.vmap(lambda key: jax.random.bits(key, images.shape[1:], jnp.uint8))(keys)


ERASERS: dict[str, Callable[..., UInt8[Array, "..."]]] = {
  "zero": lambda keys, images: jnp.zeros((1, 1, 1, 1), jnp.uint8),
  "mean": _mean,  # the mean colour of the image, rounded
  "random": _noise,  # a random level for each pixel and channel
}


def erased(
  keys: Key[Array, "b"],
  images: UInt8[Array, "b h w c"],
  probability: float,
  area: tuple[float, ...],
  ratio: tuple[float, ...],
  fill: str,
) -> UInt8[Array, "b h w c"]:
  """Fills a random box of an image, by chance.

  Args:
    keys: one per image.
    images: (B, H, W, C).
    probability: that there is a box; where none of ten tries fits, there is none either.
    area: (least, largest) share of the image's area.
    ratio: (least, largest) width over height.
    fill: of `ERASERS`.
  """
  placed, chance, filled = (jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(3))
  box, found = boxes(placed, images.shape[1:3], area, ratio)
  some = found & (below(chance, (2**16,))[:, 0] < round(probability * 2**16))
  inside = box.inside(*images.shape[1:3]) & some[:, None, None, None]
  return jnp.where(inside, ERASERS[fill](filled, images), images)


def cut_boxes(keys: Key[Array, "b"], shape: tuple[int, ...], alpha: float) -> Boxes:
  """Returns CutMix's boxes: sides of sqrt(1 - lambda) of the image's, lambda of Beta(alpha, alpha), any centre."""
  height, width = shape

  def one(key: Key[Array, ""]) -> Boxes:
    size, place = jax.random.split(key)
    share = jnp.sqrt(1 - jax.random.beta(size, jnp.float32(alpha), jnp.float32(alpha)))
    centre = jax.random.uniform(place, (2,))
    ends = []
    for middle, side in zip(centre, (height, width), strict=True):
      half = share * side / 2
      start, stop = (jnp.clip(jnp.round(middle * side + edge), 0, side).astype(jnp.int32) for edge in (-half, half))
      ends.append((start, stop - start))
    return Boxes(ends[0][0], ends[1][0], ends[0][1], ends[1][1])

  return jax.vmap(one)(keys)
