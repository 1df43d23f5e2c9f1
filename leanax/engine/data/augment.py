"""Random augmentation of images inside jit, a function of (augmentation seed, view, example id) only.

A teacher's outputs for (example, view) can therefore be stored, a batch does not depend on the number of devices, and a
resumed run sees the same pixels. A view is one random version of the whole set: one per epoch, or a fixed number that
is reused. Each kind of change has its own random stream: enabling one does not alter another.

Crops and flips move uint8 pixels; mixup (H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018) works
on normalised ones. Unlike in the paper, the partner is drawn from the whole training split by the example's id, not
from the same batch, whose other members are not a function of the id.
"""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key, Num, UInt8

from leanax.core.errors import UserError, unknown
from leanax.core.keys import example_keys, step_key

FILLS = {"zero": "constant", "edge": "edge", "reflect": "reflect"}


@dataclass(frozen=True)
class Augment:
  """The changes of training images, in order; none by default.

  Attributes:
    crop: pad every side by this many pixels, then crop the original size at a random place.
    shift: move by up to (rows, columns) pixels: a crop with different padding per direction.
    flip: mirror left and right with probability one half.
    mixup: alpha of Beta(alpha, alpha); 0 is no mixup.
    fill: the padding: "zero", "edge" or "reflect".
    seed: of all random changes.
    views: number of random versions, reused epoch after epoch; None gives each epoch its own.
  """

  crop: int = 0
  shift: tuple[int, int] = (0, 0)
  flip: bool = False
  mixup: float = 0.0
  fill: str = "zero"
  seed: int = 0
  views: int | None = None


NOTHING = Augment()


# Changes that labels of positions follow; all others are of images whose labels have no places.
FOLLOWED = ("crop", "shift", "flip", "mixup", "fill", "seed", "views")


def check_labels(spec: Augment, followed: bool, padding: int | None, mixable: bool) -> None:
  """Refuses changes of images that their labels cannot follow.

  Args:
    spec: the changes.
    followed: whether labels have places, which move with the pixels.
    padding: the label of what lies beyond the border; None where nothing says it.
    mixable: whether labels are classes, or 0 and 1, of one output.

  Raises:
    UserError: names the entry.
  """
  if spec.mixup and not mixable:
    raise UserError(
      f"augment.mixup is {spec.mixup}, and labels are floats or of several outputs, which no loss mixes; expected 0.0"
    )
  if not followed:
    return
  for field in fields(spec):
    if field.name not in FOLLOWED and getattr(spec, field.name) != getattr(NOTHING, field.name):
      raise UserError(
        f"augment.{field.name} is {getattr(spec, field.name)}, which labels of positions do not follow; expected "
        "crop, shift, flip or mixup"
      )
  if (spec.crop or any(spec.shift)) and spec.fill == "zero" and padding is None:
    key = "crop" if spec.crop else "shift"
    raise UserError(
      f"augment.{key} is {getattr(spec, key)}, and nothing says which label of a position the zeros beyond the border "
      "have; expected 'ignore_label' in a term of the objective, or 'augment.fill' to be 'edge' or 'reflect'"
    )


def check(spec: Augment, shape: tuple[int, ...]) -> None:
  """Refuses an augmentation that does not fit images of `shape` (height, width, channels).

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
  """Returns one key per example for one kind of change."""
  return example_keys(step_key(seed, view, f"augment/{stream}"), ids)


def random_window(
  keys: Key[Array, "b"], images: Num[Array, "b h w c"], pad: tuple[int, int], fill: str = "zero", padding: int = 0
) -> Num[Array, "b h w c"]:
  """Pads by (rows, columns) on both sides and crops the original size at a uniformly random place.

  `padding` is the number that "zero" fills in.
  """
  rows, columns = pad
  constant = {"constant_values": padding} if padding and fill == "zero" else {}
  padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode=FILLS[fill], **constant)
  starts = _below(keys, (2 * rows + 1, 2 * columns + 1))
  return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:]))(
    padded, starts
  )


def random_flip(keys: Key[Array, "b"], images: Num[Array, "b h w c"]) -> Num[Array, "b h w c"]:
  """Mirrors half of the images left and right."""
  mirrored = _below(keys, (2,))[:, 0] == 1
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _below(keys: Key[Array, "b"], bounds: tuple[int, ...]) -> Int32[Array, "b n"]:
  """Returns random integers from 0 to below each bound (at most 2^16): the upper 16 bits, multiplied and shifted.

  A value's probability is off by at most 2^-16; this takes half the time of `jax.random.randint`.
  """
  words = jax.vmap(lambda key: jax.random.bits(key, (len(bounds),), jnp.uint32))(keys) >> 16
  return ((words * jnp.asarray(bounds, jnp.uint32)) >> 16).astype(jnp.int32)


def move(
  images: UInt8[Array, "b h w c"], ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment
) -> UInt8[Array, "b h w c"]:
  """Crops, shifts and flips examples for one view."""
  if spec.crop:
    images = random_window(keys_of(spec.seed, view, ids, "crop"), images, (spec.crop, spec.crop), spec.fill)
  if any(spec.shift):
    images = random_window(keys_of(spec.seed, view, ids, "shift"), images, spec.shift, spec.fill)
  if spec.flip:
    images = random_flip(keys_of(spec.seed, view, ids, "flip"), images)
  return images


def follow(
  labels: Num[Array, "b h w c"], ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment, padding: int = 0
) -> Num[Array, "b h w c"]:
  """Returns labels of places, moved as `move` moves the pixels there; `padding` is the label that "zero" fills in."""
  for stream, pad in (("crop", (spec.crop, spec.crop)), ("shift", spec.shift)):
    if any(pad):
      labels = random_window(keys_of(spec.seed, view, ids, stream), labels, pad, spec.fill, padding)
  return random_flip(keys_of(spec.seed, view, ids, "flip"), labels) if spec.flip else labels


def mixup_draw(
  ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment, examples: int
) -> tuple[Int32[Array, "b"], Float[Array, "b"]]:
  """Draws mixup's partner and weight of each example.

  Returns:
    (B,) partners, rows of the training split, uniform over its `examples`; (B,) weights of the example itself, in
    [0, 1], Beta(alpha, alpha).
  """
  rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, examples))(keys_of(spec.seed, view, ids, "partner"))
  alpha = jnp.float32(spec.mixup)
  weights = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys_of(spec.seed, view, ids, "mixup"))
  return rows, weights


def mix(
  images: Float[Array, "b h w c"], others: Float[Array, "b h w c"], weights: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
  """Returns `weights * images + (1 - weights) * others`."""
  weights = weights[:, None, None, None].astype(images.dtype)
  return weights * images + (1 - weights) * others
