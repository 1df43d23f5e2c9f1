import hashlib

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import load


def test_shapes_and_ids():
  data = load("synthetic", shape=(9, 6, 3), classes=4, train=40, validation=8, test=12)
  assert [part.images.shape for part in data] == [(40, 9, 6, 3), (8, 9, 6, 3), (12, 9, 6, 3)]
  assert np.concatenate([part.ids for part in data]).tolist() == list(range(60))
  assert np.bincount(np.concatenate([part.labels for part in data])).tolist() == [15] * 4
  assert data.train.classes == ("class_0", "class_1", "class_2", "class_3")


def test_same_arguments_give_the_same_bytes_in_every_version():
  part = load("synthetic", shape=(8, 8, 1), train=64).train
  assert hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()[:16] == "860d5949620e8333"
  other = load("synthetic", shape=(8, 8, 1), train=64, seed=1).train
  assert (other.images != part.images).any()


def test_classes_can_be_learned_but_not_by_brightness():
  data = load("synthetic", shape=(12, 12, 1), classes=5, train=500, test=200)
  flat = lambda part: part.images.reshape(len(part.labels), -1).astype(np.float64)
  means = np.stack([flat(data.train)[data.train.labels == c].mean(0) for c in range(5)])
  nearest = ((flat(data.test)[:, None] - means) ** 2).sum(-1).argmin(1)
  assert (nearest == data.test.labels).mean() > 0.9


def test_without_noise_and_shift_an_example_is_its_pattern():
  part = load("synthetic", noise=0, shift=0, train=30, classes=3).train
  for number in range(3):
    assert len(np.unique(part.images[part.labels == number], axis=0)) == 1


@pytest.mark.parametrize(
  ("option", "value", "words"),
  [
    ("classes", 1, "classes is 1; expected a whole number, 2 or more"),
    ("train", 0, "train is 0; expected a whole number, 1 or more"),
    ("train", "x", "train is 'x'; expected a whole number"),
    ("train", 10**9, r"\d+ numbers in all its images; expected at most 1073741824"),
    ("noise", -1, "noise is -1; expected a whole number, 0 or more"),
    ("noise", 0.5, "noise is 0.5; expected a whole number"),
    ("seed", -1, "seed is -1; expected a whole number"),
    ("shape", (0, 4, 1), r"shape\[0\] is 0; expected a whole number, 1 or more"),
    ("shape", (4, 4), r"shape is \(4, 4\); expected \(height, width, channels\)"),
    ("shape", 3, r"shape is 3; expected \(height, width, channels\)"),
  ],
)
def test_impossible_sizes(option, value, words):
  with pytest.raises(UserError, match=f"^synthetic data: {words}"):
    load("synthetic", **{option: value})
