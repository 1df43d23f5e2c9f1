"""Labels of any shape in splits and batches: masks that move with their images, numbers, several outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine import data
from leanax.engine.data import batches, splits

N = 12
RNG = np.random.default_rng(0)
MASKS = RNG.integers(0, 3, (N, 6, 5)).astype(np.uint8)
IMAGES = np.stack([MASKS * 40 + 10] * 2, -1).astype(np.uint8)  # the mask can be read off the pixels
NUMBERS = RNG.normal(size=(N, 2)).astype(np.float32)
IDS = np.arange(N) + 100


def split(labels=MASKS, images=IMAGES, classes=("a", "b", "c")):
  return data.make_split(images, labels, IDS, classes, "s/train")


def batch(labels=MASKS, ignore_label=255, images=IMAGES, **augment):
  spec = data.Input(
    6, preprocess=data.Preprocess(scale=1.0), augment=data.Augment(**augment), ignore_label=ignore_label
  )
  arrays = data.device_arrays(split(labels, images, ("a", "b", "c") if labels is MASKS else ()))
  batches.check(spec, jax.eval_shape(lambda: arrays))
  return jax.jit(lambda arrays, step: data.train_batch_at(arrays, step, spec))(arrays, 1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("augment", [{"crop": 2}, {"shift": (1, 2)}, {"flip": True}, {"crop": 1, "flip": True}])
def test_a_mask_moves_with_its_image(augment):
  found = batch(**augment)
  pixels, labels = np.asarray(found["image"])[..., 0], np.asarray(found["label"])
  assert labels.dtype == np.uint8 and labels.shape == (6, 6, 5)
  inside = pixels > 0  # zeros are beyond the border
  np.testing.assert_array_equal(labels[inside], (pixels[inside] - 10) / 40)
  np.testing.assert_array_equal(labels[~inside], 255)
  still = np.asarray(batch()["label"])
  assert (labels != still).any() and ((~inside).any() or augment == {"flip": True})


def test_colours_leave_the_mask_as_it_is():
  found, still = batch(brightness=0.5), batch()
  np.testing.assert_array_equal(found["label"], still["label"])
  assert (np.asarray(found["image"]) != np.asarray(still["image"])).any()


@pytest.mark.parametrize("fill", ["edge", "reflect"])
def test_beyond_the_border_it_has_the_label_of_the_pixels_there(fill):
  found = batch(ignore_label=None, crop=2, fill=fill)
  pixels = np.asarray(found["image"])[..., 0]
  np.testing.assert_array_equal(found["label"], (pixels - 10) / 40)


def test_mixed_images_have_both_masks():
  found = batch(mixup=0.4, flip=True)
  weights = np.asarray(found["mix"])[:, None, None]
  one, other = (np.asarray(found[key], np.float32) for key in ("label", "mix_label"))
  expected = weights * one + (1 - weights) * other
  np.testing.assert_allclose((np.asarray(found["image"])[..., 0] - 10) / 40, expected, atol=1e-4)


def test_numbers_and_several_outputs_are_gathered():
  found = batch(labels=NUMBERS)
  np.testing.assert_array_equal(found["label"], NUMBERS[np.asarray(found["id"]) - 100])
  np.testing.assert_array_equal(found["target"], found["label"])
  found = batch(labels={"mask": MASKS, "place": NUMBERS}, flip=True)
  assert set(found["label"]) == {"mask", "place"} and set(found["target"]) == {"place"}
  np.testing.assert_array_equal(found["label"]["mask"], (np.asarray(found["image"])[..., 0] - 10) / 40)


def test_other_inputs_are_not_prepared():
  tokens, series = RNG.integers(0, 9, (N, 4)), RNG.normal(size=(N, 7, 2))
  found = batch(images=tokens, labels=NUMBERS)
  assert found["image"].dtype == jnp.int32
  np.testing.assert_array_equal(found["image"], tokens[np.asarray(found["id"]) - 100])
  found = batch(images=series, labels=NUMBERS)
  np.testing.assert_array_equal(found["image"], series.astype(np.float32)[np.asarray(found["id"]) - 100])


def test_some_labels_of_masks():
  some = splits.label_some(split(), 5, 0)
  known = (some.labels >= 0).all((1, 2))
  assert known.sum() == 5 and (some.labels[~known] == -1).all() and some.labels.dtype == np.int32
  np.testing.assert_array_equal(some.labels[known], MASKS[known])
  assert len(splits.label_some(split(NUMBERS, classes=()), 5, 0, unlabelled=False).ids) == 5
  taken = split({"mask": MASKS, "place": NUMBERS}, classes=()).take(slice(2, 4), "t")
  np.testing.assert_array_equal(taken.labels["place"], NUMBERS[2:4])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: split(np.where(MASKS == 1, 77, MASKS + 300 * (MASKS == 2)).astype(int)),
      "are 77, 302 beside 0 to 2; expec",
    ),
    (lambda: split(np.ones(N, np.float32)), r"labels are float32 of shape \(12,\); expected class numbers"),
    (lambda: split(NUMBERS * np.nan, classes=()), "labels hold NaN or infinity; expected finite numbers"),
    (lambda: split({"a": MASKS, "b": NUMBERS[:3]}), "12 images, 3 labels and 12 ids; the counts must be equal"),
    (lambda: split({}), "the labels are an empty mapping; expected an array for each output"),
    (lambda: split(np.arange(N) % 3, classes=()), "labels are class numbers, and there are no classes; expected their"),
    (lambda: split(images=IMAGES[..., 0]), "images must be uint8"),
    (lambda: split(images=np.full((N, 3), np.inf)), "s/train: inputs hold NaN or infinity"),
    (
      lambda: split(images=np.full((N, 3), 2**40)),
      "inputs hold 1099511627776; expected whole numbers that int32 holds",
    ),
    (
      lambda: batch(crop=1, ignore_label=None),
      "augment.crop is 1, and nothing says which label of a position the zeros",
    ),
    (
      lambda: batch(shift=(1, 0), ignore_label=-100),
      "ignore_label is -100, which labels of uint8 do not hold; expected",
    ),
    (lambda: batch(labels=NUMBERS, mixup=0.2), "augment.mixup is 0.2, and labels are floats or of several outputs"),
    (
      lambda: batch(images=NUMBERS, labels=NUMBERS, flip=True),
      "augment.flip is True, a change of pictures, and the inp",
    ),
    (lambda: splits.label_some(split(NUMBERS, classes=()), 5, 0), "expected 'examples.unlabelled' to be False"),
    (lambda: splits.label_some(split(), 13, 0), "13 labels are asked for, and it has 12 examples"),
    (lambda: data.measure(split(NUMBERS, NUMBERS, ())), "its inputs are float32; expected uint8 pixels to measure"),
  ],
)
def test_mistakes_are_one_sentence(call, message):
  with pytest.raises(UserError, match=message):
    call()


@pytest.mark.parametrize(
  ("key", "value"),
  [("resized_crop", (0.5, 1.0)), ("erase", 0.5), ("cutmix", 1.0), ("function", "tests.engine.data.own_changes:none")],
)
def test_what_a_mask_does_not_follow_is_refused_by_name(key, value, monkeypatch):
  monkeypatch.setattr(data.augment, "check", lambda *_: None)  # there is no such function
  with pytest.raises(UserError, match=f"augment.{key} is .*, which labels of positions do not follow; expected bright"):
    batch(**{key: value})
  if key == "cutmix":
    with pytest.raises(UserError, match="augment.cutmix is 1.0, and labels are floats or of several outputs"):
      batch(labels=NUMBERS, cutmix=1.0)


def test_every_change_of_places_is_followed_or_refused(monkeypatch):
  """A change that is added to `Augment` and that nobody has thought of is refused for masks."""
  monkeypatch.setattr(data.augment, "FOLLOWED", ("shift", "mixup"))
  with pytest.raises(UserError, match="augment.crop is 1, which labels of positions do not follow; expected shift or"):
    batch(crop=1)
