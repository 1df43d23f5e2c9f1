import os

import numpy as np
import pytest
from PIL import Image

import engine.data
from core.errors import UserError

RANDOM = np.random.RandomState(0)


def write(path, shape=(6, 5, 3), pixels=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = RANDOM.randint(0, 256, shape, np.uint8) if pixels is None else pixels
  Image.fromarray(pixels).save(path)
  return pixels


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "pets"
  for split, count in (("train", 4), ("test", 2)):
    for name in ("cat", "dog"):
      for number in range(count):
        write(folder / split / name / f"{number}.png")
  return folder


def load(root, tmp_path, **options):
  return engine.data.load(f"folder:{root}", cache_dir=tmp_path / "cache", **options)


def test_pixels_and_labels(root, tmp_path):
  data = load(root, tmp_path, validation=0.25)
  assert [part.images.shape for part in data] == [(6, 6, 5, 3), (2, 6, 5, 3), (4, 6, 5, 3)]
  assert data.train.classes == ("cat", "dog")
  assert np.concatenate([part.ids for part in data]).tolist() == list(range(12))
  for part, split in ((data.train, "train"), (data.validation, "train"), (data.test, "test")):
    for image, label in zip(part.images, part.labels):
      files = (root / split / ("cat", "dog")[label]).iterdir()
      assert sum(np.array_equal(np.asarray(Image.open(file)), image) for file in files) == 1
  assert data.test.name == "image_folder/test"


def test_own_validation_folder_and_jpeg(root, tmp_path):
  write(root / "val" / "dog" / "x.JPG", (6, 5, 3))
  data = load(root, tmp_path)
  assert [len(part.labels) for part in data] == [8, 1, 4]
  assert data.validation.labels.tolist() == [1]
  with pytest.raises(UserError, match="validation split of its own"):
    load(root, tmp_path, validation=2)


def test_order_does_not_depend_on_the_place(root, tmp_path):
  first = load(root, tmp_path)
  os.rename(root, tmp_path / "moved")
  second = load(tmp_path / "moved", tmp_path)
  np.testing.assert_array_equal(first.train.images, second.train.images)


def test_a_changed_folder_is_prepared_again(root, tmp_path):
  load(root, tmp_path)
  new = write(root / "test" / "cat" / "new.png")
  data = load(root, tmp_path)
  assert any(np.array_equal(image, new) for image in data.test.images)
  altered = write(root / "test" / "cat" / "new.png", pixels=255 - new)
  data = load(root, tmp_path)
  assert any(np.array_equal(image, altered) for image in data.test.images)


def test_grey(root, tmp_path):
  assert load(root, tmp_path, channels=1).train.images.shape[1:] == (6, 5, 1)
  with pytest.raises(UserError, match=r"data\.channels is 2"):
    load(root, tmp_path, channels=2)


def test_different_sizes_need_a_size(root, tmp_path):
  write(root / "train" / "cat" / "large.png", (9, 9, 3))
  with pytest.raises(UserError, match=r"images differ in size .*9x9.*give data\.size"):
    load(root, tmp_path)
  assert load(root, tmp_path, size=(4, 8)).train.images.shape[1:] == (4, 8, 3)


def test_damaged_image_is_named(root, tmp_path):
  path = root / "train" / "dog" / "2.png"
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(UserError, match=r"train/dog/2\.png: is not a readable image"):
    load(root, tmp_path)


def test_wrong_folders(root, tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory"):
    load(tmp_path / "nowhere", tmp_path)
  (root / "test" / "bird").mkdir()
  with pytest.raises(UserError, match=r"test/bird: expected files that end in"):
    load(root, tmp_path)
  write(root / "test" / "bird" / "0.png")
  with pytest.raises(UserError, match="class 'bird' is in the test split but not in the training split"):
    load(root, tmp_path)
  os.rename(root / "test", root / "tests")
  with pytest.raises(UserError, match=r"pets/test: no such directory; expected .*/test/CLASS"):
    load(root, tmp_path)


def test_two_folders_for_one_split(root, tmp_path):
  for name in ("val", "valid"):
    write(root / name / "cat" / "0.png")
  with pytest.raises(UserError, match="more than one folder for the split 'validation'"):
    load(root, tmp_path)
