import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import digits, load


def test_sizes_and_stratification():
  data = load("digits")
  assert [len(part.labels) for part in data] == [1078, 359, 360]
  counts = np.stack([np.bincount(part.labels, minlength=10) for part in data])
  whole = counts.sum(0)
  assert whole.sum() == 1797
  assert (np.abs(counts - np.outer([0.6, 0.2, 0.2], whole)) <= 1.2).all()
  assert data.train.images.shape == (1078, 8, 8, 1)
  assert data.train.images.dtype == np.uint8
  assert data.train.name == "digits/train"


def test_pixels_and_labels_equal_scikit_learns():
  sklearn = pytest.importorskip("sklearn.datasets")
  source = sklearn.load_digits()
  for part in load("digits"):
    np.testing.assert_array_equal(part.images[..., 0] / 15, source.images[part.ids])
    np.testing.assert_array_equal(part.labels, source.target[part.ids])


def test_split_is_the_written_rule_and_never_changes():
  data = load("digits")
  ids = np.concatenate([part.ids for part in data])
  assert sorted(ids) == list(range(1797))
  assert data.test.ids[:6].tolist() == [0, 2, 4, 17, 21, 26]
  digest = hashlib.sha256(np.concatenate([part.ids for part in data]).astype("<i4").tobytes()).hexdigest()[:16]
  assert digest == "3b7ec78d21e4c997"


def test_loading_does_not_import_scikit_learn():
  code = (
    "import sys; from leanax.engine.data import load; load('digits'); "
    "assert not any(m.startswith('sklearn') for m in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
  monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install scikit-learn"):
    load("digits")


def test_damaged_files_are_named(tmp_path):
  path = tmp_path / "digits.csv.gz"
  with pytest.raises(UserError, match=r"digits\.csv\.gz: no such file"):
    digits.read(path)
  packed = digits.packaged_file().read_bytes()
  path.write_bytes(packed[:-100])
  with pytest.raises(UserError, match="cannot be unpacked"):
    digits.read(path)
  path.write_bytes(gzip.compress(gzip.decompress(packed)[:-1] + b" "))
  with pytest.raises(UserError, match="checksum"):
    digits.read(path)


def test_fixed_split_takes_no_validation():
  with pytest.raises(UserError, match="splits are fixed"):
    load("digits", validation=100)
