"""Random augmentation of images inside jit, a function of (augmentation seed, view, example id) only.

A teacher's outputs for (example, view) can therefore be stored, a batch does not depend on the number of devices, and a
resumed run sees the same pixels. A view is one random version of the whole set: one per epoch, or a fixed number that
is reused. Each kind of change has its own random stream: enabling one does not alter another.

Changes of places and colours (`regions`, `colour`) are of uint8 pixels, in integers; mixup (H. Zhang et al., "mixup:
Beyond Empirical Risk Minimization", ICLR 2018) and CutMix work on normalised ones. Unlike in the papers, the partner is
drawn from the whole training split by the example's id, not from the same batch, whose other members are not a function
of the id. Where both are on, each example of a view has one of them, with probability one half.
"""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key, Num, UInt8

from leanax.core import imports, ranges
from leanax.core.errors import UserError, unknown
from leanax.engine.data import colour, regions
from leanax.engine.data.draws import Boxes, below, keys_of

FILLS = {"zero": "constant", "edge": "edge", "reflect": "reflect"}


@dataclass(frozen=True)
class Augment:
  """The changes of training images, in the order in which they are made; none by default.

  Attributes:
    resized_crop: (least, largest) share of the area of a random crop, which is stretched to the image's size; () none.
    resized_crop_ratio: its (least, largest) width over height.
    crop: pad every side by this many pixels, then crop the original size at a random place.
    shift: move by up to (rows, columns) pixels: a crop with different padding per direction.
    flip: mirror left and right with probability one half.
    brightness: factors from [max(0, 1 - brightness), 1 + brightness]; 0 for no change.
    contrast: likewise.
    saturation: likewise, of images with three channels.
    hue: turn by up to this share of the circle of hues, at most 0.5, of images with three channels.
    erase: probability that a random box is filled.
    erase_area: (least, largest) share of its area.
    erase_ratio: its (least, largest) width over height.
    erase_fill: "zero", "mean" or "random".
    function: import path of a user's own change, `function(keys (B,), images (B, H, W, C) uint8, **keywords) ->
      images`, one image at a time: each from its key alone; "" for none.
    keywords: ((name, value), ...) of it.
    mixup: alpha of Beta(alpha, alpha); 0 is no mixup.
    cutmix: likewise, of CutMix.
    fill: the padding of `crop` and `shift`: "zero", "edge" or "reflect".
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
  resized_crop: tuple[float, ...] = ()
  resized_crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  erase: float = 0.0
  erase_area: tuple[float, ...] = (0.02, 0.33)
  erase_ratio: tuple[float, ...] = (0.3, 3.3)
  erase_fill: str = "zero"
  cutmix: float = 0.0
  function: str = ""
  keywords: tuple[tuple[str, Any], ...] = ()

  @property
  def mixes(self) -> bool:
    """Returns whether examples are mixed with others."""
    return bool(self.mixup or self.cutmix)

  @property
  def is_still(self) -> bool:
    """Returns whether there is no change, so that all views are equal."""
    return not changed(self)


NOTHING = Augment()
# Keys that change nothing by themselves.
SETTINGS = ("fill", "seed", "views", "resized_crop_ratio", "erase_area", "erase_ratio", "erase_fill", "keywords")
COLOURS: dict[str, Callable[..., UInt8[Array, "b h w c"]]] = {
  "brightness": colour.brightness,
  "contrast": colour.contrast,
  "saturation": colour.saturation,
  "hue": colour.hue,
}
NUMBERS = {
  "mixup": ranges.NOT_NEGATIVE,
  "cutmix": ranges.NOT_NEGATIVE,
  "erase": ranges.SHARE,
  **dict.fromkeys(
    ("brightness", "contrast", "saturation"), ranges.Range("a number from 0 to 10", lambda x: 0 <= x <= 10)
  ),
  "hue": ranges.Range("a number from 0 to 0.5", lambda x: 0 <= x <= 0.5),
}
AREA = ranges.Range("(least, largest) share of the area, above 0 to 1", lambda x: 0 < x <= 1)
RATIO = ranges.Range("(least, largest) width over height, above 0", ranges.POSITIVE.has)
PAIRS = {  # the key that makes a pair count, and its numbers
  "resized_crop": ("resized_crop", AREA),
  "resized_crop_ratio": ("resized_crop", RATIO),
  "erase_area": ("erase", AREA),
  "erase_ratio": ("erase", RATIO),
}


# Changes that move no pixel elsewhere than `follow` moves its label; others are of images whose labels have no places.
FOLLOWED = (*COLOURS, "crop", "shift", "flip", "mixup")


def changed(spec: Augment) -> list[str]:
  """Returns the keys of the changes that a spec makes."""
  keys = [field.name for field in fields(spec) if field.name not in SETTINGS]
  return [key for key in keys if getattr(spec, key) != getattr(NOTHING, key)]


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
  for key in changed(spec):
    if key in ("mixup", "cutmix") and not mixable:
      raise UserError(
        f"augment.{key} is {getattr(spec, key)}, and labels are floats or of several outputs, which no loss mixes; "
        "expected 0.0"
      )
    if followed and key not in FOLLOWED:
      raise UserError(
        f"augment.{key} is {getattr(spec, key)!r}, which labels of positions do not follow; expected "
        f"{', '.join(FOLLOWED[:-1])} or {FOLLOWED[-1]}"
      )
  if not followed:
    return
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
  for key, fills in (("fill", FILLS), ("erase_fill", regions.ERASERS)):
    if getattr(spec, key) not in fills:
      raise unknown(f"augment.{key}", getattr(spec, key), fills)
  for key, amounts in (("crop", (spec.crop, spec.crop)), ("shift", spec.shift)):
    if not all(0 <= amount < size for amount, size in zip(amounts, shape[:2])):
      raise UserError(
        f"augment.{key} is {getattr(spec, key)}; expected 0 to below the images' {shape[0]}x{shape[1]} pixels"
      )
  for key, expected in NUMBERS.items():
    ranges.check(f"augment.{key}", getattr(spec, key), expected)
  for key, channels in (("contrast", (1, 3)), ("saturation", (3,)), ("hue", (3,))):
    if getattr(spec, key) and shape[2] not in channels:
      wanted = " or ".join(map(str, channels))
      raise UserError(f"augment.{key} is {getattr(spec, key)}, of images with {shape[2]} channels; expected {wanted}")
  for key, (switch, expected) in PAIRS.items():
    pair = getattr(spec, key)
    if getattr(spec, switch) and not (len(pair) == 2 and all(map(expected.has, pair)) and pair[0] <= pair[1]):
      raise UserError(f"augment.{key} is {pair}; expected {expected.words}")
  try:
    hash(spec.keywords)
  except TypeError as error:
    raise UserError(
      f"augment.function has keywords {dict(spec.keywords)}; expected numbers, texts or tuples"
    ) from error
  if spec.function:
    check_function(spec, shape)
  if spec.views is not None and spec.views < 1:
    raise UserError(f"augment.views is {spec.views}; expected at least 1, or None for a new view each epoch")


def _own(spec: Augment) -> Callable[..., Any]:
  """Imports the user's function."""
  found = imports.found(spec.function, f"augment.function {spec.function!r}")
  if not callable(found) or isinstance(found, type):
    raise UserError(f"augment.function {spec.function!r} is no function; expected function(keys, images) -> images")
  return found


