"""Random changes of images inside jit, as functions of (augmentation seed, view, example id) and of nothing else.

So a teacher's outputs for (example, view) can be stored, a batch that is split over devices is the same batch, and a
resumed run sees the same pixels. A view is one random version of the whole set: the epoch, or one of a few when they
are reused. Each kind of change has a random stream of its own: switching one on does not alter another.

Crops and flips move stored uint8 pixels without changing them; mixup (H. Zhang et al., "mixup: Beyond Empirical Risk
Minimization", ICLR 2018) works on normalised ones. Where we differ from its paper: the partner is drawn from the whole
training split by the example's id, not from the same batch, since a batch's other members are not a function of the id.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key, UInt8

from leanax.core.errors import UserError, unknown
from leanax.core.keys import example_keys, step_key

FILLS = {"zero": "constant", "edge": "edge", "reflect": "reflect"}


@dataclass(frozen=True)
class Augment:
  """What is done to training images, in this order; the default does nothing.

  Attributes:
    crop: pad every side by so many pixels, then cut the old size out at a random place.
    shift: move by up to (rows, columns) pixels: a crop whose two directions differ.
    flip: mirror left and right with probability one half.
    mixup: alpha of Beta(alpha, alpha); 0 is no mixup.
    fill: what lies beyond an image's border: "zero", "edge" or "reflect".
    seed: of all of it.
    views: how many random versions there are, reused epoch after epoch; None gives each epoch its own.
  """

  crop: int = 0
  shift: tuple[int, int] = (0, 0)
  flip: bool = False
  mixup: float = 0.0
  fill: str = "zero"
  seed: int = 0
  views: int | None = None


NOTHING = Augment()


def check(spec: Augment, shape: tuple[int, ...]) -> None:
  """Refuses what cannot be done to images of `shape` (height, width, channels).

  Raises:
    UserError: names the entry.
  """
  if spec.fill not in FILLS:
    raise unknown("augment.fill", spec.fill, FILLS)
  for key, amounts in (("crop", (spec.crop, spec.crop)), ("shift", spec.shift)):
    if not all(0 <= amount < size for amount, size in zip(amounts, shape[:2])):
      raise UserError(
        f"augment.{key} is {getattr(spec, key)}; expected 0 to below the images' {shape[0]}x{shape[1]} pixels"
      )
  if spec.mixup < 0:
    raise UserError(f"augment.mixup is {spec.mixup}; expected a number from 0.0")
  if spec.views is not None and spec.views < 1:
    raise UserError(f"augment.views is {spec.views}; expected at least 1, or None for a new view each epoch")


def keys_of(
  seed: int | Int[Array, ""], view: int | Int[Array, ""], ids: Int[Array, "b"], stream: str
) -> Key[Array, "b"]:
  """One key an example for one kind of change."""
  return example_keys(step_key(seed, view, f"augment/{stream}"), ids)


def random_window(
  keys: Key[Array, "b"], images: UInt8[Array, "b h w c"], pad: tuple[int, int], fill: str = "zero"
) -> UInt8[Array, "b h w c"]:
  """Pads by (rows, columns) on both sides and cuts the old size out; all (2 pad + 1)^2 places are equally likely."""
  rows, columns = pad
  padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode=FILLS[fill])
  starts = _below(keys, (2 * rows + 1, 2 * columns + 1))
  return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:]))(
    padded, starts
  )


def random_flip(keys: Key[Array, "b"], images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
  """Mirrors half of the images left and right."""
  mirrored = _below(keys, (2,))[:, 0] == 1
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _below(keys: Key[Array, "b"], bounds: tuple[int, ...]) -> Int32[Array, "b n"]:
  """Whole numbers from 0 to below each bound (at most 2^16): the upper 16 bits of a word, multiplied and shifted.

  A value's probability is off by at most 2^-16, and it takes half the time of `jax.random.randint`.
  """
  words = jax.vmap(lambda key: jax.random.bits(key, (len(bounds),), jnp.uint32))(keys) >> 16
  return ((words * jnp.asarray(bounds, jnp.uint32)) >> 16).astype(jnp.int32)


def move(
  images: UInt8[Array, "b h w c"], ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment
) -> UInt8[Array, "b h w c"]:
  """Crop, shift and flip of these examples in this view."""
  if spec.crop:
    images = random_window(keys_of(spec.seed, view, ids, "crop"), images, (spec.crop, spec.crop), spec.fill)
  if any(spec.shift):
    images = random_window(keys_of(spec.seed, view, ids, "shift"), images, spec.shift, spec.fill)
  if spec.flip:
    images = random_flip(keys_of(spec.seed, view, ids, "flip"), images)
  return images


def mixup_draw(
  ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment, examples: int
) -> tuple[Int32[Array, "b"], Float[Array, "b"]]:
  """Whom each example is mixed with, and how much of itself it keeps.

  Returns:
    (B,) rows of the training split, uniform over its `examples`; (B,) weights in [0, 1], Beta(alpha, alpha).
  """
  rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, examples))(keys_of(spec.seed, view, ids, "partner"))
  alpha = jnp.float32(spec.mixup)
  weights = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys_of(spec.seed, view, ids, "mixup"))
  return rows, weights


def mix(
  images: Float[Array, "b h w c"], others: Float[Array, "b h w c"], weights: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
  """`weights * images + (1 - weights) * others`."""
  weights = weights[:, None, None, None].astype(images.dtype)
  return weights * images + (1 - weights) * others
