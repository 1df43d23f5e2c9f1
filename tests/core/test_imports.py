"""A user's code by import path: what is said where it is missing, and which line is named where it fails."""

import os
import sys

import pytest

from leanax.core import imports, ranges
from leanax.core.errors import UserError


@pytest.mark.parametrize("on_path", [True, False])
def test_a_missing_module_says_where_it_is_expected(tmp_path, monkeypatch, on_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*(["", str(tmp_path)] if on_path else []), *sys.path[1:]])
  with pytest.raises(UserError) as raised:
    imports.found("wild.nets:Net", "model 'wild.nets:Net'")
  here = f"in {tmp_path}, where the program runs, or " if on_path else ""
  assert str(raised.value) == (
    "model 'wild.nets:Net': there is no module 'wild' on the Python path; expected wild.py, or a folder of that name, "
    f"{here}in a folder that PYTHONPATH names"
  )
  with pytest.raises(UserError, match="there is no module 'leanax.core.none' on the Python path$"):
    imports.found("leanax.core.none:f", "f")


def test_the_line_of_a_failure_is_the_users():
  def own(number):
    return ranges.check("width", number, ranges.whole(1))

  for number, kind in ((0, ""), ("", "TypeError: ")):
    with pytest.raises(Exception) as raised:
      own(number) if kind == "" else os.fspath(3)
    words = imports.failure(raised.value)
    assert words.startswith(kind or "width") and words.endswith(")") and f"({__file__}:" in words, words
  with (
    pytest.raises(UserError, match="^code fails: TypeError: .*" + os.path.basename(__file__)),
    imports.failing("code"),
  ):
    own(*())


def test_a_mistake_that_only_our_code_saw_has_no_line_of_ours():
  try:
    ranges.check("width", 0, ranges.whole(1))
  except UserError as error:
    own = error.__traceback__.tb_next
    assert imports.failure(error.with_traceback(own)).startswith("width") and ".py" not in imports.failure(error)
    assert ".py:" in imports.failure(ValueError("x").with_traceback(own))