def check_function(spec: Augment, shape: tuple[int, ...]) -> None:
  """Traces the user's function on shapes of three images of `shape`.

  Raises:
    UserError: there is no such function, it does not take its keywords, it raises, or it does not return uint8 images
      of the same shape; with the user's own error and its line.
  """
  found, where = _own(spec), f"augment.function {spec.function!r}"
  images = jax.ShapeDtypeStruct((3, *shape), jnp.uint8)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
  with contextlib.suppress(ValueError):  # some callables have no signature
    try:
      inspect.signature(found).bind(keys, images, **dict(spec.keywords))
    except TypeError as error:
      given = ", ".join(["keys", "images", *(f"{name}=" for name, _ in spec.keywords)])
      raise UserError(f"{where} cannot be called as ({given}): {error}") from error
  try:
    made = jax.eval_shape(lambda keys, images: found(keys, images, **dict(spec.keywords)), keys, images)
  except Exception as error:  # the user's code may raise anything
    raise UserError(f"{where} cannot be traced: {imports.failure(error)}") from error
  shown = f"{getattr(made, 'dtype', type(made).__name__)} of shape {getattr(made, 'shape', None)}"
  if getattr(made, "shape", None) != images.shape or made.dtype != images.dtype:
    raise UserError(f"{where} returns {shown}; expected uint8 of shape {images.shape}, as its images")


def random_window(
  keys: Key[Array, "b"], images: Num[Array, "b h w c"], pad: tuple[int, int], fill: str = "zero", padding: int = 0
) -> Num[Array, "b h w c"]:
  """Pads by (rows, columns) on both sides and crops the original size at a uniformly random place.

  `padding` is the number that "zero" fills in.
  """
  rows, columns = pad
  constant = {"constant_values": padding} if padding and fill == "zero" else {}
  padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode=FILLS[fill], **constant)
  starts = below(keys, (2 * rows + 1, 2 * columns + 1))
  return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:]))(
    padded, starts
  )


