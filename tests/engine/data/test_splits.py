import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import device_arrays, make_split
from leanax.engine.data.splits import hold_out

IMAGES = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1)
LABELS = np.arange(10) % 3


def split(**changes):
  arguments = {
    "images": IMAGES,
    "labels": LABELS,
    "ids": np.arange(10) + 50,
    "classes": ("a", "b", "c"),
    "name": "s/train",
  }
  return make_split(**{**arguments, **changes})


def test_types():
  made = split()
  assert made.labels.dtype == made.ids.dtype == np.int32


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_out_of_range_names_example_and_range(bad):
  labels = LABELS.copy()
  labels[7] = bad
  with pytest.raises(UserError, match=rf"s/train: example 7 has label {bad}; expected 0 to 2"):
    split(labels=labels)


def test_wrong_images_and_counts():
  with pytest.raises(UserError, match="uint8"):
    split(images=IMAGES[..., 0])
  with pytest.raises(UserError, match="counts must be equal"):
    split(labels=LABELS[:9])


@pytest.mark.parametrize(("validation", "count"), [(3, 3), (0.2, 2), (0, 0), (0.0, 0)])
def test_hold_out_takes_the_end_and_keeps_ids(validation, count):
  train, held = hold_out(split(), validation, "s")
  assert held.ids.tolist() == list(range(60 - count, 60))
  assert train.ids.tolist() == list(range(50, 60 - count))
  assert (train.name, held.name) == ("s/train", "s/validation")


@pytest.mark.parametrize("validation", [10, 1.0, -1, 2.5])
def test_hold_out_of_everything_is_refused(validation):
  with pytest.raises(UserError, match=r"data\.validation"):
    hold_out(split(), validation, "s")


def test_device_arrays():
  arrays = device_arrays(split())
  assert isinstance(arrays["image"], jax.Array)
  assert {key: value.dtype.name for key, value in arrays.items()} == {"image": "uint8", "label": "int32", "id": "int32"}
