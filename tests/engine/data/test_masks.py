"""Folders of images and masks: class numbers exactly as they are in the files, and every mistake by the file's name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from leanax.core.errors import UserError
from leanax.engine import data

RNG = np.random.default_rng(0)


def written(root, splits=("train", "val", "test"), count=3, shape=(6, 5), top=3):
  """Writes masks, one with a palette, and images whose red is 60 times the class; returns the masks."""
  masks = {}
  for split in splits:
    masks[split] = RNG.integers(0, top, (count, *shape)).astype(np.uint8)
    for folder in ("images", "masks"):
      (root / split / folder).mkdir(parents=True)
    for number, mask in enumerate(masks[split]):
      pixels = np.stack([mask * 60, mask * 0 + 7, mask * 0], -1)
      Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
      image = Image.fromarray(mask)
      if number == 0:
        image = image.copy()
        image.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0])
        assert image.mode == "P"
      image.save(root / split / "masks" / f"{number}.png")
  return masks


def test_masks_are_the_numbers_of_the_files(tmp_path):
  masks = written(tmp_path)
  masks["train"][1, 0, 0] = 255
  Image.fromarray(masks["train"][1]).save(tmp_path / "train" / "masks" / "1.png")
  (tmp_path / "README.md").write_text("not a split")
  found = data.load(f"masks:{tmp_path}")
  assert [len(split.ids) for split in found] == [3, 3, 3] and found.train.classes == ("0", "1", "2")
  for split, name in zip(found, ("train", "val", "test"), strict=True):
    np.testing.assert_array_equal(split.labels, masks[name])
    np.testing.assert_array_equal(split.images[..., 0][split.labels != 255], 60 * masks[name][split.labels != 255])
  assert len(set(np.concatenate([split.ids for split in found]))) == 9
  named = data.load(f"masks:{tmp_path}", classes=("a", "b", "c", "d"), channels=1)
  assert named.test.classes == ("a", "b", "c", "d") and named.test.images.shape == (3, 6, 5, 1)


def test_a_padded_mask_has_no_class_on_its_border(tmp_path):
  """Twice as wide as high, brought to a square: half of the rows are border, in the image black."""
  masks = written(tmp_path, ("train", "test"), count=5, shape=(4, 8))
  found = data.load(f"masks:{tmp_path}", size=(8, 8), resize="pad").test
  assert (found.labels[:, [0, 1, 6, 7]] == 255).all() and (found.images[:, [0, 1, 6, 7]] == 0).all()
  np.testing.assert_array_equal(found.labels[:, 2:6], masks["test"])
  cut = data.load(f"masks:{tmp_path}", size=(4, 4), resize="crop").test
  np.testing.assert_array_equal(cut.labels, masks["test"][:, :, 2:6])
  with pytest.raises(UserError, match="way of 'data.resize' 'none'"):
    data.load(f"masks:{tmp_path}", size=(4, 4), resize="none")


def test_masks_are_resized_to_their_nearest_pixel(tmp_path):
  masks = written(tmp_path, ("train", "test"), count=5, shape=(4, 6))
  found = data.load(f"masks:{tmp_path}", size=(8, 12), validation=2)
  assert [len(split.ids) for split in found] == [3, 2, 5]
  whole = np.concatenate([found.train.labels, found.validation.labels])
  np.testing.assert_array_equal(whole, masks["train"].repeat(2, 1).repeat(2, 2))
  assert found.test.images.shape == (5, 8, 12, 3)


def grown(root):
  Image.fromarray(np.zeros((7, 5), np.uint8)).save(root / "test" / "masks" / "1.png")


def coloured(root):
  Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(root / "test" / "masks" / "1.png")


def blurred(root):
  (root / "test" / "masks" / "1.png").unlink()
  Image.fromarray(np.zeros((6, 5), np.uint8)).save(root / "test" / "masks" / "1.jpg")


def differing(root):
  for folder, shape in (("images", (9, 5, 3)), ("masks", (9, 5))):
    Image.fromarray(np.zeros(shape, np.uint8)).save(root / "test" / folder / "1.png")


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    (lambda root: (root / "test" / "masks" / "1.png").unlink(), {}, "test/images/1.png: has no mask of its name; exp"),
    (lambda root: (root / "val" / "images" / "2.png").unlink(), {}, "val/masks/2.png: has no image of its name; exp"),
    (grown, {}, "test/masks/1.png: is of 7x5 pixels, and its image of 6x5; expected the same"),
    (coloured, {}, "test/masks/1.png: has pixels of mode 'RGB'; expected class numbers"),
    (blurred, {}, "test/masks/1.jpg: is a JPEG, whose pixels are not exact; expected such as a PNG"),
    (differing, {}, "test/images/1.png: images of .*test differ in size; give data.size"),
    (lambda root: (root / "test" / "masks" / "1.png").write_bytes(b"no"), {}, "masks/1.png: is not a readable image"),
    (lambda root: (root / "test" / "masks" / "a.txt").write_text(""), {}, "a.txt: is of no kind that is read; expec"),
    (lambda root: (root / "more").mkdir(), {}, "more: is in no split; expected folders called train, validation"),
    (lambda root: (root / "train").rename(root / "valid"), {}, "more than one folder for the split 'validation'"),
    (lambda root: (root / "train").rename(root / ".t"), {}, "train: no such directory; expected .*train/images and m"),
    (lambda root: None, {"validation": 0.5}, "has a validation folder, so data.validation must not be given"),
    (lambda root: None, {"classes": ("a",)}, "labels of positions are 1, 2 beside 0 to 0; expected at most one such"),
    (lambda root: None, {"size": 8}, r"data.size is 8; expected \(height, width\)"),
    (lambda root: None, {"channels": 2}, "data.channels is 2; expected 1"),
    (lambda root: None, {"clases": ("a",)}, "'clases'; did you mean 'classes'"),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, change, options, message):
  written(tmp_path)
  change(tmp_path)
  with pytest.raises(UserError, match=message):
    data.load(f"masks:{tmp_path}", **options)


def test_no_folder_is_refused(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory; expected .*train/images/NAME.jpg and"):
    data.load(f"masks:{tmp_path}/nowhere")


def test_a_mask_is_read_as_an_image_is(tmp_path):
  """As no other kind of file, for some of which pillow starts a program, and not where it would fill the memory."""
  written(tmp_path)
  file = tmp_path / "train" / "masks" / "1.png"
  postscript = io.BytesIO()
  Image.fromarray(np.zeros((6, 5), np.uint8)).save(postscript, "EPS")
  chunks = [b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))]
  ends = [(struct.pack(">I", len(one) - 4), struct.pack(">I", zlib.crc32(one))) for one in chunks]
  bomb = b"\x89PNG\r\n\x1a\n" + b"".join(length + one + crc for one, (length, crc) in zip(chunks, ends, strict=True))
  cases = {
    "is not a readable image: it is damaged or none; expected PNG": postscript.getvalue(),
    "has more than 89,478,485 pixels; expected a smaller picture": bomb,
    "is not a readable image: it is empty": b"",
  }
  for words, content in cases.items():
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
      data.load(f"masks:{tmp_path}")
    assert str(caught.value).startswith(f"{file}: {words}")