def random_flip(keys: Key[Array, "b"], images: Num[Array, "b h w c"]) -> Num[Array, "b h w c"]:
  """Mirrors half of the images left and right."""
  mirrored = below(keys, (2,))[:, 0] == 1
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def move(
  images: UInt8[Array, "b h w c"], ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment
) -> UInt8[Array, "b h w c"]:
  """Makes the changes of examples for one view, all but mixing."""

  def keys(stream: str) -> Key[Array, "b"]:
    return keys_of(spec.seed, view, ids, stream)

  if spec.resized_crop:
    images = regions.resized_crop(keys("resized_crop"), images, spec.resized_crop, spec.resized_crop_ratio)
  if spec.crop:
    images = random_window(keys("crop"), images, (spec.crop, spec.crop), spec.fill)
  if any(spec.shift):
    images = random_window(keys("shift"), images, spec.shift, spec.fill)
  if spec.flip:
    images = random_flip(keys("flip"), images)
  for name, change in COLOURS.items():
    if getattr(spec, name):
      images = change(keys(name), images, getattr(spec, name))
  if spec.erase:
    images = regions.erased(keys("erase"), images, spec.erase, spec.erase_area, spec.erase_ratio, spec.erase_fill)
  if spec.function:
    images = _own(spec)(keys("function"), images, **dict(spec.keywords))
  return images


def follow(
  labels: Num[Array, "b h w c"], ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment, padding: int = 0
) -> Num[Array, "b h w c"]:
  """Returns labels of places, moved as `move` moves the pixels there; `padding` is the label that "zero" fills in."""
  for stream, pad in (("crop", (spec.crop, spec.crop)), ("shift", spec.shift)):
    if any(pad):
      labels = random_window(keys_of(spec.seed, view, ids, stream), labels, pad, spec.fill, padding)
  return random_flip(keys_of(spec.seed, view, ids, "flip"), labels) if spec.flip else labels


class Mixing(NamedTuple):
  """The mixing of each example with another one.

  Attributes:
    rows: (B,) partners, rows of the training split, uniform over its examples.
    weights: (B,) the label's share of the example itself, in [0, 1]; of CutMix the share of its pixels.
    shares: (B,) the share of its pixels in their sum with the partner's; 1 with CutMix.
    boxes: pixels of the partner alone, with CutMix; None without.
  """

  rows: Int32[Array, "b"]
  weights: Float[Array, "b"]
  shares: Float[Array, "b"]
  boxes: Boxes | None = None


def mix_draw(
  ids: Int[Array, "b"], view: int | Int[Array, ""], spec: Augment, examples: int, shape: tuple[int, ...]
) -> Mixing:
  """Draws the partners of examples, and how they are mixed.

  Args:
    ids: (B,) of the examples.
    view: the number of the view.
    spec: with mixup or CutMix.
    examples: of the training split.
    shape: (height, width) of its images.
  """
  rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, examples))(keys_of(spec.seed, view, ids, "partner"))
  weights = jnp.ones(ids.shape, jnp.float32)
  if spec.mixup:
    alpha = jnp.float32(spec.mixup)
    weights = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys_of(spec.seed, view, ids, "mixup"))
  if not spec.cutmix:
    return Mixing(rows, weights, weights)
  boxes = regions.cut_boxes(keys_of(spec.seed, view, ids, "cutmix"), shape, spec.cutmix)
  if spec.mixup:  # one of them each
    cut = below(keys_of(spec.seed, view, ids, "mixing"), (2,))[:, 0] == 1
    boxes = boxes._replace(height=jnp.where(cut, boxes.height, 0))
    weights = jnp.where(cut, 1.0, weights)
  covered = (boxes.height * boxes.width).astype(jnp.float32) / (shape[0] * shape[1])
  return Mixing(rows, weights * (1 - covered), weights, boxes)


def mixed(
  images: Float[Array, "b h w c"], others: Float[Array, "b h w c"], mixing: Mixing, spec: Augment
) -> Float[Array, "b h w c"]:
  """Returns images mixed with those of their partners."""
  found = mix(images, others, mixing.shares) if spec.mixup else images
  if mixing.boxes is None:
    return found
  return jnp.where(mixing.boxes.inside(*images.shape[1:3]), others, found)


def mix(
  images: Float[Array, "b h w c"], others: Float[Array, "b h w c"], weights: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
  """Returns `weights * images + (1 - weights) * others`."""
  weights = weights[:, None, None, None].astype(images.dtype)
  return weights * images + (1 - weights) * others
