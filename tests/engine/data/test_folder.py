import os

import numpy as np
import pytest
from PIL import Image

from leanax.core.errors import UserError
from leanax.engine import data

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
  return data.load(f"folder:{root}", cache_dir=tmp_path / "cache", **options)


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


def test_order_does_not_depend_on_the_path(root, tmp_path):
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


def refused(root, tmp_path, sentence, **options):
  with pytest.raises(UserError, match=sentence) as caught:
    load(root, tmp_path, **options)
  assert "\n" not in str(caught.value)


def test_every_kind_of_photograph_in_one_folder(root, tmp_path):
  """One picture as many files, each read as what it shows; suffixes are of any case, and content decides."""
  folder = root / "train" / "cat"
  pixels = RANDOM.randint(0, 256, (6, 5, 3), np.uint8)
  image = Image.fromarray(pixels)
  for name in (
    "photo.png",
    "photo.bmp",
    "photo.TIF",
    "photo.tiff",
    "a photo.PNG",
    "Käse 猫 \U0001f408.png",
    "e\u0301.png",
  ):
    image.save(folder / name)
  image.save(folder / "photo.WebP", lossless=True)
  image.save(folder / "really.a.png.jpg", "PNG")
  deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  deep.save(folder / "deep.png")
  exif = Image.Exif()
  exif[0x0112] = 8
  Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -1))).save(folder / "turned.png", exif=exif)
  Image.fromarray(np.dstack([pixels, np.full((6, 5), 255, np.uint8)])).save(folder / "opaque.png")
  outside = tmp_path / "outside.png"
  image.save(outside)
  (folder / "link.png").symlink_to(outside)
  (root / "train" / "dog link").symlink_to(root / "train" / "dog")
  data = load(root, tmp_path, validation=0)
  found = [np.array_equal(one, pixels) for one in data.train.images]
  assert sum(found) == 12 and {int(label) for label in data.train.labels[found]} == {0}
  grey = np.stack([pixels[..., 0]] * 3, -1)
  assert sum(np.array_equal(one, grey) for one in data.train.images) == 1
  assert len(data.train.labels) == 4 + 13 + 4 + 4
  assert data.train.classes == ("cat", "dog", "dog link")


@pytest.mark.parametrize(
  "name",
  ["notes.txt", "labels.csv", "x.heic", "x.avif", "x.jpeg2000", "Thumbs.db", "noextension", "x.jpg.part", "x.gz"],
)
def test_files_that_are_not_images_are_not_skipped(root, tmp_path, name):
  (root / "train" / "cat" / name).write_bytes(b"x")
  refused(root, tmp_path, rf"train/cat/{name}: is of no kind that is read; expected names that end in \.jpg, .*\.webp")


def test_hidden_files_and_texts_next_to_the_splits_are_ignored(root, tmp_path):
  for place in (root, root / "train", root / "train" / "cat"):
    (place / ".DS_Store").write_bytes(b"x")
    (place / "._0.png").write_bytes(b"x")
    (place / ".hidden").mkdir()
  (root / "README.md").write_text("Pets.")
  assert len(load(root, tmp_path, validation=0).train.labels) == 8


def test_files_and_folders_at_the_wrong_level(root, tmp_path):
  cases = {
    "x.png": r"pets/x\.png: is in no split; expected folders called train",
    "train/x.png": r"train/x\.png: is in no class; expected folders of images there, .*train/CLASS/\*\.jpg",
    "train/classes.txt": r"train/classes\.txt: is in no class",
    "train/cat/more/x.png": r"train/cat/more: is a folder in a class; expected images alone",
    "extra/cat/x.png": r"pets/extra: is in no split; expected folders called train, validation, valid, val, test alone",
  }
  for place, sentence in cases.items():
    write(root / place) if place.endswith("png") else (root / place).write_text("cat dog")
    refused(root, tmp_path, sentence)
    (root / place).unlink()
    for folder in (root / "train" / "cat" / "more", root / "extra" / "cat", root / "extra"):
      folder.rmdir() if folder.exists() else None
  load(root, tmp_path)


