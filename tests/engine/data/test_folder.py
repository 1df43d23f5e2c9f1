import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from leanax.core.errors import UserError
from leanax.engine import data
from leanax.engine.data.folder import number_of

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
  ways = {way: load(root, tmp_path, size=(4, 8), resize=way).train.images for way in ("stretch", "crop", "pad")}
  for way, found in ways.items():  # each has a decoded copy of its own
    np.testing.assert_array_equal(load(root, tmp_path, size=(4, 8), resize=way).train.images, found)
  assert (ways["pad"][:, :, 0] == 0).all() and not any((ways[way][:, :, 0] == 0).all() for way in ("stretch", "crop"))
  assert not np.array_equal(ways["stretch"], ways["crop"])


def test_damaged_image_is_named(root, tmp_path):
  path = root / "train" / "dog" / "2.png"
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(UserError, match=r"train/dog/2\.png: is not a readable image"):
    load(root, tmp_path)


def test_the_number_of_a_file_is_that_of_the_page(tmp_path):
  """docs/data.md computes the same from the bytes."""
  (tmp_path / "a.png").write_bytes(b"the bytes of a file")
  assert round(number_of(tmp_path / "a.png", 0), 6) == 0.947669


def test_wrong_folders(root, tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory"):
    load(tmp_path / "nowhere", tmp_path)
  (root / "test" / "bird").mkdir()
  with pytest.raises(
    UserError, match=r"test/bird: the class is empty; expected images, files that end in .*, or no such folder"
  ):
    load(root, tmp_path)
  write(root / "test" / "bird" / "0.png")
  with pytest.raises(UserError, match="class 'bird' is in the test split but not in the training split"):
    load(root, tmp_path)
  os.rename(root / "test", root / "tests")
  with pytest.raises(UserError, match=r"pets: holds 'train', the name of a split, beside 'tests', which is none"):
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
    "x.png": r"pets/x\.png: is in no class; expected .*pets/CLASS/\*\.jpg, or .*pets/train/CLASS/\*\.jpg",
    "train/x.png": r"train/x\.png: is in no class; expected folders of images there, .*train/CLASS/\*\.jpg",
    "train/classes.txt": r"train/classes\.txt: is in no class",
    "extra/cat/x.png": (
      r"pets: holds 'test', the name of a split, beside 'extra', which is none; expected splits alone \(train, "
      r"validation, valid, val, test\), so move 'extra' into one of them, or classes alone, so rename the class 'test'"
    ),
  }
  for place, sentence in cases.items():
    write(root / place) if place.endswith("png") else (root / place).write_text("cat dog")
    refused(root, tmp_path, sentence)
    (root / place).unlink()
    for folder in (root / "extra" / "cat", root / "extra"):
      folder.rmdir() if folder.exists() else None
  load(root, tmp_path)


@pytest.fixture
def flat(tmp_path):
  for name in ("cat", "dog"):
    for number in range(60):
      write(tmp_path / "flat" / name / ("deep" if number % 2 else "") / f"{number}.png", (2, 3, 3))
  (tmp_path / "flat" / "README.md").write_text("Pets.")
  return tmp_path / "flat"


def where(data):
  """{an image's bytes: its split}."""
  return {image.tobytes(): part.name.split("/")[1] for part in data for image in part.images}


def test_a_folder_of_classes_is_split_by_a_number_of_each_file(flat, tmp_path, capsys):
  found = load(flat, tmp_path, test=0.3, validation=0.2, split_seed=5)
  splits = where(found)
  for file in flat.rglob("*.png"):  # the rule, by hand
    digest = hashlib.sha256(b"5\n" + hashlib.sha256(file.read_bytes()).digest()).hexdigest()
    number = int(digest[:12], 16) / 16**12
    expected = "test" if number < 0.3 else "validation" if number < 0.5 else "train"
    assert splits[np.asarray(Image.open(file)).tobytes()] == expected
  counts = ", ".join(f"{split} {len(part.ids)}" for split, part in zip(found._fields, found))
  assert sum(len(part.ids) for part in found) == 120
  line = f"data: {flat} has no test and no validation split; of each class 30 % for test, 20 % for validation: {counts}"
  assert line in capsys.readouterr().err
  assert where(load(flat, tmp_path, test=0.3, validation=0.2, split_seed=6)) != splits
  assert where(load(flat, tmp_path, test=0.3, validation=0.2, split_seed=5)) == splits


def test_an_added_file_moves_no_other_and_a_copy_follows_its_original(flat, tmp_path):
  before = where(load(flat, tmp_path))
  assert set(before.values()) == {"train", "validation", "test"}
  for number in range(20):
    write(flat / "cat" / f"new{number}.png", (2, 3, 3))
  for number in (1, 3, 5, 7):
    shutil.copy(flat / "dog" / "deep" / f"{number}.png", flat / "dog" / f"copy{number}.png")
  data = load(flat, tmp_path)
  after = where(data)
  assert before.items() <= after.items() and len(after) == 140
  assert sum(len(part.ids) for part in data) == 144
  rows = [row.tobytes() for part in data for row in part.images]
  assert sum(rows.count(row) == 2 for row in set(rows)) == 4


def test_small_classes_have_an_image_in_each_split(tmp_path):
  root = tmp_path / "few"
  for name in ("cat", "dog"):
    for number in range(3):
      write(root / name / f"{number}.png")
  assert [sorted(part.labels.tolist()) for part in load(root, tmp_path)] == [[0, 1]] * 3
  high = load(root, tmp_path, test=0.9, validation=0.05)
  assert [sorted(part.labels.tolist()) for part in high] == [[0, 1]] * 3
  assert [len(part.labels) for part in load(root, tmp_path, test=0.001, validation=0)] == [4, 0, 2]
  shutil.copy(root / "cat" / "0.png", root / "cat" / "1.png")
  refused(
    root, tmp_path, r"data\.test is 0\.6 and data\.validation 0\.4; expected less than 1", test=0.6, validation=0.4
  )
  refused(root, tmp_path, r"data\.test is 0; expected a number above 0 and below 1", test=0)
  refused(root, tmp_path, "class 'cat' has 2 different images; expected 3 or more, one for each of train, test, valida")


