import pytest

import engine.data
from core.errors import UserError


def test_unknown_set_names_the_nearest():
  with pytest.raises(UserError, match="unknown data set 'digitz'; did you mean 'digits'"):
    engine.data.load("digitz")


def test_unknown_option_names_the_nearest():
  with pytest.raises(UserError, match="'synthetic' 'clases'; did you mean 'classes'"):
    engine.data.load("synthetic", clases=3)


def test_folders_are_ignored_by_sets_without_files(tmp_path):
  engine.data.load("digits", data_dir=tmp_path, cache_dir=tmp_path)
  assert not list(tmp_path.iterdir())
