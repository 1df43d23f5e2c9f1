import json
import shutil
import sys

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import load, prepared, stock


@pytest.fixture
def cache(tiny, tmp_path):
  stock.prepare(tiny.stock, tiny.originals, tmp_path / "cache" / "tfds", tmp_path / "downloads")
  return tmp_path / "cache"


def test_by_name_by_version_and_by_directory(cache, tmp_path):
  first = load("tfds:mnist", cache_dir=cache)
  assert [len(part.labels) for part in first] == [27, 3, 10]
  assert [part.name for part in first] == ["mnist/train", "mnist/validation", "mnist/test"]
  for name, options in [
    ("tfds:mnist/3.0.1", {"cache_dir": cache}),
    (f"tfds:{cache}/tfds/mnist/3.0.1", {"cache_dir": tmp_path / "other"}),
    ("tfds:mnist", {"cache_dir": tmp_path / "other", "data_dir": cache / "tfds"}),
  ]:
    for left, right in zip(first, load(name, **options)):
      np.testing.assert_array_equal(left.images, right.images)


def test_newest_version_is_taken(cache):
  old, new = cache / "tfds" / "mnist" / "3.0.1", cache / "tfds" / "mnist" / "10.0.0"
  shutil.copytree(old, new)
  assert prepared._find("mnist", [cache / "tfds"]) == new


def test_folders_from_the_environment(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(stock, "stock_class", lambda name: tiny.stock)
  monkeypatch.setenv("LEANAX_DATA_DIR", str(tiny.originals.parent))
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "c"))
  assert len(load("tfds:mnist").test.labels) == 10
  assert (tmp_path / "c" / "tfds" / "mnist").is_dir()


def test_the_directory_of_the_files_itself(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(stock, "stock_class", lambda name: tiny.stock)
  assert len(load("tfds:mnist", data_dir=tiny.originals, cache_dir=tmp_path).test.labels) == 10


def test_wrong_names_and_places(cache, tmp_path):
  with pytest.raises(UserError, match=r"'tfds:mnits' is not prepared below .*did you mean 'tfds:mnist'"):
    load("tfds:mnits", cache_dir=cache)
  with pytest.raises(UserError, match="expected tfds:mnist, tfds:fashion_mnist or a set that TFDS has prepared"):
    load("tfds:zzzzzzz", cache_dir=cache)
  with pytest.raises(UserError, match="nowhere: no such directory; data_dir must name"):
    load("tfds:mnist", data_dir=tmp_path / "nowhere", cache_dir=tmp_path)
  with pytest.raises(UserError, match="is no prepared data set; expected a directory with dataset_info.json"):
    load(f"tfds:{tmp_path}", cache_dir=cache)
  with pytest.raises(UserError, match=r"mnist/\S+-ubyte\.gz: no such file"):
    load("tfds:mnist", data_dir=tmp_path, cache_dir=tmp_path / "empty")


def test_damaged_description_is_named(cache):
  info = cache / "tfds" / "mnist" / "3.0.1" / "dataset_info.json"
  info.write_text(info.read_text()[:100])
  with pytest.raises(UserError, match=r"3\.0\.1: cannot be opened as a prepared data set"):
    load("tfds:mnist", cache_dir=cache)


def test_other_file_formats_are_refused(cache):
  info = cache / "tfds" / "mnist" / "3.0.1" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match="is stored as tfrecord, which only TensorFlow reads"):
    load("tfds:mnist", cache_dir=cache)


LEGACY = {"type": "features_of_others.Image", "content": {}}
NAMED = {
  "the set": {"pythonClassName": "features_of_others.Image", "jsonFeature": {"json": "{}"}},
  "as a protobuf names it": {"python_class_name": "features_of_others.Image", "jsonFeature": {"json": "{}"}},
  "in the old form": LEGACY,
  "in a text": {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "jsonFeature": {"json": json.dumps({"features": {"a": {**LEGACY, "content": json.dumps([LEGACY])}}})},
  },
}


@pytest.mark.parametrize("where", NAMED)
def test_a_set_imports_nothing_that_it_names(cache, tmp_path, monkeypatch, where):
  (tmp_path / "features_of_others.py").write_text("import pathlib\npathlib.Path(__file__ + '.ran').touch()\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  file = cache / "tfds" / "mnist" / "3.0.1" / "features.json"
  whole = json.loads(file.read_text())
  one = json.loads(file.read_text())
  one["featuresDict"]["features"]["image"] = NAMED[where]
  for description in (NAMED[where], one):
    file.write_text(json.dumps(description))
    with pytest.raises(
      UserError, match=r"features\.json: names the class 'features_of_others.Image', which is not run"
    ):
      load("tfds:mnist", cache_dir=cache)
  assert not (tmp_path / "features_of_others.py.ran").exists() and "features_of_others" not in sys.modules
  file.write_text(json.dumps(whole))
  assert len(load("tfds:mnist", cache_dir=cache).test.labels) == 10