def test_train_alone_and_train_with_validation(root, tmp_path, capsys):
  shutil.rmtree(root / "test")
  os.rename(root / "train" / "cat", root / "train" / "Cat")
  data = load(root, tmp_path)
  assert [len(part.labels) for part in data] == [4, 2, 2]
  write(root / "Valid" / "Cat" / "x.png")
  capsys.readouterr()
  data = load(root, tmp_path, test=0.5)
  assert len(data.validation.labels) == 1 and set(data.test.labels.tolist()) == {0, 1}
  err = capsys.readouterr().err
  assert "has no test split; of each class 50 % for test: train" in err
  assert "warning: " in err and "the validation split has no image of class 'dog'\n" in err


def test_images_at_any_depth(root, tmp_path):
  pixels = write(root / "train" / "cat" / "a" / "b" / "0.png")
  other = write(root / "train" / "cat" / "a" / "0.png")
  data = load(root, tmp_path)
  for one in (pixels, other):
    rows = [label for part in data for image, label in zip(part.images, part.labels) if np.array_equal(image, one)]
    assert rows == [0]
  (root / "train" / "cat" / "a" / "up").symlink_to(root / "train" / "cat")
  refused(root, tmp_path, "cat/a/up: is a link to a folder that it lies in; expected images")


def test_one_image_in_two_splits_is_counted(root, tmp_path, capsys):
  write(root / "val" / "cat" / "x.png")
  load(root, tmp_path)
  assert capsys.readouterr().err.count("warning") == 1  # no dog in the validation split
  for number in (0, 1):
    shutil.copy(root / "train" / "cat" / f"{number}.png", root / "test" / "dog" / f"copy{number}.png")
  shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "y.png")
  load(root, tmp_path)
  err = capsys.readouterr().err
  assert f"warning: {root}: 2 images are in both test and train, which makes an accuracy on test too high" in err
  assert f"{root}: 1 image is in both validation and train," in err and "1 image is in both test and validation" in err


def test_layouts_that_are_none(flat, tmp_path):
  refused(flat / "dog", tmp_path, r"dog/0\.png: is in no class; expected .*/dog/CLASS/\*\.jpg, or .*/dog/train/CLASS")
  (tmp_path / "none" / ".git").mkdir(parents=True)
  refused(tmp_path / "none", tmp_path, r"none: has no folders; expected .*none/CLASS/\*\.jpg, or")
  (tmp_path / "outer").mkdir()
  os.rename(flat, tmp_path / "outer" / "flat")
  refused(tmp_path / "outer", tmp_path, r"outer/flat/README\.md: is of no kind that is read")
  (tmp_path / "outer" / "flat" / "README.md").unlink()
  refused(tmp_path / "outer", tmp_path, "outer: has one class, 'flat'; expected two or more folders of images")
  os.rename(tmp_path / "outer" / "flat" / "dog", tmp_path / "outer" / "flat" / "Test")
  refused(
    tmp_path / "outer", tmp_path, r"flat/Test: is the name of a split inside of 'flat', which is none; expected .*outer"
  )
  refused(tmp_path / "outer" / "flat", tmp_path, "holds 'Test', the name of a split, beside 'cat', which is none")
  shutil.rmtree(tmp_path / "outer" / "flat" / "cat")
  refused(tmp_path / "outer" / "flat", tmp_path, r"flat/train: no such directory; expected .*/train/CLASS")


def test_broken_links_and_special_files(root, tmp_path):
  folder = root / "train" / "cat"
  (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
  refused(root, tmp_path, r"cat/gone\.png: is a link that leads nowhere; expected images")
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
    ({"resize": "crop"}, r"data\.resize is 'crop', and data\.size is not given; expected \(height, width\)"),
    ({"resize": "crp", "size": (8, 8)}, r"unknown way in data\.resize 'crp'; did you mean 'crop'"),
    ({"validation": "x"}, r"data\.validation is 'x'"),
    ({"validation": 3}, r"data\.validation is 3; expected a share of the training images, from 0 to below 1"),
    ({"test": 0.1}, r"pets has a test split of its own, so data\.test must not be given"),
    ({"split_seed": -1}, r"data\.split_seed is -1; expected a whole number, 0 or more"),
  ],
)
def test_options_of_another_kind_are_refused(root, tmp_path, options, sentence):
  with pytest.raises(UserError, match=sentence):
    load(root, tmp_path, **options)


def test_classes_in_the_order_of_a_models_outputs(root, tmp_path):
  """Labels count the given names, of which the folder may lack some; pixels and ids stay."""
  plain = load(root, tmp_path)
  names = ("extra", *reversed(plain.train.classes))
  for one, other in zip(plain, load(root, tmp_path, classes=names), strict=True):
    assert other.classes == names
    assert [names[label] for label in other.labels] == [one.classes[label] for label in one.labels]
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.ids, other.ids)


def test_classes_that_do_not_name_every_folder_once_are_refused(root, tmp_path):
  names = load(root, tmp_path).train.classes
  refused(root, tmp_path, f"has a folder '{names[-1]}'", classes=names[:-1])
  refused(root, tmp_path, "data.classes has .* twice", classes=(*names, names[0]))
  refused(root, tmp_path, "data.classes is 'abc'; expected the names of classes", classes="abc")
