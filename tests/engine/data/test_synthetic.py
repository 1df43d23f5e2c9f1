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


@pytest.mark.parametrize(("option", "value"), [("classes", 1), ("train", 0), ("noise", -1), ("shape", (0, 4, 1))])
def test_impossible_sizes(option, value):
  with pytest.raises(UserError, match=option):
    load("synthetic", **{option: value})
