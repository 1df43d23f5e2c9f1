"""Random changes of colour inside jit, on uint8 pixels in integers, so that every program and device has the same bits.

The changes are those of torchvision's ColorJitter: brightness, contrast and saturation blend an image with black, with
the mean of its grey and with its grey, by a factor from [max(0, 1 - amount), 1 + amount]; hue turns the hue of HSV by a
share of the circle from [-amount, amount]. Unlike there the order is fixed, as named here; factors are multiples of
1/4096, and results are rounded to the nearest level. Grey is (19595 R + 38470 G + 7471 B) / 65536, rounded, as pillow
has it, whose ImageEnhance computes the same blends.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int32, Key, UInt8

from leanax.engine.data.draws import below

ONE = 4096  # the unit of factors, and a sixth of the circle of hues


def brightness(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"], amount: float) -> UInt8[Array, "b h w c"]:
  """Blends with black."""
  return blend(images, jnp.zeros((), jnp.int32), factors(keys, amount))


def contrast(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"], amount: float) -> UInt8[Array, "b h w c"]:
  """Blends with the mean of an image's grey, rounded."""
  pixels = images.shape[1] * images.shape[2]
  mean = (2 * grey(images).sum((1, 2, 3), keepdims=True) + pixels) // (2 * pixels)
  return blend(images, mean, factors(keys, amount))


def saturation(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"], amount: float) -> UInt8[Array, "b h w c"]:
  """Blends with an image's grey."""
  return blend(images, grey(images), factors(keys, amount))


def hue(keys: Key[Array, "b"], images: UInt8[Array, "b h w 3"], amount: float) -> UInt8[Array, "b h w 3"]:
  """Turns the hue by a share of the circle."""
  most = round(6 * ONE * amount)
  return turn(images, below(keys, (2 * most + 1,))[:, 0] - most)


def factors(keys: Key[Array, "b"], amount: float) -> Int32[Array, "b"]:
  """Returns uniform factors from [max(0, 1 - amount), 1 + amount], in units of 1/4096."""
  low, high = round(ONE * max(0.0, 1 - amount)), round(ONE * (1 + amount))
  return below(keys, (high - low + 1,))[:, 0] + low


def blend(images: UInt8[Array, "b h w c"], other: Array, factor: Int32[Array, "b"]) -> UInt8[Array, "b h w c"]:
  """Returns `factor * images + (1 - factor) * other`, rounded and clipped; `other` is int32."""
  share = factor[:, None, None, None]
  mixed = (share * images.astype(jnp.int32) + (ONE - share) * other + ONE // 2) // ONE
  return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def grey(images: UInt8[Array, "b h w c"]) -> Int32[Array, "b h w 1"]:
  """Returns the grey of images with three channels; of one channel the image."""
  x = images.astype(jnp.int32)
  if images.shape[-1] == 1:
    return x
  return (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:] + 32768) >> 16


def turn(images: UInt8[Array, "b h w 3"], steps: Int32[Array, "b"]) -> UInt8[Array, "b h w 3"]:
  """Turns the hue by `steps` of 1/24576 of the circle; 0 changes no pixel."""
  red, green, blue = (images[..., channel].astype(jnp.int32) for channel in range(3))
  top = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = top - jnp.minimum(jnp.minimum(red, green), blue)
  difference = jnp.where(top == red, green - blue, jnp.where(top == green, blue - red, red - green))
  sector = jnp.where(top == red, 0, jnp.where(top == green, 2, 4)) * ONE
  most = jnp.maximum(chroma, 1)  # a grey pixel has no hue, and its chroma of 0 keeps it
  place = sector + (2 * ONE * difference + most) // (2 * most) + steps[:, None, None]
  turned = []
  for start in (5, 3, 1):  # of red, green, blue: the standard formula from hue, chroma and value
    along = (place + start * ONE) % (6 * ONE)
    less = jnp.clip(jnp.minimum(along, 4 * ONE - along), 0, ONE)
    turned.append(top - (chroma * less + ONE // 2) // ONE)
  return jnp.stack(turned, axis=-1).astype(jnp.uint8)
