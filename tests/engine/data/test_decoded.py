import io
import os

import numpy as np
import pytest
from PIL import Image

from leanax.core.errors import UserError
from leanax.engine.data import decoded, pictures, stock


@pytest.fixture
def builder(tiny, tmp_path):
  return stock.prepare(tiny.stock, tiny.originals, tmp_path / "tfds", tmp_path / "downloads")


def read(builder, tmp_path, **changes):
  return decoded.read(builder, "test", **{"first_id": 30, "size": None, "spare": tmp_path / "spare", **changes})


def home(builder):
  return builder.data_path / "decoded"


def test_second_time_reads_the_copy(builder, tmp_path, monkeypatch):
  first = read(builder, tmp_path)
  monkeypatch.setattr(decoded, "_decode", None)
  second = read(builder, tmp_path)
  for left, right in zip(first[:3], second[:3]):
    np.testing.assert_array_equal(left, right)
  assert first.ids.tolist() == list(range(30, 40))
  assert not [path for path in home(builder).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["test.images.npy", "test.labels.npy", "test.json"])
def test_damaged_copy_is_named_with_its_cure(builder, tmp_path, name):
  read(builder, tmp_path)
  path = home(builder) / name
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data[: len(data) // 2] if name.endswith("json") else data)
  with pytest.raises(UserError, match=rf"{name}: is damaged.*delete .*decoded and"):
    read(builder, tmp_path)


def test_lost_array_is_named(builder, tmp_path):
  read(builder, tmp_path)
  os.unlink(home(builder) / "test.labels.npy")
  with pytest.raises(UserError, match=r"test\.labels\.npy: cannot be read"):
    read(builder, tmp_path)


def test_copy_without_its_manifest_is_made_again(builder, tmp_path):
  """The files that a run leaves when it is killed between them."""
  read(builder, tmp_path)
  os.unlink(home(builder) / "test.json")
  (home(builder) / "test.images.npy").write_bytes(b"half")
  assert read(builder, tmp_path).images.shape == (10, 28, 28, 1)


def test_copy_of_another_set_is_made_again(builder, tmp_path):
  first = read(builder, tmp_path)
  info = builder.data_path / "dataset_info.json"
  info.write_text(info.read_text() + "\n")
  manifest = home(builder) / "test.json"
  before = manifest.read_text()
  np.testing.assert_array_equal(read(builder, tmp_path).images, first.images)
  assert manifest.read_text() != before


def test_set_that_cannot_be_written_uses_the_spare_folder(builder, tmp_path, monkeypatch):
  monkeypatch.setattr(decoded, "_writable", lambda folder: "spare" in str(folder) and not folder.mkdir(parents=True))
  read(builder, tmp_path)
  assert not home(builder).exists()
  assert len(list((tmp_path / "spare").rglob("*.npy"))) == 2


def test_damaged_records_are_named(builder, tmp_path):
  record = next(path for path in builder.data_path.iterdir() if "test.array_record" in path.name)
  data = bytearray(record.read_bytes())
  data[200:400] = bytes(200)
  record.write_bytes(data)
  with pytest.raises(UserError, match=r"3\.0\.1.* cannot be read|is not a readable image") as caught:
    read(builder, tmp_path)
  assert "\n" not in str(caught.value)


def test_resized(builder, tmp_path):
  small = read(builder, tmp_path, size=(14, 7))
  assert small.images.shape == (10, 14, 7, 1)
  whole = read(builder, tmp_path).images
  want = np.asarray(Image.fromarray(whole[0, ..., 0]).resize((7, 14), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(small.images[0, ..., 0], want)


def png(image):
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  return buffer.getvalue()


def test_colour_modes():
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
  palette.putpalette([255, 0, 0, 0, 0, 255])
  np.testing.assert_array_equal(pictures.decode_image(png(palette), "RGB", None, "x"), [[[255, 0, 0], [0, 0, 255]]])
  grey = Image.fromarray(np.array([[7]], np.uint8))
  assert pictures.decode_image(png(grey), "RGB", None, "x").tolist() == [[[7, 7, 7]]]
  assert pictures.decode_image(png(grey), "L", None, "x").tolist() == [[[7]]]


def test_bytes_that_are_not_an_image():
  whole = png(Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40), np.uint8)))
  for data in (b"hello", whole[: len(whole) // 2]):
    with pytest.raises(UserError, match="here: is not a readable image"):
      pictures.decode_image(data, "L", None, "here")
