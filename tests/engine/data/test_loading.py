import pytest

from leanax.core.errors import UserError
from leanax.engine.data import load


@pytest.mark.parametrize(
  ("name", "near"), [("digitz", "digits"), ("tfds_mnist", "tfds:mnist"), ("fashion_mnist", "tfds:fashion_mnist")]
)
def test_unknown_set_names_the_nearest(name, near):
  with pytest.raises(UserError, match=f"unknown data set '{name}'; did you mean .*'{near}'"):
    load(name)


@pytest.mark.parametrize("name", ["digits:1", "tfds:", "folder", ""])
def test_malformed_names(name):
  with pytest.raises(UserError, match=f"unknown data set '{name}'"):
    load(name)


def test_unknown_option_names_the_nearest():
  with pytest.raises(UserError, match="'synthetic' 'clases'; did you mean 'classes'"):
    load("synthetic", clases=3)
  with pytest.raises(UserError, match="'tfds:mnist' 'sizes'; did you mean 'size'"):
    load("tfds:mnist", sizes=(3, 3))


def test_folders_are_ignored_by_sets_without_files(tmp_path):
  load("digits", data_dir=tmp_path, cache_dir=tmp_path)
  assert not list(tmp_path.iterdir())