def test_broken_links_and_special_files(root, tmp_path):
  folder = root / "train" / "cat"
  (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
  refused(root, tmp_path, r"cat/gone\.png: is a link that leads nowhere; expected images alone")
  (folder / "gone.png").unlink()
  (folder / "loop.png").symlink_to(folder / "loop.png")
  refused(root, tmp_path, r"cat/loop\.png: is a link that leads nowhere")
  (folder / "loop.png").unlink()
  os.mkfifo(folder / "pipe.png")
  refused(root, tmp_path, r"cat/pipe\.png: is no file")
  (folder / "pipe.png").unlink()
  (root / "train" / "bird").symlink_to(tmp_path / "nowhere")
  refused(root, tmp_path, r"train/bird: is in no class")


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("empty.png", b"", "is not a readable image: it is empty"),
    ("text.jpg", b"<html>404</html>", "is not a readable image: it is damaged or none; expected PNG, JPEG, WebP"),
    ("an eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a readable image"),
  ],
)
def test_files_that_are_not_images_are_named(root, tmp_path, name, content, sentence):
  (root / "test" / "dog" / name).write_bytes(content)
  refused(root, tmp_path, rf"test/dog/{name}: {sentence}")


def test_animations_and_floats_are_named(root, tmp_path):
  file = root / "test" / "dog" / "moving.gif"
  frames = [Image.fromarray(RANDOM.randint(0, 256, (6, 5), np.uint8)) for _ in range(3)]
  frames[0].save(file, save_all=True, append_images=frames[1:])
  refused(root, tmp_path, r"test/dog/moving\.gif: .*it has 3 frames or pages; expected one picture")
  file.unlink()
  Image.fromarray(np.zeros((6, 5), np.float32)).save(file.with_suffix(".tiff"))
  refused(root, tmp_path, r"test/dog/moving\.tiff: .*its pixels are 32-bit floats; expected 8 or 16 bits")


def test_names_that_are_not_text(root, tmp_path):
  folder = os.fsencode(root / "train" / "cat")
  for name in (b"\xff\xfe.png", b"a\nb.png", "a\u2028b.png".encode()):
    with open(os.path.join(folder, name), "wb") as file:
      file.write(b"x")
    refused(root, tmp_path, r"train/cat/\S+\.png': has a name that is no UTF-8, or of several lines; rename it")
    os.unlink(file.name)
  os.rename(root / "train" / "cat", root / "train" / "c\rt")
  refused(root, tmp_path, r"has a name that is no UTF-8, or of several lines")
  os.rename(root / "train" / "c\rt", root / "train" / "cat")
  for name in ("bird ", " bird"):
    os.rename(root / "train" / "cat", root / "train" / name)
    refused(root, tmp_path, r"is the name of a class; expected one without blanks around it")
    os.rename(root / "train" / name, root / "train" / "cat")


def test_a_decoded_copy_of_the_old_rules_is_made_again(root, tmp_path):
  first = load(root, tmp_path)
  for manifest in (tmp_path / "cache").rglob("decoded/*.json"):
    text = manifest.read_text()
    assert '"format": 2' in text
    manifest.write_text(text.replace('"format": 2', '"format": 1'))
    images = manifest.with_name(f"{manifest.stem}.images.npy")
    images.write_bytes(b"what format 1 held")
  for one, other in zip(load(root, tmp_path), first):
    np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"size": 8}, r"data\.size is 8; expected \(height, width\)"),
    ({"size": (8,)}, r"data\.size is \(8,\)"),
    ({"size": "88"}, r"data\.size is '88'"),
    ({"size": (0, 8)}, r"data\.size: height and width is 0"),
    ({"validation": "x"}, r"data\.validation is 'x'"),
  ],
)
def test_options_of_another_kind_are_refused(root, tmp_path, options, sentence):
  with pytest.raises(UserError, match=sentence):
    load(root, tmp_path, **options)
