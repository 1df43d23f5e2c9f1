import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import decoded, load, stock


def prepare(tiny, tmp_path, originals=True):
  return stock.prepare(tiny.stock, tiny.originals if originals else None, tmp_path / "tfds", tmp_path / "downloads")


def test_small_set_goes_through_the_real_builder(tiny, tmp_path):
  builder = prepare(tiny, tmp_path)
  for split in ("train", "test"):
    got = decoded.read(builder, split, first_id=0, size=None, spare=tmp_path)
    assert got.images.shape == (len(tiny.labels[split]), 28, 28, 1)
    order = [int(np.flatnonzero((tiny.images[split] == image[..., 0]).all((1, 2)))[0]) for image in got.images]
    assert sorted(order) == list(range(len(order)))
    assert order != sorted(order)  # shuffled by TFDS's keys
    np.testing.assert_array_equal(got.labels, tiny.labels[split][order])
  assert builder.info.full_name == "mnist/3.0.1"
  assert (tmp_path / "tfds" / "mnist" / "3.0.1" / "dataset_info.json").exists()


def test_prepared_once(tiny, tmp_path):
  prepare(tiny, tmp_path)
  for file in tiny.originals.iterdir():
    file.unlink()
  prepare(tiny, tmp_path)


def test_keys_and_features_are_the_stock_ones():
  for name in stock.NAMES:
    cls = stock.stock_class(name)
    thin = stock.without_tensorflow(cls)
    assert (thin.name, thin.VERSION, thin._info) == (cls.name, cls.VERSION, cls._info)


def test_altered_file_is_named(tiny, tmp_path):
  path = tiny.originals / stock.FILES["test"][0]
  data = bytearray(path.read_bytes())
  data[-20] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match=rf"{path.name}: is not the original file of mnist: expected \d+ bytes"):
    prepare(tiny, tmp_path)
  assert not (tmp_path / "tfds").exists()


def test_tfds_checks_the_checksums_as_well(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(stock, "check_originals", lambda *_: None)
  path = tiny.originals / stock.FILES["train"][1]
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
  with pytest.raises(UserError, match="not the original"):
    prepare(tiny, tmp_path)


def test_missing_file_is_named(tiny, tmp_path):
  (tiny.originals / stock.FILES["train"][1]).unlink()
  with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz: no such file; expected the original file"):
    prepare(tiny, tmp_path)


def test_refused_network_is_one_sentence_at_once(tiny, tmp_path):
  with pytest.raises(UserError, match=r"cannot be fetched from http://127.*give data_dir=DIR") as caught:
    prepare(tiny, tmp_path, originals=False)
  assert "\n" not in str(caught.value)


def test_not_an_idx_file(tmp_path):
  path = tmp_path / "x.gz"
  for data, sentence in [
    (b"no", "cannot be unpacked"),
    (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "is not an IDX file of 1-dimensional"),
    (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01a"), "is not an IDX file"),
  ]:
    path.write_bytes(data)
    with pytest.raises(UserError, match=sentence):
      stock.read_idx(path, 1)


def test_missing_library_says_what_to_install():
  code = """
import sys
sys.modules["array_record"] = None
from leanax.engine.data import load
from leanax.core.errors import UserError
try:
  load("tfds:mnist")
except UserError as error:
  assert "array_record" in str(error) and "pip install tensorflow-datasets" in str(error), error
else:
  raise SystemExit("no error")
"""
  subprocess.run([sys.executable, "-c", code], check=True)


# sha256 over all pixels and then all labels (uint8) in TFDS's order, as the stock builders give them with TensorFlow.
DIGESTS = {
  "mnist": ("6d82d9f18df5f5fe", "bf70cada31279c1e"),
  "fashion_mnist": ("19faa12a185eeb69", "320e58dbd12dca38"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DIGESTS))
def test_equals_the_stock_route(name, real_data, tmp_path):
  data = load(f"tfds:{name}", data_dir=real_data(name).parent, cache_dir=tmp_path)
  assert [len(part.labels) for part in data] == [54000, 6000, 10000]
  images = np.concatenate([data.train.images, data.validation.images])
  labels = np.concatenate([data.train.labels, data.validation.labels])
  for (pixels, numbers), digest in zip([(images, labels), (data.test.images, data.test.labels)], DIGESTS[name]):
    assert hashlib.sha256(pixels.tobytes() + numbers.astype(np.uint8).tobytes()).hexdigest()[:16] == digest
  assert np.concatenate([part.ids for part in data]).tolist() == list(range(70000))
